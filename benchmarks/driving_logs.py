"""How good are plans in recorded drives, by the scores of the public benchmarks, and how good are trivial ones?

Run on files of the Waymo end-to-end dataset, of NAVSIM or OpenScene, or of ScenarioNet:

    python -m benchmarks.driving_logs --waymo val*.tfrecord --clusters clusters.json --predictions plans.npz
    python -m benchmarks.driving_logs --navsim logs/*.pkl --maps maps.json --predictions plans.npz
    python -m benchmarks.driving_logs --scenarionet scenarios/*.pkl

Predictions are arrays by name. Waymo: the frame's name, ``(20, 2)`` x, y at 4 Hz. NAVSIM: the token of the frame at
t=0, ScenarioNet: the scenario's id, both ``(8, 3)`` x, y, heading at 2 Hz. All in m and rad in the frame of the car at
t=0, for NAVSIM and ScenarioNet of its rear axle, and without the pose at t=0. Every scored scene needs one.

For Waymo: rater feedback score, by cluster of scenarios and their mean, and the average displacement in m over 3 s and
5 s from the trajectory that the raters like best. For the others: the PDM score and its terms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from json import dumps
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
from rich.progress import track

from benchmarks.entry import check, run
from envs.logs import navsim as navsim_logs
from envs.logs import scenarionet as scenarios
from envs.logs import waymo_e2e
from envs.metrics import ScoredScene, pdm_score
from envs.metrics.pdm import TERMS
from envs.metrics.rater_feedback import RATE, WAYPOINTS
from envs.metrics.tracker import sampled
from policies.files import replace_file
from policies.spec import Array, ContractError

GIVEN, CONSTANT, STANDING, REPLAY = "predictions", "constant velocity", "standing still", "log replay"
SHORT = dict(zip(TERMS, ("NC", "DAC", "DDC", "TLC", "EP", "TTC", "C", "LK", "EC"), strict=True))  # as NAVSIM has them
PERIOD, POSES = 0.5, 8  # s between waypoints of a plan, and how many
SAMPLES = 41  # at 10 Hz of what is scored
ALL = "all"  # cluster of frames where there is no list of clusters
Plans = Mapping[str, Array] | None
Row = dict[str, Any]
Progress = Callable[[Sequence[Path]], Iterator[Path]]


def read_predictions(path: Path) -> dict[str, Array]:
    """Arrays of an ``.npz`` file by name.

    Raises:
        ContractError: There is no such file, or it holds objects.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: np.asarray(file[name], float) for name in file.files}
    except (OSError, ValueError, BadZipFile, TypeError) as error:
        raise ContractError(f"{path} holds no predictions ({error}); write it with numpy.savez") from error


def prediction(plans: Mapping[str, Array], name: str, shape: tuple[int, int]) -> Array:
    """The plan of one scene.

    Raises:
        ContractError: There is none, or it has another shape.
    """
    if name not in plans:
        raise ContractError(f"predictions have no '{name}', needed is one for every scene; add it")
    if plans[name].shape != shape:
        raise ContractError(f"prediction '{name}' has shape {plans[name].shape}, needed is {shape}; sample it so")
    return plans[name]


def displacement(plan: Array, frame: waymo_e2e.Frame, seconds: int) -> float:
    """Mean distance in m from the trajectory that the raters like best, over the first seconds."""
    trajectories, labels = frame.rated
    best = trajectories[int(labels.argmax())]
    best = np.concatenate([best, np.repeat(best[-1:], max(0, WAYPOINTS - len(best)), 0)])
    count = round(seconds * RATE)
    return float(np.linalg.norm(plan[:count] - best[:count], axis=-1).mean())


def waymo_rows(frame: waymo_e2e.Frame, plans: Plans, cluster: str) -> list[Row]:
    """Scores of all methods in one frame that people have rated."""
    methods = {CONSTANT: waymo_e2e.constant_velocity(frame), STANDING: np.zeros((WAYPOINTS, 2))}
    if len(frame.future.position) >= WAYPOINTS:
        methods[REPLAY] = frame.future.position[:WAYPOINTS, :2].astype(float)
    if plans is not None:
        methods[GIVEN] = prediction(plans, frame.name, (WAYPOINTS, 2))
    return [
        {
            "method": name,
            "cluster": cluster,
            "rfs": float(frame.rater_feedback_score(plan[None])[0]),
            "ade_3": displacement(plan, frame, 3),
            "ade_5": displacement(plan, frame, 5),
        }
        for name, plan in methods.items()
    ]


def measure_waymo(
    files: Sequence[Path], plans: Plans = None, clusters: Mapping[str, str] | None = None, progress: Progress = iter
) -> Row:
    """Score all frames of some files that people have rated.

    Args:
        files: TFRecord files of the dataset.
        plans: ``(20, 2)`` each by the name of the frame; None for the baselines alone.
        clusters: Of scenarios by sequence; None for one of all.
        progress: Wraps the files that are run through.

    Raises:
        ContractError: A file is damaged, a prediction is missing, or nothing is rated.
    """
    rows, frames = [], 0
    for path in progress(files):
        for frame in waymo_e2e.read_frames(path, images=False):
            frames += 1
            if len(frame.rated[1]):
                cluster = ALL if clusters is None else clusters.get(frame.sequence, "unknown")
                rows += waymo_rows(frame, plans, cluster)
    if not rows:
        raise ContractError(f"{frames} frames have 0 ratings, needed is 1 at least; give files of the validation set")
    return {"frames": frames, "methods": {name: _rated(mine) for name, mine in _by(rows, "method").items()}}


def _rated(rows: Sequence[Row]) -> Row:
    by_cluster = {name: _mean(mine, "rfs") for name, mine in sorted(_by(rows, "cluster").items())}
    summary = {key: _mean(rows, key) for key in ("ade_3", "ade_5")}
    return {"rated": len(rows), "rfs": float(np.mean(list(by_cluster.values()))), "clusters": by_cluster, **summary}


def trivial_plans(speed: float) -> dict[str, Array]:
    """Waypoints ``(8, 3)`` of going on as before, and of standing still."""
    ahead = speed * PERIOD * (1 + np.arange(POSES))
    return {CONSTANT: np.stack([ahead, 0 * ahead, 0 * ahead], -1), STANDING: np.zeros((POSES, 3))}


def pdm_rows(
    name: str, scene: ScoredScene, replay: Array | None, plans: Plans, version: Literal[1, 2], quirks: bool
) -> list[Row]:
    """Scores of all methods in one scene.

    Args:
        name: Of the scene, which its prediction has.
        scene: What is scored against.
        replay: ``(41, 3)`` recorded poses at 10 Hz in the frame of the scene; None if they end earlier.
        plans: ``(8, 3)`` each, by the name of the scene.
        version: Of the score.
        quirks: Whether it is computed exactly as NAVSIM does.
    """
    waypoints = trivial_plans(scene.ego.speed)
    if plans is not None:
        waypoints[GIVEN] = prediction(plans, name, (POSES, 3))
    driven = sampled(np.stack(list(waypoints.values())), PERIOD, scene.ego.pose, SAMPLES)
    methods = dict(zip(waypoints, driven, strict=True))
    if replay is not None:
        methods[REPLAY] = replay
    score = pdm_score(np.stack(list(methods.values())), scene, version=version, reference_quirks=quirks)
    return [
        {"method": method, **{term: float(getattr(score, term)[index]) for term in (*TERMS, "total")}}
        for index, method in enumerate(methods)
    ]


def navsim_scenes(
    files: Sequence[Path], extracts: Mapping[str, navsim_logs.MapExtract], progress: Progress
) -> Iterator[tuple[str, ScoredScene, Array | None]]:
    """Name, scene and recorded drive wherever there is a map."""
    for path in progress(files):
        for scene in navsim_logs.scenes(navsim_logs.read_frames(path)):
            token = scene.now.token
            if token in extracts:
                yield token, scene.scored(extracts[token]), sampled(scene.future, PERIOD, scene.now.pose, SAMPLES)[0]


def scenario_scenes(files: Sequence[Path], progress: Progress) -> Iterator[tuple[str, ScoredScene, Array | None]]:
    """Name, scene from its beginning, and recorded drive."""
    for path in progress(files):
        scenario = scenarios.read_scenario(path)
        way = scenario.drive()
        yield scenario.name, scenario.scored(), way[:SAMPLES] if len(way) >= SAMPLES else None


def measure_pdm(
    scenes: Iterator[tuple[str, ScoredScene, Array | None]],
    plans: Plans = None,
    version: Literal[1, 2] = 1,
    quirks: bool = False,
) -> Row:
    """Score all scenes.

    Args:
        scenes: Name, scene and recorded drive of each, see `pdm_rows`, like the other arguments.

    Raises:
        ContractError: A prediction is missing, or there are no scenes.
    """
    rows: list[Row] = []
    for name, scene, replay in scenes:
        rows += pdm_rows(name, scene, replay, plans, version, quirks)
    if not rows:
        raise ContractError("there are 0 scenes to score, needed is 1; give logs with a route, and their maps")
    methods = {
        method: {"scenes": len(mine), **{term: _mean(mine, term) for term in (*TERMS, "total")}}
        for method, mine in _by(rows, "method").items()
    }
    return {"version": version, "quirks": quirks, "methods": methods}


def _by(rows: Sequence[Row], key: str) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row[key], []).append(row)
    return found


def _mean(rows: Sequence[Row], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def as_text(result: Mapping[str, Row]) -> str:
    """Render results as tables: of `measure_waymo` as "waymo", of `measure_pdm` by any other name."""
    lines: list[str] = []
    for dataset, one in result.items():
        columns = ("rfs", "ade_3", "ade_5") if dataset == "waymo" else ("total", *TERMS)
        lines.append(f"{dataset:<20}{'scenes':>8}" + "".join(f"{SHORT.get(name, name):>8}" for name in columns))
        for method, row in one["methods"].items():
            count = row["rated" if dataset == "waymo" else "scenes"]
            lines.append(f"  {method:<18}{count:>8}" + "".join(f"{row[name]:>8.3f}" for name in columns))
            lines += [f"    {name:<24}{value:>8.3f}" for name, value in row.get("clusters", {}).items() if name != ALL]
    return "\n".join(lines)


def main(
    waymo: tuple[Path, ...] = (),
    clusters: Path | None = None,
    navsim: tuple[Path, ...] = (),
    maps: Path | None = None,
    scenarionet: tuple[Path, ...] = (),
    predictions: Path | None = None,
    version: Literal[1, 2] = 1,
    quirks: bool = False,
    json: Path | None = None,
) -> None:
    """Score plans in recorded drives, and trivial plans beside them.

    Args:
        waymo: TFRecord files of the Waymo end-to-end dataset.
        clusters: JSON file of that dataset that lists the clusters of scenarios by sequence.
        navsim: Logs of NAVSIM or OpenScene.
        maps: JSON file with the maps around their scenes, see `envs.logs.navsim.read_extracts`.
        scenarionet: Scenarios of ScenarioNet or MetaDrive.
        predictions: Plans by name in an .npz file; without, only trivial plans are scored.
        version: Of the PDM score: 1 for PDMS, 2 for EPDMS.
        quirks: Compute the PDM score exactly as NAVSIM does.
        json: Where to write the results.
    """
    check(json)
    if not (waymo or navsim or scenarionet):
        raise ContractError("there are no logs; give files with --waymo, --navsim or --scenarionet")
    if navsim and maps is None:
        raise ContractError("--navsim needs --maps: the logs name their map and do not hold it; extract it with nuPlan")
    plans = read_predictions(predictions) if predictions else None

    def show(files: Sequence[Path]) -> Iterator[Path]:
        yield from track(files, "files")

    result: dict[str, Row] = {}
    if waymo:
        listed = waymo_e2e.read_clusters(clusters) if clusters else None
        result["waymo"] = measure_waymo(waymo, plans, listed, show)
    if navsim and maps:
        found = navsim_scenes(navsim, navsim_logs.read_extracts(maps), show)
        result["navsim"] = measure_pdm(found, plans, version, quirks)
    if scenarionet:
        result["scenarionet"] = measure_pdm(scenario_scenes(scenarionet, show), plans, version, quirks)
    print(as_text(result))
    if json:
        replace_file(json, (dumps(result) + "\n").encode())


if __name__ == "__main__":
    run(main)
