"""The fastest way of one agent through a graph among moving ones, by safe intervals.

SIPP (Phillips and Likhachev, ICRA 2011) is as good as A* over nodes and steps but visits each node once per interval
between the steps at which one cannot stand there, instead of once per step. Agents go straight along edges at constant
speed and wait at nodes for whole steps, so that within a step all distances have a closed form.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from math import inf
from typing import NamedTuple, Protocol

import numpy as np
from scipy.spatial import KDTree

from policies.spec import Array

TOLERANCE = 1e-6  # m by which the safety distance may be missed; planners allow themselves half of it

Way = list[tuple[int, int]]  # nodes and the steps at which to be there; a node twice in a row is a wait


class Road(NamedTuple):
    """Where one agent may go.

    Args:
        states: Of the nodes ``(N, D)``.
        points: Positions ``(N, 2)`` of the nodes in metres.
        moves: By node the next ones and the steps to them.
        remaining: Steps to the goal ``(N,)``, infinite if there is no way.
        start: Node.
        goal: Node.
    """

    states: Array
    points: Array
    moves: list[list[tuple[int, int]]]
    remaining: Array
    start: int
    goal: int


class Ban(NamedTuple):
    """A place in metres and the moment, as a step and the share of it, at which an agent must not be near it."""

    place: tuple[float, float]
    step: int
    share: float


class Traffic(Protocol):
    """What an agent has to avoid. After the last step ``horizon - 1`` nothing changes any more."""

    horizon: int

    def hits(self, start: Array, end: Array) -> tuple[Array, Array]:
        """Which of moves from points ``(K, 2)`` to points ``(K, 2)`` are unsafe at which steps: ``(M,)`` of each."""

    def near(self, points: Array, reach: Array) -> Array:
        """Whether anything can ever matter within distances ``(K,)`` of points ``(K, 2)``."""


class Others:
    """Agents whose paths ``(T, 2)`` are decided."""

    def __init__(self, paths: Sequence[Array], distance: float) -> None:
        tracks, self.distance = together(paths), distance - TOLERANCE / 2
        self.horizon = tracks.shape[1] - 1
        self.before, self.after = tracks[:, :-1].reshape(-1, 2), tracks[:, 1:].reshape(-1, 2)
        self.margin = self.distance + np.linalg.norm(self.after - self.before, axis=-1).max(initial=0) / 2
        self.tree = KDTree((self.before + self.after) / 2)

    def hits(self, start: Array, end: Array) -> tuple[Array, Array]:
        middle = (start[0] + end[-1]) / 2
        reach = np.linalg.norm(end[-1] - middle) + max(self.margin, 0)
        found = np.array(self.tree.query_ball_point(middle, reach), int)
        least = closest(start[:, None] - self.before[found], end[:, None] - self.after[found])[1]
        move, which = np.nonzero(least < self.distance)
        return move, found[which] % self.horizon

    def near(self, points: Array, reach: Array) -> Array:
        return np.asarray(self.tree.query(points)[0] <= reach + self.margin)


class Bans:
    """Moments and places, see `Ban`."""

    def __init__(self, bans: Sequence[Ban], distance: float) -> None:
        self.radius = (distance - TOLERANCE / 2) / 2
        self.places = np.array([ban.place for ban in bans]).reshape(-1, 2)
        self.steps, self.shares = np.array([ban.step for ban in bans], int), np.array([ban.share for ban in bans])
        self.horizon = int(self.steps.max(initial=0)) + 2

    def hits(self, start: Array, end: Array) -> tuple[Array, Array]:
        there = start[:, None] + self.shares[:, None] * (end - start)[:, None]
        move, which = np.nonzero(np.linalg.norm(there - self.places, axis=-1) < self.radius)
        return move, self.steps[which]

    def near(self, points: Array, reach: Array) -> Array:
        away = np.linalg.norm(points[:, None] - self.places, axis=-1).min(1, initial=inf)
        return np.asarray(away <= reach + self.radius)


def fastest_way(road: Road, traffic: Traffic) -> Way | None:
    """The way that is at the goal for good at the earliest, None if there is none.

    Waiting is possible anywhere within an interval between steps at which one cannot stand at a node, so nothing is
    gained by being there later within the same one.
    """
    halts, moves = dict[int, Array](), dict[int, list[Move]]()
    near = traffic.near(road.points, np.zeros(len(road.points))).tolist()

    def blocked(node: int) -> Array:
        """Steps at which one cannot stand there."""
        if node not in halts:
            point = road.points[[node]]
            halts[node] = np.unique(traffic.hits(point, point)[1]) if near[node] else np.empty(0, int)
        return halts[node]

    queue: list[tuple[float, int, int, int, tuple[int, int] | None]] = [
        (road.remaining[road.start], 0, road.start, 0, None)
    ]
    seen: dict[tuple[int, int], tuple[int, int, tuple[int, int] | None]] = {}  # arrival, departure before it, whence
    while queue:
        _, minus, node, left, whence = heappop(queue)
        time, halt = -minus, blocked(node)
        key = node, int(np.searchsorted(halt, time))
        if key in seen:
            continue
        seen[key] = time, left, whence
        until = int(halt[key[1]]) if key[1] < len(halt) else None
        if node == road.goal and until is None:
            return _traced(key, seen)
        if node not in moves:
            moves[node] = _moves(road, traffic, node)
        for move in moves[node]:
            for leaving in _earliest(move, time, until, blocked(move.after), traffic.horizon):
                arrival = leaving + move.steps
                heappush(queue, (arrival + road.remaining[move.after], -arrival, move.after, leaving, key))
    return None


class Move(NamedTuple):
    """Along an edge: the node after it, its steps, at which steps ``(horizon,)`` it may begin, None for all."""

    after: int
    steps: int
    safe: Array | None


def _moves(road: Road, traffic: Traffic, node: int) -> list[Move]:
    """All from a node, see `Move`."""
    here, found = road.points[node], list[Move]()
    ways = road.points[[after for after, _ in road.moves[node]]].reshape(-1, 2) - here
    near = traffic.near(here + ways / 2, np.linalg.norm(ways, axis=-1) / 2)
    for (after, steps), way, matters in zip(road.moves[node], ways, near.tolist(), strict=True):
        safe = None
        if matters:
            places = here + np.arange(steps + 1)[:, None] / steps * way
            share, step = traffic.hits(places[:-1], places[1:])
            safe = np.ones(traffic.horizon, bool)
            safe[np.maximum(step - share, 0)[step >= share]] = False
            if len(ever := share[step == traffic.horizon - 1]):  # from then on nothing changes any more
                safe[max(traffic.horizon - 1 - int(ever.max()), 0) :] = False
        found.append(Move(after, steps, safe))
    return found


def _earliest(move: Move, time: int, until: int | None, blocked: Array, horizon: int) -> list[int]:
    """When to leave, from a time on, to be the first in each interval between blocked steps of the next node."""
    if move.safe is None and not len(blocked):
        return [time]
    times = np.arange(time, (max(time, horizon - 1) if until is None else until) + 1)
    if move.safe is not None:
        times = times[move.safe[np.minimum(times, horizon - 1)]]
    first = np.unique(np.searchsorted(blocked, times + move.steps), return_index=True)[1]
    return [int(leaving) for leaving in times[first]]


def _traced(last: tuple[int, int], seen: dict[tuple[int, int], tuple[int, int, tuple[int, int] | None]]) -> Way:
    """Follow what was before back from the last node."""
    way, key = Way(), last
    while True:
        time, left, whence = seen[key]
        way.append((key[0], time))
        if whence is None:
            return way[::-1]
        if left > seen[whence][0]:
            way.append((whence[0], left))
        key = whence


def together(paths: Sequence[Array]) -> Array:
    """Paths ``(A, T, 2)`` of equal length, at the end of which all agents stand for a step."""
    length = max(map(len, paths), default=1) + 1
    tracks = [np.concatenate([path, np.repeat(path[-1:], length - len(path), axis=0)]) for path in paths]
    return np.array(tracks, float).reshape(-1, length, 2)


def closest(before: Array, after: Array) -> tuple[Array, Array]:
    """When ``(...)`` in 0 to 1 something that goes straight between points ``(..., 2)`` is nearest the origin, and how
    near ``(...)``."""
    way = after - before
    share = np.clip(-(before * way).sum(-1) / np.maximum((way * way).sum(-1), 1e-300), 0, 1)
    return share, np.linalg.norm(before + share[..., None] * way, axis=-1)
