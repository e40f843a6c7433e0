"""Which edges should a graph over dataset states have, and what should they cost, in OGBench's giant point maze?

Run: python -m benchmarks.edge_tests --json docs/results/edge_tests.json

Edges are those that trajectories are evidence of, with and without holes, or those to the nearest nodes; they cost the
straight way or a learned temporal distance. Graphs have seeds from 0; choices were made on graphs from 1000. One edge
through a wall can spoil all tasks of its graph, so that graphs are what varies, not tasks: hence the worst graph. All
graphs of a seed have the same nodes and are asked the same tasks; start and goal are joined where the robot has room.

A plan is valid if it touches no wall, and valid for the robot if it keeps the robot's radius off them, which hardly one
does, because states are where the robot slid along a wall; `clearance` says by how much. What a plan costs is compared
with the steps that a point robot needs to carry it out. How these differ is also measured on the way between the ends
of training episodes (`pace`), so that cost times pace can be judged on the tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from json import dumps
from math import inf, nan
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import track
from scipy.stats import spearmanr

from benchmarks.entry import check, run
from benchmarks.point_robot import AHEAD, RADIUS, clearance, drive, least_steps, valid
from envs.evaluate import wilson
from envs.maze import MazeEnv
from envs.maze_data import point_stitch
from envs.mazes import SPEED, SPREAD, Maze
from planners.edges import (
    Cost,
    Joints,
    Straight,
    even_nodes,
    evidence_edges,
    nearest_edges,
    sample_nodes,
    unique_edges,
    usual_gap,
    without_holes,
)
from planners.graph import StateGraph
from planners.search import NoRoute, shortest_path
from planners.temporal import TemporalDistance, TemporalRecipe
from policies.files import replace_file
from policies.spec import Array

DATA_SEED, EPISODES, NODES = 1_000_000, 5000, 1000
DISTANCES = 3  # trained from seeds of their own; graphs take turns with them
ENDS = 50  # training episodes that the pace of a graph is measured on
PROBES, NEAR = (200, 1000), 40.0  # states on either side of the rank correlation; steps
TOLERATED = 0.1  # how far cost may be from steps

NODE_KINDS: dict[str, Callable[[Sequence[Array], int, np.random.Generator], Array]] = {
    "even": even_nodes,
    "uniform": sample_nodes,
}
OURS = "evidence without holes, straight"
METHODS = (
    OURS,
    "evidence without holes, temporal",
    "evidence, temporal",
    "evidence, straight",
    "temporal nearest 10",
    "temporal nearest 20",
    "straight nearest 10",
    "straight nearest 20",
)
Row = dict[str, Any]


class World(NamedTuple):
    """What all graphs share.

    Args:
        maze: Where.
        tasks: Middles of the cells of start and goal ``(5, 2, 2)`` in m.
        trajectories: Positions ``(201, 2)`` in m per episode.
        gap: See `usual_gap`.
    """

    maze: Maze
    tasks: Array
    trajectories: Sequence[Array]
    gap: float

    @classmethod
    def giant(cls, episodes: int = EPISODES) -> World:
        """OGBench's giant maze, and stitch data of it.

        Raises:
            ImportError: OGBench is not installed.
        """
        env = MazeEnv("giant")
        tasks = np.array([[task["init_xy"], task["goal_xy"]] for task in env.game.task_infos], float)
        trajectories = point_stitch(env.maze, np.random.default_rng(DATA_SEED), episodes)
        return cls(env.maze, tasks, trajectories, usual_gap(trajectories))


def graphs_of(world: World, nodes: Array, temporal: Cost) -> dict[str, StateGraph]:
    """By method a graph over nodes ``(N, 2)``."""
    straight = Straight(SPEED)
    evidence = unique_edges(evidence_edges(world.trajectories, nodes), False)
    whole = without_holes(world.trajectories, nodes, evidence, world.gap)
    edges = {"evidence without holes": whole, "evidence": evidence}
    found = {
        f"{name}, {kind}": StateGraph.build(nodes, edges[name], cost)
        for name in edges
        for kind, cost in (("straight", straight), ("temporal", temporal))
    }
    for kind, cost in (("temporal", temporal), ("straight", straight)):
        nearest = nearest_edges(nodes, cost, Joints(20, inf)).reshape(len(nodes), -1, 2)  # in ascending order
        for count in (10, 20):
            found[f"{kind} nearest {count}"] = StateGraph.build(nodes, nearest[:, :count].reshape(-1, 2), cost)
    return {method: found[method] for method in METHODS}


def plan_all(graph: StateGraph, maze: Maze, pairs: Array) -> list[tuple[Array, float]]:
    """Waypoints and cost between pairs of places ``(P, 2, 2)``; without a way no waypoints and an infinite cost."""
    joints, found = Joints(valid=partial(maze.segment_free, margin=RADIUS)), []
    for start, goal in pairs:
        try:
            route = shortest_path(graph, start, goal, joints)
        except NoRoute:
            found.append((np.empty((0, 2)), inf))
        else:
            found.append((route.states.astype(float), route.cost))
    return found


def run_graph(world: World, graph: StateGraph, tasks: Array, episodes: Sequence[Array]) -> Row:
    """Plan and drive.

    Args:
        world: Where.
        graph: To plan with.
        tasks: Starts and goals ``(T, 2, 2)``.
        episodes: Trajectories whose ends the pace is measured between.

    Returns:
        Of each task whether the plan is ``valid`` and ``valid_robot``, its ``clearance`` in m, whether it was
        ``refused``, whether driving it was a ``success``, its ``cost`` and ``steps``. Of the graph ``pace``, the steps
        of the robot per step of cost between the ends of episodes, ``data_pace``, those of the episodes themselves, and
        what its edges are like.
    """
    maze, since = world.maze, perf_counter()
    plans = plan_all(graph, maze, tasks)
    ends = plan_all(graph, maze, np.stack([[states[0], states[-1]] for states in episodes]))
    query_ms = 1e3 * (perf_counter() - since) / (len(plans) + len(ends))
    routes = [(index, *plan) for index, plan in enumerate(plans + ends) if len(plan[0])]
    driven = drive(maze, [waypoints for _, waypoints, _ in routes])
    steps, success = np.full(len(plans + ends), inf), np.zeros(len(plans + ends), bool)
    where = [index for index, *_ in routes]
    steps[where], success[where] = driven
    start, end = np.moveaxis(graph.nodes[graph.edges].astype(float), 1, 0)
    costs = np.array([cost for _, cost in ends])
    took = np.array([(np.linalg.norm(states - states[-1], axis=-1) < AHEAD).argmax() for states in episodes])
    return {
        "tasks": [
            {
                "valid": valid(maze, points),
                "valid_robot": valid(maze, points, RADIUS),
                "clearance": clearance(maze, points),
                "refused": not len(points),
                "success": bool(success[index]),
                "cost": cost,
                "steps": float(steps[index]),
            }
            for index, (points, cost) in enumerate(plans)
        ],
        "pace": _ratio(steps[len(plans) :], costs),
        "data_pace": _ratio(took, costs),
        "edges": len(graph.edges),
        "false_edges": int((~maze.segment_free(start, end)).sum()),
        "components": int(graph.components.max()) + 1,
        "query_ms": query_ms,
    }


def _ratio(steps: Array, costs: Array) -> float:
    """Median of steps over costs ``(P,)``, where there are both."""
    known = np.isfinite(steps) & np.isfinite(costs) & (costs > 0)
    return float(np.median(steps[known] / costs[known])) if known.any() else nan


def run_seed(world: World, temporal: Cost, seed: int) -> dict[str, dict[str, Row]]:
    """By kind of nodes and method what `run_graph` finds, for the same tasks."""
    rng = np.random.default_rng(seed)
    tasks = world.tasks + rng.uniform(-SPREAD, SPREAD, world.tasks.shape)
    episodes = [world.trajectories[index] for index in rng.choice(len(world.trajectories), ENDS, replace=False)]
    found = {}
    for kind, draw in NODE_KINDS.items():
        graphs = graphs_of(world, draw(world.trajectories, NODES, np.random.default_rng(seed)), temporal)
        found[kind] = {method: run_graph(world, graph, tasks, episodes) for method, graph in graphs.items()}
    return found


def rank_correlations(world: World, cost: Cost) -> dict[str, float]:
    """How a cost between random states of the data orders them, against the least steps: any, and near ones."""
    states = sample_nodes(world.trajectories, sum(PROBES), np.random.default_rng(DATA_SEED + 1))
    places, others = states[: PROBES[0]], states[PROBES[0] :]
    least = least_steps(world.maze, places, others)
    guess = cost(np.repeat(places, len(others), axis=0), np.tile(others, (len(places), 1))).reshape(least.shape)
    known = np.isfinite(least)
    near = known & (least < NEAR)
    return {
        "all": float(spearmanr(guess[known], least[known])[0]),
        "near": float(spearmanr(guess[near], least[near])[0]),
    }


def measure(
    world: World,
    temporals: Sequence[TemporalDistance],
    graphs: int,
    seed: int = 0,
    progress: Callable[[range], Iterable[int]] = iter,
) -> dict[str, Any]:
    """Run everything.

    Args:
        world: Where.
        temporals: Learned distances, with which graphs take turns.
        graphs: How many seeds.
        seed: The first one.
        progress: Wraps the seeds that are run through.

    Returns:
        Plain JSON values.
    """
    rows = [
        run_seed(world, temporals[number % len(temporals)], number) for number in progress(range(seed, seed + graphs))
    ]
    return {
        "seed": seed,
        "graphs": graphs,
        "tasks": len(world.tasks),
        "nodes": NODES,
        "episodes": len(world.trajectories),
        "recipe": {**asdict(temporals[0].recipe), "seed": [temporal.recipe.seed for temporal in temporals]},
        "rank_correlation": {
            **{f"temporal {temporal.recipe.seed}": rank_correlations(world, temporal) for temporal in temporals},
            "straight": rank_correlations(world, Straight(SPEED)),
        },
        "methods": {
            kind: {method: summary([row[kind][method] for row in rows]) for method in METHODS} for kind in NODE_KINDS
        },
    }


def summary(graphs: Sequence[Row]) -> Row:
    """One method over all graphs; in ``by_graph`` the tasks of each."""
    found: Row = {}
    for name in ("valid", "valid_robot", "success", "refused"):
        counts = [sum(task[name] for task in graph["tasks"]) for graph in graphs]
        found[name] = {**wilson(sum(counts), sum(len(graph["tasks"]) for graph in graphs)), "by_graph": counts}
    arrived = [(task, graph["pace"]) for graph in graphs for task in graph["tasks"] if np.isfinite(task["steps"])]
    plain = np.array([task["cost"] / task["steps"] for task, _ in arrived])
    return {
        **found,
        "cost_per_step": _spread(plain),
        "paced_cost_per_step": _spread(plain * np.array([pace for _, pace in arrived])),
        "pace": float(np.mean([graph["pace"] for graph in graphs])),
        "data_pace": float(np.mean([graph["data_pace"] for graph in graphs])),
        "clearance": [min(task["clearance"] for task in graph["tasks"]) for graph in graphs],
        "false_edges": sum(graph["false_edges"] for graph in graphs) / sum(graph["edges"] for graph in graphs),
        "edges": [graph["edges"] for graph in graphs],
        "components": [graph["components"] for graph in graphs],
        "query_ms": float(np.mean([graph["query_ms"] for graph in graphs])),
    }


def _spread(ratios: Array) -> dict[str, float] | None:
    """Mean, extremes, and the share within `TOLERATED` of 1."""
    if not len(ratios):
        return None
    within = np.mean(np.abs(ratios - 1) <= TOLERATED)
    return {"mean": ratios.mean(), "min": ratios.min(), "max": ratios.max(), "within": float(within)}


def as_text(result: Mapping[str, Any]) -> str:
    """Render the result of `measure` as tables."""
    each = result["tasks"]
    lines = [f"{result['graphs']} graphs of {result['nodes']} nodes from seed {result['seed']}, {each} tasks each"]
    lines += [
        f"rank correlation with the least steps, {name}: {one['all']:.3f}, below {NEAR:g} steps {one['near']:.3f}"
        for name, one in result["rank_correlation"].items()
    ]
    for kind, methods in result["methods"].items():
        lines.append(f"{kind} nodes; valid, valid for the robot, arrived: of all tasks, in the worst graph")
        heads = f"{'valid':>26}{'for the robot':>15}{'arrived':>26}{'clear':>7}{'false':>8}{'parts':>6}"
        lines.append(f"  {'':<34}{heads}{'cost / steps':>20}{'within':>7}{'pace':>6}{'paced':>20}{'within':>7}")
        for name, row in methods.items():
            cells = f"{_share(row['valid'], each):>26}{_worst(row['valid_robot'], each):>15}"
            cells += f"{_share(row['success'], each):>26}{min(row['clearance']):>7.2f}"
            cells += f"{row['false_edges']:>8.2%}{max(row['components']):>6}"
            cells += f"{_band(row['cost_per_step'])}{row['pace']:>6.2f}{_band(row['paced_cost_per_step'])}"
            lines.append(f"  {name:<34}{cells}")
    return "\n".join(lines)


def _share(rate: Mapping[str, Any], each: int) -> str:
    return f"{rate['mean']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}]{min(rate['by_graph']):>3}/{each}"


def _worst(rate: Mapping[str, Any], each: int) -> str:
    return f"{rate['mean']:.2f}{min(rate['by_graph']):>3}/{each}"


def _band(spread: Mapping[str, float] | None) -> str:
    if spread is None:
        return f"{'':>27}"
    return f"{spread['mean']:>8.2f} [{spread['min']:.2f}, {spread['max']:.2f}]".rjust(20) + f"{spread['within']:>7.0%}"


def main(json: Path | None = None, graphs: int = 6, seed: int = 0) -> None:
    """Train temporal distances and compare edge tests; about ten minutes on one core.

    Args:
        json: Where to write the results.
        graphs: How many seeds.
        seed: Of the first graph.
    """
    check(json, seed, graphs=graphs)
    torch.set_num_threads(1)
    world, since = World.giant(), perf_counter()
    temporals = [
        TemporalDistance.train(world.trajectories, TemporalRecipe(seed=number))
        for number in track(range(DISTANCES), "distances")
    ]
    print(f"{DISTANCES} distances trained in {perf_counter() - since:.0f} s")
    result = measure(world, temporals, graphs, seed, lambda seeds: track(seeds, "graphs"))
    print(as_text(result))
    if json:
        replace_file(json, (dumps(result) + "\n").encode())


if __name__ == "__main__":
    run(main)
