"""Optical flow of VideoNav-v0 rooms: a small trained network against dense inverse search, judged by the exact flow.

Run: python -m benchmarks.flow report --json docs/results/flow.json
     python -m benchmarks.flow train --out runs/flow            (what made models/flow_net.safetensors)

Pairs of pictures are a random drive apart: up to 0.35 m ahead, 0.1 m to either side and 0.3 rad. Rooms to train on have
seeds from 1,200,000, rooms to watch the training on from 520,000, those of the report from 30,000.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from io import BytesIO
from json import dumps
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.progress import track

from envs.evaluate import paired_difference
from envs.flow_pairs import FARTHEST, NEAREST, Pair, means, pairs_of, stack_cells
from envs.video_nav import CAMERA_FOVY, CAMERA_HEIGHT, CAMERA_PITCH
from policies.dis import dis_flow
from policies.egomotion import Camera, ego_motion, floor_depth, flow_of, jacobian
from policies.files import replace_file
from policies.learned_flow import WEIGHTS, learned_flow
from policies.spec import Array
from policies.train_flow import FlowRecipe, FlowTrainer

REPORT_SEED, VALID_SEED, TRAIN_SEED = 30_000, 520_000, 1_200_000
VALID_ROOMS, VALID_PAIRS = 16, 8
SIZES = (0, 2, 5, 10, 20, np.inf)  # px, edges of the classes of motion
SIDE = 96
NOMINAL = Camera(SIDE, float(CAMERA_FOVY), CAMERA_HEIGHT, float(CAMERA_PITCH))  # what a robot assumes

LEARNED, DIS, BOTH, ZERO, FLOOR, EXACT = "learned", "dis", "dis from learned", "zero", "floor plane", "exact"
RECIPE = FlowRecipe()
Row = dict[str, Any]


def floor_plane_flow(pair: Pair) -> Array:
    """Flow ``(2, S, S)`` if there were nothing but floor and what is far away, to first order in the true twist."""
    camera = Camera(SIDE, float(CAMERA_FOVY), pair.height, pair.pitch)
    relation = jacobian(camera, SIDE, floor_depth(camera, SIDE))
    twist = torch.from_numpy(pair.twist.astype(np.float32))
    return flow_of(twist, relation).T.reshape(2, SIDE, SIDE).numpy()


def methods(pair: Pair, weights: Path) -> dict[str, Callable[[], Array]]:
    """What to compare on a pair; the last two know the true motion."""
    learned = partial(learned_flow, pair.first, pair.second, weights)
    return {
        LEARNED: learned,
        DIS: partial(dis_flow, pair.first, pair.second),
        BOTH: lambda: dis_flow(pair.first, pair.second, _by_pixel(learned())),
        ZERO: lambda: np.zeros_like(pair.flow),
        FLOOR: lambda: floor_plane_flow(pair),
    }


def _by_pixel(flow: Array) -> Array:
    """The same flow, laid out in memory as OpenCV wants it."""
    return np.ascontiguousarray(flow.transpose(1, 2, 0)).transpose(2, 0, 1)


def compare(pair: Pair, weights: Path) -> Row:
    """Errors, CPU times and ego-motion of every method on one pair.

    Returns:
        ``size`` (P,) px of the exact flow where it is seen; by method ``error`` (P,) px, ``cpu_s`` and ``ego``, how far
        the displacement in m and the yaw in rad of `ego_motion` are off.
    """
    errors, spent, ego = {}, {}, {}
    for name, method in methods(pair, weights).items():
        since = time.process_time()
        flow = method()
        spent[name] = time.process_time() - since
        errors[name] = np.linalg.norm(flow - pair.flow, axis=0)[pair.seen]
        if name in (LEARNED, DIS, BOTH):
            ego[name] = _ego_error(flow, pair)
    ego[EXACT], ego[ZERO] = _ego_error(pair.flow, pair), (float(np.linalg.norm(pair.twist[:2])), abs(pair.twist[2]))
    size = np.linalg.norm(pair.flow, axis=0)[pair.seen]
    return {"size": size, "error": errors, "cpu_s": spent, "ego": ego}


def _ego_error(flow: Array, pair: Pair) -> tuple[float, float]:
    off = ego_motion(means(flow), NOMINAL, 1.0).twist - pair.twist
    return float(np.linalg.norm(off[:2])), float(abs(off[2]))


def measure(
    rooms: int, pairs: int, seed: int = REPORT_SEED, weights: Path = WEIGHTS, progress: Callable[..., Any] = iter
) -> dict[str, Any]:
    """Run everything on one thread.

    Args:
        rooms: How many.
        pairs: In each room.
        seed: Of the first room.
        weights: Of the network.
        progress: Wraps the pairs that are run through.

    Returns:
        Plain JSON values.
    """
    import cv2

    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        rows = [compare(pair, weights) for pair in progress(pairs_of(range(seed, seed + rooms), pairs))]
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])
    settings = {"seed": seed, "rooms": rooms, "pairs": pairs, "nearest": [*NEAREST], "farthest": [*FARTHEST]}
    return {**settings, **_errors(rows, pairs), "time": _times(rows), "ego_motion": _egos(rows)}


def _errors(rows: Sequence[Row], per_room: int) -> dict[str, Any]:
    """End-point errors in px by method: of all pixels, of pixels by size of their motion, and differences per room."""
    size, names = np.concatenate([row["size"] for row in rows]), list(rows[0]["error"])
    which = np.digitize(size, SIZES[1:-1])
    table, room = {}, {}
    for name in names:
        error = np.concatenate([row["error"][name] for row in rows])
        by_size = [float(error[which == k].mean()) if (which == k).any() else None for k in range(len(SIZES) - 1)]
        table[name] = {"mean": float(error.mean()), "median": float(np.median(error)), "by_size": by_size}
        means_of = [float(row["error"][name].mean()) for row in rows]
        room[name] = np.reshape(means_of, (-1, per_room)).mean(1).tolist()
    shares = [float((which == k).mean()) for k in range(len(SIZES) - 1)]
    return {
        "sizes": {"edges": [*SIZES[:-1]], "share_of_pixels": shares, "mean_motion": float(size.mean())},
        "epe": table,
        "differences": {f"{LEARNED} minus {name}": paired_difference(room[LEARNED], room[name]) for name in names[1:]},
    }


def _times(rows: Sequence[Row]) -> dict[str, Any]:
    """Median CPU time per pair over that of DIS in the same run; in ms only to know the order of magnitude."""
    usual = {name: float(np.median([row["cpu_s"][name] for row in rows])) for name in rows[0]["cpu_s"]}
    return {name: {"over_dis": value / usual[DIS], "ms": 1e3 * value} for name, value in usual.items()}


def _egos(rows: Sequence[Row]) -> dict[str, Any]:
    """Median errors of the displacement and of the yaw by method; of zero that is what there is to find."""
    found = {}
    for name in rows[0]["ego"]:
        distance, angle = np.median([row["ego"][name] for row in rows], axis=0).tolist()
        found[name] = {"displacement_m": distance, "yaw_rad": angle}
    return found


def as_text(result: Mapping[str, Any]) -> str:
    """Render the result of `measure` as tables."""
    sizes, lines = result["sizes"], [f"{result['rooms']} rooms, {result['pairs']} pairs each; end-point error in px"]
    edges = [f"{low:g}+" for low in sizes["edges"]]
    lines.append(f"  {'':<18}{'all':>8}{'median':>8}" + "".join(f"{edge:>8}" for edge in edges) + f"{'time':>8}")
    lines.append(f"  {'share of pixels':<34}" + "".join(f"{share:8.3f}" for share in sizes["share_of_pixels"]))
    for name, errors in result["epe"].items():
        cells = "".join(f"{'' if error is None else format(error, '.2f'):>8}" for error in errors["by_size"])
        rate = result["time"][name]["over_dis"]
        lines.append(f"  {name:<18}{errors['mean']:8.2f}{errors['median']:8.2f}{cells}{rate:8.2f}")
    for name, gap in result["differences"].items():
        interval = "" if gap["low"] is None else f" [{gap['low']:.2f}, {gap['high']:.2f}]"
        lines.append(f"  {name}: {gap['mean']:.2f}{interval} px, mean over rooms")
    for name, off in result["ego_motion"].items():
        lines.append(
            f"  ego-motion from {name:<18}{1e3 * off['displacement_m']:8.1f} mm{1e3 * off['yaw_rad']:8.1f} mrad"
        )
    return "\n".join(lines)


def report(json: Path | None = None, weights: Path = WEIGHTS, rooms: int = 50, pairs: int = 8) -> None:
    """Compare the flows and the ego-motion that comes of them; about a minute on one core.

    Args:
        json: Where to write the results.
        weights: Of the network.
        rooms: Rooms that training has not seen.
        pairs: Pairs of pictures in each.
    """
    result = measure(rooms, pairs, weights=weights, progress=lambda found: track(found, "pairs", total=rooms * pairs))
    print(as_text(result))
    if json:
        replace_file(json, (dumps(result, indent=1) + "\n").encode())


def train(
    out: Path,
    recipe: tyro.conf.OmitArgPrefixes[FlowRecipe] = RECIPE,
    rooms: int = 300,
    pairs: int = 16,
    resume: bool = False,
) -> None:
    """Take pairs, once, and train the network on them.

    Args:
        out: Directory of the run; the network is ``flow_net.safetensors`` there.
        recipe: How to train.
        rooms: Rooms to train on.
        pairs: Pairs of pictures in each.
        resume: Continue an interrupted run.
    """
    torch.set_num_threads(1)  # the convolutions are too small for more
    out.mkdir(parents=True, exist_ok=True)
    seen = load_pairs(out / f"pairs_{rooms}x{pairs}.npz", range(TRAIN_SEED, TRAIN_SEED + rooms), pairs)
    valid = load_pairs(out / "pairs_valid.npz", range(VALID_SEED, VALID_SEED + VALID_ROOMS), VALID_PAIRS)
    FlowTrainer(out, recipe, seen, valid, resume).run(_print)


def load_pairs(path: Path, seeds: range, pairs: int) -> dict[str, Array]:
    """Pairs to train on, from a file that is written if there is none, see `envs.flow_pairs.stack_cells`."""
    if not path.exists():
        content = BytesIO()
        taken = track(pairs_of(seeds, pairs), f"pairs for {path.name}", total=len(seeds) * pairs)
        np.savez_compressed(content, **stack_cells(taken))  # type: ignore[arg-type]  # numpy names its options too
        replace_file(path, content.getvalue())
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def _print(entry: Mapping[str, float]) -> None:
    print(", ".join(f"{name} {value:g}" for name, value in entry.items()), flush=True)


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"report": report, "train": train})
