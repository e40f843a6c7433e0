"""Where a robot of some radius can be, by a grid of what is occupied, and what that leaves of a graph. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import distance_transform_edt

from planners.graph import StateGraph
from policies.spec import Array, ContractError


@dataclass(frozen=True, eq=False)
class OccupancyMap:
    """How far it is from every cell of a grid to what is occupied, for a robot that is round.

    Args:
        clearance: ``(rows, columns)`` in m, float32, to within half a cell; along y and x.
        resolution: Width of a cell in m.
        origin: Lowest x and y ``(2,)`` in m.
        radius: Of the robot in m.

    Raises:
        ContractError: There is no cell.
    """

    clearance: Array
    resolution: float
    origin: Array
    radius: float

    def __post_init__(self) -> None:
        if self.clearance.ndim != 2 or not self.clearance.size:
            raise ContractError(f"the map has shape {self.clearance.shape}; it needs (rows, columns), 1 or more")

    @classmethod
    def of(cls, occupied: Array, resolution: float, origin: Array, radius: float) -> OccupancyMap:
        """Measure a grid, ``(rows, columns)`` bool; what is outside counts as occupied."""
        edged = np.pad(np.asarray(occupied, bool), 1, constant_values=True)
        cells = distance_transform_edt(~edged)[1:-1, 1:-1]  # from middle to middle
        return cls((resolution * (cells - 0.5)).astype(np.float32), resolution, np.asarray(origin, float), radius)

    def at(self, points: Array) -> Array:
        """Distance in m ``(...)`` from points ``(..., 2)`` to what is occupied; negative in there and outside."""
        column, row = np.moveaxis(np.floor((np.asarray(points) - self.origin) / self.resolution), -1, 0)
        rows, columns = self.clearance.shape
        inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)  # false for what is not finite
        row, column = (np.where(inside, index, 0).astype(int) for index in (row, column))
        return np.where(inside, self.clearance[row, column], -np.inf)

    def free(self, start: Array, end: Array) -> Array:
        """Whether the robot can go straight ``(...)`` from points ``(..., 2)`` to points ``(..., 2)``."""
        start, end = np.broadcast_arrays(np.asarray(start, float), np.asarray(end, float))
        shape, start, end = start.shape[:-1], start.reshape(-1, 2), end.reshape(-1, 2)
        known = np.isfinite(start).all(-1) & np.isfinite(end).all(-1)
        start, end = (np.where(known[:, None], points, np.nan) for points in (start, end))  # infinity has no share
        lengths = np.where(known, np.linalg.norm(end - start, axis=-1), 0)
        count = np.ceil(2 * lengths / self.resolution).astype(int) + 1
        first = np.cumsum(count) - count
        line = np.repeat(np.arange(len(start)), count)
        share = (np.arange(len(line)) - first[line] + 1) / count[line]  # ends with 1: the start is the next line's
        points = start[line] + share[:, None] * (end - start)[line]
        least = np.minimum.reduceat(self.at(points), first) if len(first) else np.empty(0)
        return (np.minimum(least, self.at(start)) >= self.radius).reshape(shape)

    def leaving(self, position: Array) -> OccupancyMap:
        """The map for a robot that stands at a position ``(2,)``.

        One that has come too near to something may leave: within its radius it can be wherever that is no nearer.
        """
        gap = float(self.at(position))
        if gap >= self.radius or gap <= 0:
            return self
        rows, columns = self.clearance.shape
        x, y = (self.origin + self.resolution / 2)[:, None] + self.resolution * np.arange(max(rows, columns))
        near = np.hypot(x[None, :columns] - position[0], y[:rows, None] - position[1]) <= self.radius
        allowed = near & (self.clearance >= gap - self.resolution / 2)
        return replace(self, clearance=np.where(allowed, np.maximum(self.clearance, self.radius), self.clearance))

    def in_sight(self, position: Array, place: Array) -> bool:
        """Whether a robot at a position ``(2,)`` can be drawn straight to a place ``(2,)``.

        It may come as near to something as it is, or one cell nearer than it should.
        """
        radius = min(self.radius, float(self.at(position))) - self.resolution
        return bool(replace(self, radius=radius).free(position, place))

    def closed_in(self, graph: StateGraph) -> StateGraph:
        """A graph over positions without the nodes and edges that the robot cannot use."""
        places = graph.nodes[:, :2]
        nodes = self.at(places) < self.radius
        edges = ~self.free(places[graph.edges[:, 0]], places[graph.edges[:, 1]])
        return graph.close(nodes, edges)
