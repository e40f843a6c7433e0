"""Random rooms: where the obstacles, the start and the goal are, and how far it is around the obstacles."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import mujoco
import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra

HALF_SIZE = 5.0  # m, the room is a square of 10 m
WALL_HEIGHT = 2.0  # m
CELL = 0.1  # m, resolution of the true map

Array = np.ndarray


@dataclass(frozen=True)
class Obstacle:
    """A box (half sizes ``half``, rotated by ``yaw``) or a cylinder (radius ``half[0]``), SI units, world frame."""

    kind: str
    x: float
    y: float
    half: tuple[float, float]
    yaw: float

    def distance(self, points: Array) -> Array:
        """Signed distance in metres from ``(..., 2)`` world points; negative inside."""
        offset = points - np.array([self.x, self.y])
        if self.kind == "cylinder":
            return np.linalg.norm(offset, axis=-1) - self.half[0]
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        local = np.stack([cos * offset[..., 0] + sin * offset[..., 1], cos * offset[..., 1] - sin * offset[..., 0]], -1)
        excess = np.abs(local) - np.array(self.half)
        return np.linalg.norm(np.maximum(excess, 0), axis=-1) + np.minimum(excess.max(-1), 0)


@dataclass(frozen=True)
class Room:
    """A room with a task: drive from ``start`` (x, y, yaw) to ``goal`` (x, y, z)."""

    obstacles: tuple[Obstacle, ...]
    start: tuple[float, float, float]
    goal: tuple[float, float, float]

    def clearance(self, points: Array) -> Array:
        """Distance in metres from ``(..., 2)`` world points to the nearest obstacle or wall."""
        walls = HALF_SIZE - np.abs(points).max(-1)
        return np.minimum(walls, np.min([obstacle.distance(points) for obstacle in self.obstacles], axis=0))

    def in_sight(self, start: Array, goal: Array) -> bool:
        """Whether the straight line between two ``(2,)`` points is free."""
        steps = max(2, int(np.linalg.norm(goal - start) / 0.05))
        return bool((self.clearance(np.linspace(start, goal, steps)) > 0).all())

    @cached_property
    def map(self) -> Map:
        """The true map, built on first use."""
        return Map(self)

    def add_to(self, spec: mujoco.MjSpec) -> None:
        """Add floor, walls and obstacles to a scene; all of them are in geom group 0."""
        world = spec.worldbody
        world.add_light(pos=[0, 0, 6], dir=[0, 0, -1], type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, castshadow=False)
        world.add_geom(name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0, 0, 0.1], rgba=[0.82, 0.84, 0.86, 1])
        for index, (x, y) in enumerate(((1, 0), (-1, 0), (0, 1), (0, -1))):
            size = [0.1 if x else HALF_SIZE + 0.2, 0.1 if y else HALF_SIZE + 0.2, WALL_HEIGHT / 2]
            position = [x * (HALF_SIZE + 0.1), y * (HALF_SIZE + 0.1), WALL_HEIGHT / 2]
            world.add_geom(
                name=f"wall{index}",
                type=mujoco.mjtGeom.mjGEOM_BOX,
                size=size,
                pos=position,
                rgba=[0.6, 0.65, 0.7, 0.35],
            )
        for index, item in enumerate(self.obstacles):
            box = item.kind == "box"
            world.add_geom(
                name=f"obstacle{index}",
                type=mujoco.mjtGeom.mjGEOM_BOX if box else mujoco.mjtGeom.mjGEOM_CYLINDER,
                size=[*item.half, WALL_HEIGHT / 2] if box else [item.half[0], WALL_HEIGHT / 2, 0],
                pos=[item.x, item.y, WALL_HEIGHT / 2],
                quat=[np.cos(item.yaw / 2), 0, 0, np.sin(item.yaw / 2)],
                rgba=[0.25, 0.45, 0.6, 1] if box else [0.75, 0.45, 0.25, 1],
            )


class Map:
    """Clearance of a room on a grid and best routes that keep a distance from obstacles.

    Routes come from scipy's Dijkstra over the 8-connected grid, run once per goal: what A* would find from every start.
    Cells nearer than ``INFLATION`` to an obstacle are closed; for a comfortable route cells nearer than ``COMFORT``
    cost up to three times as much, so that it keeps to the middle of passages.
    """

    INFLATION = 0.5  # m
    COMFORT = 0.9  # m

    def __init__(self, room: Room) -> None:
        axis = np.arange(-HALF_SIZE + CELL / 2, HALF_SIZE, CELL)
        self.size = len(axis)
        self.points = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
        self.clearance = room.clearance(self.points)
        narrow = np.clip((self.COMFORT - self.clearance) / (self.COMFORT - self.INFLATION), 0, 1)
        self._graphs = {comfortable: self._graph(1 + 2 * comfortable * narrow) for comfortable in (True, False)}

    def _graph(self, price: Array) -> csr_matrix:
        free = self.clearance > self.INFLATION
        index = np.arange(self.size**2).reshape(self.size, self.size)
        rows, columns, costs = [], [], []
        for step in ((0, 1), (1, 0), (1, 1), (1, -1)):
            here = (slice(0, self.size - step[0]), slice(max(0, -step[1]), self.size - max(0, step[1])))
            there = (slice(step[0], self.size), slice(max(0, step[1]), self.size + min(0, step[1])))
            open_pair = free[here] & free[there]
            rows.append(index[here][open_pair])
            columns.append(index[there][open_pair])
            costs.append((np.hypot(*step) * CELL * (price[here] + price[there]) / 2)[open_pair])
        shape = (self.size**2, self.size**2)
        return csr_matrix((np.concatenate(costs), (np.concatenate(rows), np.concatenate(columns))), shape=shape)

    def cell(self, point: Array) -> int:
        """Index of the nearest open cell to a ``(2,)`` world point."""
        near = np.clip(((point + HALF_SIZE) / CELL).astype(int), 0, self.size - 1)
        if self.clearance[near[0], near[1]] > self.INFLATION:
            return int(near[0] * self.size + near[1])
        distance = np.linalg.norm(self.points - point, axis=-1)
        return int(np.where(self.clearance > self.INFLATION, distance, np.inf).argmin())

    def clear(self, start: Array, end: Array) -> bool:
        """Whether the straight line between two ``(2,)`` points keeps the inflation distance, up to one cell."""
        line = np.linspace(start, end, max(2, int(np.linalg.norm(end - start) / CELL)))
        cells = np.clip(((line + HALF_SIZE) / CELL).astype(int), 0, self.size - 1)
        return bool((self.clearance[cells[:, 0], cells[:, 1]] > self.INFLATION - CELL).all())

    def routes(self, goal: Array, comfortable: bool = True) -> Routes:
        """Best routes from everywhere to a ``(2,)`` goal: comfortable ones, or the shortest."""
        graph = self._graphs[comfortable]
        cost, next_cell = dijkstra(graph, directed=False, indices=self.cell(goal), return_predecessors=True)
        return Routes(self, np.asarray(goal, float), cost, next_cell)


class Routes:
    """Best routes of a map to one goal."""

    def __init__(self, room_map: Map, goal: Array, cost: Array, next_cell: Array) -> None:
        self._map, self._goal, self._cost, self._next = room_map, goal, cost, next_cell

    def reachable(self, point: Array) -> bool:
        """Whether the goal can be reached from a ``(2,)`` point."""
        return bool(np.isfinite(self._cost[self._map.cell(point)]))

    def nearest(self, points: Array) -> Array | None:
        """That of ``(N, 2)`` points with the cheapest route, None if the goal can be reached from none."""
        costs = [self._cost[self._map.cell(point)] for point in points]
        return points[int(np.argmin(costs))] if np.isfinite(min(costs, default=np.inf)) else None

    def path(self, point: Array) -> Array:
        """Waypoints ``(N, 2)`` from near ``point`` to the goal, one per cell, the goal itself last.

        Raises:
            ValueError: The goal cannot be reached from there.
        """
        if not self.reachable(point):
            raise ValueError(f"the goal {self._goal} cannot be reached from {point}")
        cells = [self._map.cell(point)]
        while self._next[cells[-1]] >= 0:
            cells.append(self._next[cells[-1]])
        return np.concatenate([self._map.points.reshape(-1, 2)[cells], self._goal[None]])

    def length(self, point: Array) -> float:
        """Length in metres of the route from ``point``, corners cut where the way is clear."""
        path = np.concatenate([np.asarray(point, float)[None], self.path(point)[1:]])
        corners = [0]
        while corners[-1] < len(path) - 1:
            ahead = range(len(path) - 1, corners[-1], -1)
            corners.append(
                next(i for i in ahead if i == corners[-1] + 1 or self._map.clear(path[corners[-1]], path[i]))
            )
        return float(np.linalg.norm(np.diff(path[corners], axis=0), axis=1).sum())


def _sample_obstacle(rng: np.random.Generator) -> Obstacle:
    kind = "box" if rng.random() < 0.5 else "cylinder"
    x, y = rng.uniform(-HALF_SIZE + 0.5, HALF_SIZE - 0.5, 2)
    half = rng.uniform(0.2, 0.6, 2) if kind == "box" else np.full(2, rng.uniform(0.2, 0.5))
    return Obstacle(kind, float(x), float(y), (float(half[0]), float(half[1])), float(rng.uniform(-np.pi, np.pi)))


def sample_point(room: Room, rng: np.random.Generator, clearance: float = 0.6) -> Array:
    """Draw a ``(2,)`` point that is at least ``clearance`` metres away from walls and obstacles."""
    while True:
        points = rng.uniform(-HALF_SIZE, HALF_SIZE, (64, 2))
        free = points[room.clearance(points) > clearance]
        if len(free):
            return free[0]


def sample_room(rng: np.random.Generator, goal_height: tuple[float, float] = (0.0, 0.0)) -> Room:
    """Draw a solvable room: 6 to 12 obstacles, start and goal 4 to 8 m apart, 60 % of them forced out of sight."""
    hidden = rng.random() < 0.6
    while True:
        obstacles = tuple(_sample_obstacle(rng) for _ in range(rng.integers(6, 13)))
        empty = Room(obstacles, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
        for _ in range(8):
            start, goal = sample_point(empty, rng), sample_point(empty, rng)
            if not 4 <= np.linalg.norm(goal - start) <= 8 or (hidden and empty.in_sight(start, goal)):
                continue
            if empty.map.routes(goal).reachable(start):
                yaw, height = rng.uniform(-np.pi, np.pi), rng.uniform(*goal_height)
                (x, y), (goal_x, goal_y) = start.tolist(), goal.tolist()
                return Room(obstacles, (x, y, float(yaw)), (goal_x, goal_y, float(height)))
