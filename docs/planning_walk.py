"""A wheeled base and a walking G1 follow plans through the maze room, from goal to goal, on MuJoCo physics.

Run: python docs/planning_walk.py --json docs/results/planning_walk.json

The maze is that of seed 0, which the planner that ships was trained for. Goals are drawn anew, at least four passages
away; after a collision or a fall the robot is placed at the start of the room again.
"""

from __future__ import annotations

from collections.abc import Mapping
from json import dumps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from benchmarks.entry import check, run
from envs.evaluate import wilson
from envs.maze_nav import PASSAGES, SPREAD, to_maze, to_world
from envs.world import make
from kinoflow.planning import Method, PlanDriver, load, shipped
from planners.xdiffuser import Sampler
from policies.files import replace_file
from policies.spec import Array

ENV, ROOM, LIMIT_S = "kinoflow/MazeNav-v0", 0, 160.0


def sample_goal(env: Any, rng: np.random.Generator) -> Array:
    """A place ``(3,)`` at least four passages from the robot."""
    here = int(env.maze.cell(to_maze(env.pose[:2])))
    cell = rng.choice(np.flatnonzero(env.maze.routes[0][here] >= PASSAGES))
    return np.array([*(to_world(env.maze.middle(cell)) + rng.uniform(-SPREAD, SPREAD, 2)), 0.0])


def drive(embodiment: str, method: Method, goals: int) -> dict[str, Any]:
    """Send a robot from goal to goal; returns plain JSON values."""
    env, rng = make(ENV, {"embodiment": embodiment, "step_hz": 50}), np.random.default_rng(1)
    planner, rows = load(shipped(ENV), ENV, ROOM), []
    env.reset(seed=ROOM)
    for index in track(range(goals), f"{embodiment}, {method}"):
        if env.failed:
            env.reset(seed=ROOM)
        env.goal = sample_goal(env, rng)
        driver, begin = PlanDriver(planner, method, env, index, Sampler()), env.time
        while not (env.success or env.failed or env.time - begin > LIMIT_S):
            command = driver.command({}, env.time)
            env.step(env.rest if command is None else command)
        rows.append((bool(env.success), env.collision, env.body.fallen(env.data), env.time - begin))
    env.close()
    success, collision, fall, spent = (np.array(column) for column in zip(*rows, strict=True))
    return {
        "success": wilson(int(success.sum()), goals),
        "collisions": int(collision.sum()),
        "falls": int(fall.sum()),
        "mean_s": round(float(spent.mean()), 1),
        "goals": goals,
    }


def as_text(result: Mapping[str, Any]) -> str:
    """One line per robot and method."""
    lines = []
    for name, row in result.items():
        rate = row["success"]
        interval = f"{rate['mean']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]"
        lines.append(f"{name:<24} {interval}  collisions {row['collisions']}, falls {row['falls']}, {row['mean_s']} s")
    return "\n".join(lines)


def main(json: Path | None = None, goals: int = 100) -> None:
    """Drive both robots by plans and by the way itself.

    Args:
        json: Where to write the results.
        goals: Per robot and method.
    """
    check(json, goals=goals)
    torch.set_num_threads(1)
    methods: tuple[Method, ...] = ("xdiffuser", "graph")
    result = {f"{robot}, {method}": drive(robot, method, goals) for robot in ("wheeled", "g1") for method in methods}
    print(as_text(result))
    if json:
        replace_file(json, (dumps(result) + "\n").encode())


if __name__ == "__main__":
    run(main)
