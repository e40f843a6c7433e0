"""A point robot of some radius that carries out plans in a maze, what they are worth to it, and the least it needs."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import KDTree

from envs.mazes import CELL, SPEED, Maze, slide
from policies.spec import Array

RADIUS = 0.7  # m, of the robot
AHEAD = 0.5  # m from a waypoint it turns to the next one
TOLERANCE, LIMIT = 1.0, 1000  # m from the goal, and steps, that count as success
GAIN = 5.0  # actions per m
GRID = 0.25  # m


class Driven(NamedTuple):
    """What came of plans.

    Args:
        steps: Until the robot was where the plan ends ``(P,)``, infinite if never.
        success: Whether it came near enough to the goal ``(P,)``.
    """

    steps: Array
    success: Array


def drive(maze: Maze, plans: Sequence[Array]) -> Driven:
    """Send a point robot along waypoints ``(M, 2)`` in m, from the first to the last, for `LIMIT` steps at most.

    It moves ``SPEED * clip(a, -1, 1)`` with ``a`` proportional to how far the next waypoint is, and slides along walls.
    """
    last = np.array([len(plan) - 1 for plan in plans], int)
    places = np.zeros((len(plans), last.max(initial=0) + 1, 2))
    for row, plan in zip(places, plans, strict=True):
        row[: len(plan)], row[len(plan) :] = plan, plan[-1]
    position, goal, leg = places[:, 0].copy(), places[:, -1], np.zeros(len(plans), int)
    steps, success = np.full(len(plans), inf), np.zeros(len(plans), bool)
    moving = np.arange(len(plans))
    for step in range(LIMIT + 1):
        off = np.linalg.norm(goal[moving] - position[moving], axis=-1)
        success[moving] |= off <= TOLERANCE
        steps[moving[off < 1e-3]] = step
        moving = moving[off >= 1e-3]
        if not len(moving) or step == LIMIT:
            break
        near = moving
        while len(near := near[leg[near] < last[near]]):
            near = near[np.linalg.norm(places[near, leg[near]] - position[near], axis=-1) < AHEAD]
            leg[near] += 1
        action = np.clip(GAIN * (places[moving, leg[moving]] - position[moving]), -1, 1)
        before = position[moving]
        position[moving] = slide(maze, before, SPEED * action, RADIUS)
        moving = moving[(position[moving] != before).any(-1)]  # who is stuck stays stuck
    return Driven(steps, success)


def valid(maze: Maze, points: Array, margin: float = 0.0) -> bool:
    """Whether a plan ``(M, 2)`` touches no wall; one that there is not is not valid."""
    return bool(len(points)) and bool(maze.segment_free(points[:-1], points[1:], margin).all())


def clearance(maze: Maze, points: Array) -> float:
    """How far in m a plan ``(M, 2)`` keeps off the walls, by the greater of both axes; 0 if it touches one."""
    low, high = 0.0, CELL
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if valid(maze, points, middle) else (low, middle)
    return low


def least_steps(maze: Maze, places: Array, others: Array) -> Array:
    """Steps ``(P, Q)`` that the robot needs at least between places ``(P, 2)`` and ``(Q, 2)``, on a fine grid.

    It is as fast along a diagonal as along both axes, so a step to any of the eight neighbours takes equally long.
    """
    size = np.array([maze.shape[1], maze.shape[0]])
    lines = [np.arange(-CELL / 2, CELL * count - CELL / 2 + GRID / 2, GRID) for count in size]
    points = np.stack(np.meshgrid(*lines, indexing="ij"), -1).reshape(-1, 2)
    index = np.arange(len(points)).reshape(len(lines[0]), len(lines[1]))
    pairs = [(index[1:], index[:-1]), (index[:, 1:], index[:, :-1])]
    pairs += [(index[1:, 1:], index[:-1, :-1]), (index[1:, :-1], index[:-1, 1:])]
    edges = np.concatenate([np.stack([one.ravel(), other.ravel()], -1) for one, other in pairs])
    free = maze.free(points, RADIUS)
    edges = edges[free[edges].all(1)]
    edges = edges[maze.segment_free(points[edges[:, 0]], points[edges[:, 1]], RADIUS)]
    matrix = coo_array((np.full(len(edges), GRID / SPEED), tuple(edges.T)), shape=(len(points),) * 2).tocsr()
    rows = np.flatnonzero(free)
    first, second = (rows[KDTree(points[rows]).query(found)[1]] for found in (places, others))
    return dijkstra(matrix, directed=False, indices=first)[:, second]
