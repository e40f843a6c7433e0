"""kinoflow plan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from kinoflow.console import show
from kinoflow.planning import free_in, load, maze, robot_state, shipped
from planners.xdiffuser import Sampler
from policies.checks import check_seed
from policies.files import prepare_file
from policies.spec import ContractError

SAMPLER = Sampler()


def command(
    env: str = "kinoflow/Maze-giant-v0",
    task: int | None = None,
    seed: int = 0,
    planner: Path | None = None,
    sampler: Sampler = SAMPLER,
    out: Path = Path("plan.png"),
    json: bool = False,
) -> None:
    """Plan one long way through a maze: picture, timing and where the plan came from.

    Args:
        env: Gymnasium id of a maze.
        task: Which of its tasks; by default that of the seed.
        seed: Of start, goal and noise.
        planner: File of a planner; by default that which ships for the environment.
        sampler: How the trajectory is denoised.
        out: Picture to write.
        json: Print JSON, with the positions of the plan.
    """
    torch.set_num_threads(1)
    check_seed(seed)
    world = maze(env)
    if task is not None:
        if not hasattr(world, "task"):
            raise ContractError(f"{env} has no tasks; choose --seed instead of --task {task}")
        world = maze(env, task=task)
    loaded = load(planner or shipped(env), env, None if hasattr(world, "task") else seed)
    prepare_file(out)
    world.reset(seed=seed)
    state = robot_state(world)
    start, goal = state if len(state) == 4 else state[:2], np.asarray(world.goal[:2])
    generator = torch.Generator().manual_seed(seed)
    free = free_in(world)
    loaded.plan(start, goal, free, generator, sampler)  # the first call of a network is slow
    planned = loaded.plan(start, goal, free, generator, sampler)
    from kinoflow.plan_figures import draw_plan

    draw_plan(world, loaded, planned, start, goal, out)
    report = {
        "env": env,
        "task": getattr(world, "task", None),
        "origin": planned.origin,
        "duration_s": round(float(planned.route.times[-1]) * loaded.step_s, 2),
        "length_m": round(float(np.linalg.norm(np.diff(planned.route.states, axis=0), axis=-1).sum()), 2),
        "pieces": planned.pieces,
        "search_ms": round(1e3 * planned.search_s, 2),
        "denoise_ms": round(1e3 * planned.denoise_s, 2),
        "rejected": planned.rejected,
        "picture": str(out),
    }
    world.close()
    points = {"times_s": planned.route.times * loaded.step_s, "positions_m": planned.route.states}
    rounded = {name: np.round(np.asarray(values, float), 3).tolist() for name, values in points.items()}
    show({**report, **rounded} if json else report, json)
