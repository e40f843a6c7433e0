"""Figures of docs/planning.md: what a graph, a way, a denoising and failures look like.

Run: python docs/planning_figures.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.entry import run
from envs.drive import run_episode
from envs.world import make
from kinoflow.plan_figures import PLAN, WAY, draw_ends, draw_graph, draw_walls, write
from kinoflow.planning import Method, PlanDriver, free_in, load, robot_state, shipped
from planners.edges import Joints
from planners.xdiffuser import Sampler, XDiffuser
from policies.files import prepare_folder
from policies.spec import Array

HERE, ENV = Path(__file__).parent, "kinoflow/PuckMaze-giant-v0"
SEED = 500_000  # of validation: nothing here is a result
SHOWN = (0, 2, 4, 7)  # denoising steps


def panels(count: int, world: Any, titles: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """A row of mazes."""
    figure = Figure(figsize=(4.6 * count, 3.7), layout="constrained")
    axes = [figure.add_subplot(1, count, index + 1) for index in range(count)]
    for one, title in zip(axes, titles, strict=True):
        draw_walls(one, world)
        one.set_title(title, fontsize=11)
    return figure, axes


def graph_and_plan(world: Any, planner: XDiffuser) -> Figure:
    """The graph, the way through it, and the plan that it guided, with one dot per stride."""
    start, goal, free = robot_state(world), world.goal, free_in(world)
    planned = planner.plan(start, goal, free, torch.Generator().manual_seed(0))
    titles = ("graph over 1000 states", "way through it", "plan: dots are 0.4 s apart")
    figure, (first, second, third) = panels(3, world, titles)
    draw_graph(first, planner.graph)
    for axes in (second, third):
        axes.plot(*planned.way.states.T, color=WAY, lw=1.2, ls="--")
    third.plot(*planned.route.states.T, ".-", color=PLAN, lw=1.2, ms=4)
    for axes in (first, second, third):
        draw_ends(axes, start, goal)
    return figure


def denoising(world: Any, planner: XDiffuser) -> Figure:
    """What the network makes of noise, step by step: with the pull of the way above, without below."""
    start, goal = robot_state(world), world.goal
    way = planner.way(start, goal, Joints(valid=free_in(world)))
    figure = Figure(figsize=(4.4 * len(SHOWN), 6.6), layout="constrained")
    for row, (pull, name) in enumerate(((Sampler().pull, "guided"), (np.inf, "unguided"))):
        for column, states in enumerate(estimates(planner, way, start, goal, pull)):
            axes = figure.add_subplot(2, len(SHOWN), row * len(SHOWN) + column + 1)
            draw_walls(axes, world)
            axes.plot(*states.T, ".-", color=PLAN, lw=1, ms=3)
            draw_ends(axes, start, goal)
            axes.set_xlim(-6, 58)
            axes.set_ylim(-6, 42)
            axes.set_title(f"{name}, step {SHOWN[column] + 1} of {Sampler().steps}", fontsize=11)
    return figure


def estimates(planner: XDiffuser, way: Any, start: Array, goal: Array, pull: float) -> list[Array]:
    """The estimated trajectory ``(T, 2)`` at some of the steps of one denoising."""
    sampler, generator = Sampler(pull=pull, samples=1), torch.Generator().manual_seed(0)
    found = []
    grid = planner.model.grid
    for step in SHOWN:
        # One long last step from there shows what the network thinks at that step.
        planner.model.grid = lambda steps, last=step: (*grid(steps)[: last + 1], 1.0)  # type: ignore[method-assign]
        generator.manual_seed(0)
        found.append(planner.denoise(way, start, goal, generator, sampler, planner.pieces(way))[0])
    planner.model.grid = grid  # type: ignore[method-assign]
    return found


def failures(world: Any, planner: XDiffuser) -> Figure:
    """Where a puck ends up that follows the way itself, an unguided trajectory, and a plan."""
    titles = ("the way itself", "unguided", "guided")
    figure, axes = panels(3, world, titles)
    methods: tuple[Method, ...] = ("graph", "unguided", "xdiffuser")
    for one, method, title in zip(axes, methods, titles, strict=True):
        world.reset(seed=CRASH_SEED)
        start = robot_state(world)
        driver = PlanDriver(planner, method, world, CRASH_SEED, Sampler())
        row = run_episode(world, driver, CRASH_SEED)
        one.plot(*np.array(row.path).T, color=PLAN, lw=1.8)
        draw_ends(one, start, world.goal)
        if world.failed:
            one.plot(*world.pose, "x", color="black", ms=10, mew=3, zorder=6)
        one.set_title(f"{title}: {'arrives' if row.success else 'crashes' if world.failed else 'is late'}", fontsize=11)
    return figure


CRASH_SEED = SEED + 2  # the way itself leads to a crash there


def main(out: Path = HERE) -> None:
    """Draw everything.

    Args:
        out: Directory to write the figures to.
    """
    prepare_folder(out)
    torch.set_num_threads(1)
    planner, world = load(shipped(ENV), ENV), make(ENV, {})
    world.reset(seed=SEED)
    for name, draw in (("graph", graph_and_plan), ("denoising", denoising), ("failures", failures)):
        write(draw(world, planner), out / f"planning_{name}.png")


if __name__ == "__main__":
    run(main)
