"""How a puck with inertia gets through a maze quickly: a line with wide curves, and the speeds that it allows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.interpolate import CubicSpline

from envs.mazes import CELL, Maze
from policies.spec import Array

MARGIN = 0.95  # m between the middle of a puck with a radius of 0.7 m and walls
SIDEWAYS, AHEAD, TOP = 0.9, 0.8, 2.2  # shares of the largest acceleration in curves and along the line, m/s
KNOTS = 3  # steps between those of the curve that smooths accelerations
SPACING = 0.5  # m between points of a line
PENALTY, ROUNDS = 0.02, 300  # of the alternating directions, per squared bend; after so many a line no longer changes


def racing_line(maze: Maze, start: Array, cells: Sequence[int], goal: Array, margin: float) -> Array:
    """A line ``(M, 2)`` from a start to a goal through cells whose curves are as wide as there is room for.

    Least squared change of direction within a box per point, by the alternating direction method of multipliers.

    Args:
        maze: With the walls.
        start: In the first cell, metres.
        cells: From the first to the last, each beside the one before.
        goal: In the last cell, metres.
        margin: Distance in m from walls.
    """
    corners = np.concatenate([[start], maze.middle(np.array(cells[1:-1], int)), [goal]])
    lengths = np.r_[0.0, np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=-1))]
    count = max(4, int(lengths[-1] / SPACING) + 1)
    places = np.linspace(0, lengths[-1], count)
    line = np.stack([np.interp(places, lengths, corners[:, axis]) for axis in (0, 1)], -1)
    low, high = _boxes(maze, maze.cell(line), margin)
    low[[0, -1]] = high[[0, -1]] = line[[0, -1]]
    bend = np.diff(np.eye(count), 2, axis=0)
    smooth = np.linalg.inv(bend.T @ bend + PENALTY * np.eye(count)) * PENALTY
    inside, debt = line, np.zeros_like(line)
    for _ in range(ROUNDS):
        line = smooth @ (inside - debt)
        inside = np.clip(line + debt, low, high)
        debt += line - inside
    return np.concatenate([[start], line[1:-1], [goal]])


def racing_drive(maze: Maze, start: Array, goal: Array, acceleration: float, step_s: float) -> CubicSpline:
    """Positions (2,) in m over time in s of a quick drive from rest at a start to a goal; its last knot is the end.

    Args:
        maze: With the walls.
        start: Free, ``(2,)`` in m.
        goal: Where one can get to from there.
        acceleration: Largest one per axis, m/s^2.
        step_s: Seconds per step.
    """
    cells, last = [int(maze.cell(start))], int(maze.cell(goal))
    while cells[-1] != last:
        cells.append(int(maze.routes[1][cells[-1], last]))
    line = racing_line(maze, start, cells, goal, MARGIN)
    places = timed(line, SIDEWAYS * acceleration, AHEAD * acceleration, TOP, step_s)
    knots = np.unique(np.r_[0 : len(places) : KNOTS, len(places) - 1])
    return CubicSpline(knots * step_s, places[knots], bc_type="clamped")


def _boxes(maze: Maze, cell: Array, margin: float) -> tuple[Array, Array]:
    """Lowest and highest places ``(M, 2)`` of points in cells ``(M,)`` that a robot visits in this order."""
    middle, part = maze.middle(cell), np.r_[0, np.cumsum(np.diff(cell) != 0)]
    low, high = (middle + sign * _room(maze, cell, sign, margin) for sign in (-1, 1))
    own_low, own_high = low.copy(), high.copy()
    for index in range(len(cell)):
        # Half of a cell is still bound by the walls beside the cell before, half already by those of the next one:
        # between the two is the corner that a turn goes around.
        first, last = np.searchsorted(part, part[index]), np.searchsorted(part, part[index], "right") - 1
        other = first - 1 if index - first < last - index else last + 1
        if 0 <= other < len(cell):
            across = np.flatnonzero(middle[other] == middle[index])
            low[index, across] = np.maximum(low[index, across], own_low[other, across])
            high[index, across] = np.minimum(high[index, across], own_high[other, across])
    return low, high


def _room(maze: Maze, cell: Array, sign: int, margin: float) -> Array:
    """How far ``(M, 2)`` one can go from the middle of cells along an axis: less where a wall is."""
    room = np.full((len(cell), 2), CELL / 2)
    for axis in (0, 1):
        step = sign * CELL * np.eye(2)[axis]
        shut = ~maze.segment_free(maze.middle(cell), maze.middle(cell) + step)
        room[shut, axis] -= margin + maze.thickness / 2
    return room


def timed(line: Array, sideways: float, ahead: float, top: float, step_s: float) -> Array:
    """Positions ``(T, 2)`` at every step of a drive from rest along a line ``(M, 2)`` within limits of acceleration.

    Args:
        line: In metres.
        sideways: Limit in m/s^2 in curves.
        ahead: Limit in m/s^2 along the line.
        top: Largest speed in m/s.
        step_s: Seconds per step.
    """
    step = np.linalg.norm(np.diff(line, axis=0), axis=-1)
    turn = np.diff(np.unwrap(np.arctan2(*np.diff(line, axis=0).T[::-1])))
    bend = np.abs(turn) / np.maximum((step[1:] + step[:-1]) / 2, 1e-3)
    speed = np.minimum(top, np.sqrt(sideways / np.maximum(np.r_[bend[:1], bend, bend[-1:]], 1e-6)))
    speed[0] = 0
    for index in range(1, len(line)):
        speed[index] = min(speed[index], np.sqrt(speed[index - 1] ** 2 + 2 * ahead * step[index - 1]))
    for index in range(len(line) - 2, -1, -1):
        speed[index] = min(speed[index], np.sqrt(speed[index + 1] ** 2 + 2 * ahead * step[index]))
    moments = np.r_[0.0, np.cumsum(2 * step / np.maximum(speed[1:] + speed[:-1], 0.05))]
    ticks = np.arange(0, moments[-1] + step_s, step_s)
    return np.stack([np.interp(ticks, moments, line[:, axis]) for axis in (0, 1)], -1)
