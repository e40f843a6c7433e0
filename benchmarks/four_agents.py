"""Do several agents arrive in one maze without coming too near each other, when trajectories are denoised one by one?

Run: python -m benchmarks.four_agents --json docs/results/four_agents.json

Points of 0.7 m in OGBench's giant maze, driven in its simulator, one simulation each; a collision is a distance below
two radii at any step. Paths are planned on the graph by priorities, each then guides a denoising of its own, as
XDiffuser (arXiv 2605.16863) does. That these keep clear of each other nobody guarantees: `planners.multi_agent.repair`
makes agents wait until they do. Starts and goals are drawn from the nodes of the graph. All rows answer the same
questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from json import dumps
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from rich.progress import track
from scipy.spatial.distance import pdist

from benchmarks.entry import check, run
from envs.evaluate import wilson
from envs.maze import RADIUS, SPEED, STEP, MazeEnv
from envs.world import make
from planners.graph import StateGraph
from planners.multi_agent import NoJointPlan, conflicts, prioritised, repair
from planners.search import Route
from planners.track import Curve, Follower, VelocityTracker
from planners.xdiffuser import Sampler, XDiffuser
from policies.files import replace_file
from policies.spec import Array

ENV = "kinoflow/Maze-giant-v0"
DISTANCE, TOUCH = 1.7, 2 * RADIUS  # m, between agents: planned, and that of a collision
LIMIT = 1000  # steps
MARGIN = 0.5  # radii between plans and walls, as for one agent
REPAIRED, DENOISED, GRAPH, ALONE = "denoised and repaired", "denoised", "the graph's paths", "each for itself"
Row = dict[str, Any]


def sample_ends(graph: StateGraph, agents: int, rng: np.random.Generator) -> Array:
    """Draw nodes ``(2, A)``: starts and goals of agents, those of a kind a safety distance apart."""
    inside = np.flatnonzero(graph.components == 0)
    while True:
        ends = rng.choice(inside, (2, agents), replace=False)
        if all(pdist(graph.nodes[kind]).min() > DISTANCE + 0.5 for kind in ends):
            return ends


def steps_of(route: Route) -> Array:
    """Where an agent is at each step ``(T, 2)``."""
    moments = np.arange(int(np.ceil(route.times[-1])) + 1)
    return np.stack([np.interp(moments, route.times, route.states[:, axis]) for axis in (0, 1)], -1)


def denoised(planner: XDiffuser, way: Route, env: MazeEnv, generator: torch.Generator) -> Array:
    """Where an agent is at each step ``(T, 2)`` by a trajectory that its path guides; by the path if none is free."""

    def free(start: Array, end: Array) -> Array:
        return env.maze.segment_free(start, end, MARGIN * RADIUS)

    # The way keeps its times: waiting for others is part of it.
    sampler = Sampler(window=12.0, every=4.0, pull=0.3)
    start, goal = way.states[0], way.states[-1]
    for places in planner.denoise(way, start, goal, generator, sampler, planner.pieces(way)):
        if planner.flaw(places, free) == "wall":
            places = planner.spliced(places, way, free)
        if planner.flaw(places, free) in ("", "turn"):
            return steps_of(planner.timed(places))
    return steps_of(way)


def drive(env: MazeEnv, route: Route) -> Array:
    """Where a point is at each step ``(T, 2)`` when it follows a route; it stays where it arrives."""
    env.reset(seed=0, options={"start": route.states[0], "goal": route.states[-1]})
    follower, tracker = Follower(Curve(route, STEP), 3.0, 99.0), VelocityTracker(5.0, SPEED)
    places = [env.pose]
    for _ in range(LIMIT):
        env.step(tracker.command(env.pose, follower.advance(env.pose, STEP)))
        places.append(env.pose)
        if follower.over and np.linalg.norm(env.pose - env.goal) < 0.2:
            break
    return np.array(places)


def outcome(paths: Sequence[Array], goals: Array) -> Row:
    """What came of paths ``(T, 2)`` that were driven."""
    longest = max(map(len, paths))
    padded = np.stack([np.concatenate([path, np.repeat(path[-1:], longest - len(path), 0)]) for path in paths])
    near = [np.linalg.norm(padded[one] - padded[two], axis=-1).min() for one, two in combinations(range(len(paths)), 2)]
    arrived = bool((np.linalg.norm(padded[:, -1] - goals, axis=-1) < 1.0).all())
    least = float(min(near))
    return {"arrived": arrived, "least_m": round(least, 3), "clear": arrived and least >= TOUCH, "steps": longest}


def run_instance(planner: XDiffuser, env: MazeEnv, agents: int, seed: int) -> dict[str, Row]:
    """Ask all methods one question."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    ends = sample_ends(planner.graph, agents, rng)
    goals = planner.graph.nodes[ends[1]]
    since = perf_counter()
    try:
        joint = prioritised(planner.graph, ends[0], ends[1], DISTANCE, rng).routes
    except NoJointPlan as refusal:
        return {name: {"clear": False, "refused": refusal.reason} for name in (REPAIRED, DENOISED, GRAPH)} | {
            ALONE: _alone(planner, env, ends, goals)
        }
    found = [denoised(planner, way, env, generator) for way in joint]
    before = conflicts(found, DISTANCE)
    try:
        mended, fallback = repair(found, DISTANCE, rng).routes, False
    except NoJointPlan:
        mended, fallback = joint, True
    spent = perf_counter() - since
    single = [Route(path, np.arange(len(path), dtype=float)) for path in found]
    rows = {
        name: outcome([drive(env, route) for route in routes], goals)
        for name, routes in ((REPAIRED, mended), (DENOISED, single), (GRAPH, joint))
    }
    rows[REPAIRED] |= {"plan_s": round(spent, 3), "conflicts": len(before), "fallback": fallback}
    return rows | {ALONE: _alone(planner, env, ends, goals)}


def _alone(planner: XDiffuser, env: MazeEnv, ends: Array, goals: Array) -> Row:
    routes = prioritised(planner.graph, ends[0], ends[1], 0.0, np.random.default_rng(0)).routes
    return outcome([drive(env, route) for route in routes], goals)


def measure(planner: XDiffuser, agents: int, instances: int, seed: int) -> dict[str, Any]:
    """Run everything; returns plain JSON values: rates with their intervals, and what was planned."""
    env = make(ENV, {})
    rows = [run_instance(planner, env, agents, seed + index) for index in track(range(instances), f"{agents} agents")]
    methods = {}
    for name in (REPAIRED, DENOISED, GRAPH, ALONE):
        ones = [row[name] for row in rows]
        methods[name] = {
            "clear": wilson(sum(one["clear"] for one in ones), len(ones)),
            "arrived": sum(one.get("arrived", False) for one in ones),
            "least_m": min((one["least_m"] for one in ones if "least_m" in one), default=None),
        }
    repaired = [row[REPAIRED] for row in rows]
    planned = [row for row in repaired if "refused" not in row]
    about = {
        "refused": len(repaired) - len(planned),
        "conflicts_before_repair": sum(row["conflicts"] > 0 for row in planned),
        "fallback_to_graph": sum(row["fallback"] for row in planned),
        "plan_p50_s": float(np.median([row["plan_s"] for row in planned])) if planned else None,
    }
    return {"agents": agents, "instances": instances, "seed": seed, **about, "methods": methods}


def as_text(result: Mapping[str, Any]) -> str:
    """Render the result of `measure`."""
    lines = [f"{result['agents']} agents, {result['instances']} questions from seed {result['seed']}"]
    for name, row in result["methods"].items():
        rate = row["clear"]
        interval = f"{rate['mean']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]"
        lines.append(f"  {name:<24}{interval:>24}  arrived {row['arrived']}, least distance {row['least_m']} m")
    about = {key: result[key] for key in ("refused", "conflicts_before_repair", "fallback_to_graph", "plan_p50_s")}
    return "\n".join([*lines, f"  {about}"])


def main(json: Path | None = None, planner: Path = Path("models/maze_giant.kfp"), instances: int = 100) -> None:
    """Drive two and four agents through the giant maze; about ten minutes on one core.

    Args:
        json: Where to write the results.
        planner: For OGBench's giant point maze.
        instances: Questions per number of agents.
    """
    check(json, instances=instances)
    torch.set_num_threads(1)
    loaded = XDiffuser.load(planner)
    loaded.require(ENV, None, str(planner))
    results = [measure(loaded, agents, instances, 0) for agents in (2, 4)]
    print("\n".join(map(as_text, results)))
    if json:
        replace_file(json, (dumps(results) + "\n").encode())


if __name__ == "__main__":
    run(main)
