"""Pictures of mazes, graphs, ways and plans."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from planners.graph import StateGraph
from planners.xdiffuser import Planned, XDiffuser
from policies.files import replace_file
from policies.spec import Array

WALL, EDGE, WAY, PLAN = "0.75", "#9bb8d3", "#333333", "#d1495b"


def draw_plan(world: Any, planner: XDiffuser, planned: Planned, start: Array, goal: Array, out: Path) -> None:
    """Draw a maze, the graph, the way through it and the plan, and write the picture."""
    figure = Figure(figsize=(9, 7), layout="constrained")
    axes = figure.add_subplot()
    draw_walls(axes, world)
    draw_graph(axes, planner.graph)
    axes.plot(*planned.way.states[:, :2].T, color=WAY, lw=1.2, ls="--", label="way through the graph")
    axes.plot(*planned.route.states[:, :2].T, ".-", color=PLAN, lw=1.6, ms=4, label=f"plan ({planned.origin})")
    draw_ends(axes, start, goal)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.07), ncols=2, frameon=False)
    write(figure, out)


def draw_walls(axes: Axes, world: Any) -> None:
    """Fill the walls of a maze."""
    for low_x, low_y, high_x, high_y in walls(world):
        xs, ys = [low_x, high_x, high_x, low_x], [low_y, low_y, high_y, high_y]
        axes.fill(xs, ys, color=WALL, ec=WALL, lw=1, zorder=0)
    axes.set_aspect("equal")
    axes.set_axis_off()


def walls(world: Any) -> Array:
    """Rectangles ``(W, 4)`` in m of the walls, lowest x and y before highest ones."""
    if not hasattr(world, "room"):
        return world.maze.walls
    boxes = [
        (box.x - box.half[0], box.y - box.half[1], box.x + box.half[0], box.y + box.half[1])
        for box in world.room.obstacles
    ]
    return np.array(boxes)


def draw_graph(axes: Axes, graph: StateGraph) -> None:
    """Draw the edges of a graph that are open."""
    lines = graph.nodes[graph.edges[~graph.closed_edges]][..., :2]
    gaps = np.full((len(lines), 1, 2), np.nan)  # one line with gaps is drawn much faster than many
    axes.plot(*np.concatenate([lines, gaps], 1).reshape(-1, 2).T, color=EDGE, lw=0.4, zorder=1)


def draw_ends(axes: Axes, start: Array, goal: Array) -> None:
    """Mark start and goal."""
    axes.plot(*start[:2], "o", color="#2e7d32", ms=8, zorder=5)
    axes.plot(*goal[:2], "*", color="#f2a900", ms=14, zorder=5)


def write(figure: Figure, out: Path) -> None:
    """Write a figure in one step."""
    content = io.BytesIO()
    figure.savefig(content, format=out.suffix.lstrip(".") or "png", dpi=110)
    replace_file(out, content.getvalue())
