"""What each part of XDiffuser is worth to a puck with inertia in the giant maze: one row per part.

Run: python docs/planning_ablations.py --json docs/results/planning_ablations.json

All rows drive the same 100 episodes, seeds from 0. Settings were chosen on seeds from 500000.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.entry import check, run
from envs.evaluate import paired_difference
from envs.maze_data import wander
from envs.world import make
from kinoflow.console import progress_bar
from kinoflow.planning import TRAINING_SEED, PlanEvaluation, evaluate, shipped
from planners.edges import Joints, Straight, evidence_edges, nearest_edges, sample_nodes
from planners.graph import StateGraph
from planners.train_trajectory import trimmed
from planners.xdiffuser import Sampler, XDiffuser
from policies.files import replace_file
from policies.spec import Array

ENV = "kinoflow/PuckMaze-giant-v0"
USUAL = Sampler()
SAMPLERS = {
    "as shipped": USUAL,
    "window 12": replace(USUAL, window=12),
    "window 48": replace(USUAL, window=48),
    "a waypoint every 12 steps": replace(USUAL, every=12),
    "pull 0.5 m": replace(USUAL, pull=0.5),
    "pull 2 m": replace(USUAL, pull=2.0),
    "1 sample": replace(USUAL, samples=1),
    "4 samples": replace(USUAL, samples=4),
    "1 step": replace(USUAL, steps=1),
    "2 steps": replace(USUAL, steps=2),
    "4 steps": replace(USUAL, steps=4),
    "16 steps": replace(USUAL, steps=16),
    "50 steps": replace(USUAL, steps=50),
    "one attempt": replace(USUAL, attempts=1),
    # So strong a pull that the network has no say: the way, averaged over windows, is what is left.
    "no network": replace(USUAL, pull=0.003),
    "no network, window 12": replace(USUAL, pull=0.003, window=12),
    "no network, one attempt": replace(USUAL, pull=0.003, attempts=1),
    "one attempt, window 12": replace(USUAL, attempts=1, window=12),
    "no network, one attempt, window 12": replace(USUAL, pull=0.003, attempts=1, window=12),
}
METHODS = {"guidance off": "unguided", "the way itself": "graph", "the way, smoothed": "smooth graph"}


def other_graphs(planner: XDiffuser) -> Iterator[tuple[str, XDiffuser]]:
    """The same planner with graphs of other edges."""
    world = make(ENV, {})
    recording = wander(world, "stitch", np.random.default_rng(TRAINING_SEED))
    places = [trimmed(states)[:, :2] for states in recording.trajectories]
    nodes, cost = planner.graph.nodes, planner.graph.cost
    uniform = sample_nodes(places, len(nodes), np.random.default_rng(0))
    edges: dict[str, tuple[Array, Callable[[], Array]]] = {
        "nodes drawn uniformly": (uniform, lambda: evidence_edges(places, uniform)),
        "edges: evidence with holes": (nodes, lambda: evidence_edges(places, nodes)),
        "edges: nearest 20": (nodes, lambda: nearest_edges(nodes, cost, Joints(20, np.inf))),
    }
    for name, (states, connect) in edges.items():
        graph = StateGraph.build(states, connect(), Straight(cost.speed))  # type: ignore[attr-defined]
        same = states is nodes
        speeds = planner.speeds if same else planner.speeds[np.linalg.norm(nodes - states[:, None], axis=-1).argmin(1)]
        yield name, replace(planner, graph=graph, speeds=speeds)


def main(json: Path | None = None, episodes: int = 20, workers: int = 2, second: Path | None = None) -> None:
    """Drive everything; about half an hour on two cores.

    Args:
        json: Where to write the results.
        episodes: Per task.
        workers: Processes.
        second: A planner of another training seed.
    """
    check(json, episodes=episodes, workers=workers)
    rows: dict[str, Any] = {}

    def note(name: str, config: PlanEvaluation, method: str = "xdiffuser") -> None:
        with progress_bar(name) as progress:
            report = evaluate(config, progress, (method,))
        kept = {key: report[key] for key in ("success", "crash", "time_s", "planning")}
        succeeded = [row["success"] for row in report["rows"][method]]
        base = rows["as shipped"]["succeeded"] if rows else succeeded
        rows[name] = {**kept, "difference": paired_difference(succeeded, base), "succeeded": succeeded}
        rate, apart = report["success"], rows[name]["difference"]
        interval = f"{rate['mean']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]"
        print(f"{name:<34} {interval}  {apart['mean']:+.3f}  crash {report['crash']:.3f}", flush=True)
        if json:
            content = dumps({"env": ENV, "episodes": len(config.seeds), "seed": config.seed, "rows": rows})
            replace_file(json, f"{content}\n".encode())

    usual = PlanEvaluation(ENV, episodes=episodes, workers=workers)
    for name, sampler in SAMPLERS.items():
        note(name, replace(usual, sampler=sampler))
    for name, method in METHODS.items():
        note(name, usual, method)
    if second:
        note("trained with another seed", replace(usual, planner=second))
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, planner) in enumerate(other_graphs(XDiffuser.load(shipped(ENV)))):
            file = Path(folder) / f"{index}.kfp"
            planner.save(file)
            note(name, replace(usual, planner=file))


if __name__ == "__main__":
    run(main)
