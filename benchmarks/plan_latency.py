"""How long do the plans of XDiffuser take in the giant mazes, from rest and again on the way, on one core?

Run: python -m benchmarks.plan_latency --json docs/results/plan_latency.json

Pairs have seeds from 0: the middles of two different cells, start and goal up to 1 m off them, as in the tasks that
`kinoflow eval xdiffuser` drives. Every cell of these mazes can be reached, so that a refusal is a fault. The planners
are those that ship, with the sampler and the margins to walls of that command; `total` is the whole call, checks and
further attempts included.

For every pair there are two plans. The first begins at rest. For the second the robot has followed the first one for a
random time and is as far off it, in a random direction that no wall is in, as makes that command plan again; it is as
fast as the plan wants it there, and goes to the same goal.

The wall clock is what a robot waits for; the processor time of the same plans says what would remain of it on a machine
that does nothing else. The first call of a network is slow and reported apart.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from json import dumps
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import track

from benchmarks.entry import check, run
from envs.collect import processes
from envs.maze import ARRIVED, SPREAD
from envs.world import make
from planners.search import NoRoute
from planners.track import Curve
from planners.xdiffuser import Free, Planned, XDiffuser
from policies.files import replace_file
from policies.spec import Array

MODELS = Path(__file__).resolve().parent.parent / "models"
LIMITS_S = {"first": 1.0, "again": 0.4}
OFF = 1.5  # radii of the robot off its plan that it is doubted from
DRAWS = 100  # of a place off the plan
Row = dict[str, Any]


class Place(NamedTuple):
    """A maze and the planner that ships for it.

    Args:
        env: Gymnasium id.
        planner: File in ``models/``.
        margin: Radii of the robot that its plans keep from walls.
    """

    env: str
    planner: str
    margin: float


PLACES = (
    Place("kinoflow/PuckMaze-giant-v0", "puckmaze_giant.kfp", 0.95),  # to touch a wall is a crash
    Place("kinoflow/Maze-giant-v0", "maze_giant.kfp", 0.5),
)


def resting(env: Any, place: Array) -> Array:
    """State ``(2,)``, of a puck ``(4,)``, of a robot that rests at a place ``(2,)``."""
    return np.r_[place, np.zeros(env.state.size - 2)]


def departed(env: Any, planned: Planned, step_s: float, goal: Array, free: Free, rng: np.random.Generator) -> Array:
    """State ``(2,)`` or ``(4,)`` of a robot that follows a plan, is off it and has not arrived.

    Raises:
        ValueError: There is no room for it anywhere.
    """
    curve = Curve(planned.route, step_s)
    for _ in range(DRAWS):
        wanted, angle = curve.at(rng.uniform(0, curve.duration)), rng.uniform(0, 2 * np.pi)
        place = wanted.position + OFF * env.radius * np.array([np.cos(angle), np.sin(angle)])
        if np.linalg.norm(place - goal) > ARRIVED and free(wanted.position[None], place[None]).all():
            return np.r_[place, wanted.velocity][: env.state.size]
    raise ValueError(f"no place {OFF * env.radius:g} m off a plan of {curve.duration:g} s is free; choose another seed")


def timed(plan: Callable[[], Planned]) -> tuple[Planned | None, Row]:
    """Plan once; with the seconds of everything, or why it was refused."""
    wall, processor = perf_counter(), process_time()
    try:
        planned = plan()
    except NoRoute as refusal:
        return None, {"refusal": refusal.reason}
    row = {"total": perf_counter() - wall, "processor": process_time() - processor}
    row |= {"search": planned.search_s, "denoising": planned.denoise_s}
    return planned, {**row, "origin": planned.origin, "pieces": planned.pieces, "refusal": ""}


def run_place(place: Place, seeds: Sequence[int]) -> Row:
    """Plan between the pairs of all seeds, in a process that has one numeric thread."""
    torch.set_num_threads(1)
    env, planner = make(place.env, {}), XDiffuser.load(MODELS / place.planner)
    maze, free = env.maze, partial(env.maze.segment_free, margin=place.margin * env.radius)
    rows: dict[str, list[Row]] = {kind: [] for kind in LIMITS_S}
    cold = 0.0
    for seed in seeds:
        rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        cells = rng.choice(maze.free_cells, 2, replace=False)
        begin, goal = maze.middle(cells) + rng.uniform(-SPREAD, SPREAD, (2, 2))
        start = resting(env, begin)
        if not cold:
            cold = timed(partial(planner.plan, start, goal, free, torch.Generator().manual_seed(seed)))[1]["total"]
        planned, row = timed(partial(planner.plan, start, goal, free, generator))
        rows["first"].append(row)
        if planned is not None:
            start = departed(env, planned, planner.step_s, goal, free, rng)
            rows["again"].append(timed(partial(planner.plan, start, goal, free, generator))[1])
    env.close()
    return {"cold_s": cold, **{kind: summary(found, LIMITS_S[kind]) for kind, found in rows.items()}}


def summary(rows: Sequence[Row], limit_s: float) -> Row:
    """Seconds of plans of one kind, also as shares of their limit, and where they came from."""
    made = [row for row in rows if not row["refusal"]]
    found: Row = {"plans": len(made), "refused": len(rows) - len(made), "limit_s": limit_s}
    for name in ("search", "denoising", "total", "processor"):
        p50, p95 = np.quantile([row[name] for row in made], (0.5, 0.95)) if made else (0.0, 0.0)
        found[f"{name}_s"] = {"p50": p50, "p95": p95, "max": max((row[name] for row in made), default=0.0)}
    for name in ("total", "processor"):
        found[f"{name}_of_limit"] = {which: spent / limit_s for which, spent in found[f"{name}_s"].items()}
    origins = [row["origin"] for row in made]
    found["origins"] = {origin: origins.count(origin) for origin in ("denoised", "helped", "way")}
    found["pieces"] = {"mean": float(np.mean([row["pieces"] for row in made])) if made else 0.0}
    found["pieces"]["max"] = max((row["pieces"] for row in made), default=0)
    return found


def measure(pairs: int, seed: int = 0, progress: Callable[[Sequence[Place]], Iterable[Place]] = iter) -> dict[str, Any]:
    """Run everything, one place after the other.

    Args:
        pairs: How many per place.
        seed: Of the first one.
        progress: Wraps the places that are run through.

    Returns:
        Plain JSON values: by environment what was found, and how busy the machine was before.
    """
    load, seeds = round(os.getloadavg()[0], 2), range(seed, seed + pairs)
    with processes(1) as pool:
        found = {place.env: pool.submit(run_place, place, seeds).result() for place in progress(PLACES)}
    return {"seed": seed, "pairs": pairs, "load": load, "places": found}


def as_text(result: Mapping[str, Any]) -> str:
    """Render the result of `measure` as tables."""
    last = result["seed"] + result["pairs"] - 1
    lines = [f"pairs of seeds {result['seed']} to {last}, load {result['load']:g} before; seconds p50 / p95 / max"]
    for env, place in result["places"].items():
        lines.append(f"{env}, first call of all {place['cold_s']:.3f} s")
        heads = "".join(f"{head:>26}" for head in ("search", "denoising", "total", "processor", "total of limit"))
        lines.append(f"  {'':<6}{heads}  denoised/helped/way, refused")
        for kind in LIMITS_S:
            row = place[kind]
            names = ("search_s", "denoising_s", "total_s", "processor_s", "total_of_limit")
            cells = "".join(f"{' / '.join(f'{value:.3f}' for value in row[name].values()):>26}" for name in names)
            origins = "/".join(str(count) for count in row["origins"].values())
            lines.append(f"  {kind:<6}{cells}  {origins}, {row['refused']}")
    return "\n".join(lines)


def main(json: Path | None = None, pairs: int = 200, seed: int = 0) -> None:
    """Time plans of the planners that ship; less than a minute on one core.

    Args:
        json: Where to write the results.
        pairs: Of a start and a goal, per planner.
        seed: Of the first one.
    """
    check(json, seed, pairs=pairs)
    result = measure(pairs, seed, lambda places: track(places, "places"))
    print(as_text(result))
    if json:
        replace_file(json, (dumps(result) + "\n").encode())


if __name__ == "__main__":
    run(main)
