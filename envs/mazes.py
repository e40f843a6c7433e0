"""Planar mazes by seed, with thin walls, loops, dead ends and doors, and how a point robot has wandered through them.

Cells are squares of 4 m as in OGBench (arXiv 2410.20092), but walls stand between cells and are thin: a state and its
nearest neighbours are often in different corridors, which is what breaks graphs over dataset states. No simulator.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, shortest_path

from policies.spec import Array

CELL = 4.0  # m
SPEED = 0.2  # m per step and axis
NOISE = 0.5  # standard deviation of the actions of the stitch data, whose limits are -1 and 1
EPISODE = 201  # states
ROAM = 3  # cells that an episode may go from where it begins
SPREAD = 1.0  # m, how far off the middle of a cell an episode begins or turns
ARRIVED = 0.5  # m


@dataclass(frozen=True, eq=False)
class Maze:
    """Cells of a rectangle, the passages between them and the doors in some of the passages.

    Cell ``row * columns + column`` has its middle at ``(CELL * column, CELL * row)`` metres.

    Args:
        shape: Rows and columns.
        passages: Pairs of neighbouring cells ``(P, 2)`` without a wall between them, the lower cell first.
        doors: Those of the passages that can be shut, ``(D,)`` indices.
        shut: Those of the doors that are, ``(D,)``.
        thickness: Of the walls and the shut doors, metres.
        blocks: Cells that are filled by a wall, ``(B,)``.
    """

    shape: tuple[int, int]
    passages: Array
    doors: Array
    shut: Array
    thickness: float = 0.2
    blocks: Array = field(default_factory=lambda: np.empty(0, int))

    @classmethod
    def of_blocks(cls, filled: Array) -> Maze:
        """A maze as OGBench draws them: each cell ``(rows, columns)`` is a wall (true) or free, nothing is between."""
        blocks, pairs = np.flatnonzero(filled), _neighbours(filled.shape)
        passages = pairs[~np.isin(pairs, blocks).any(1)]
        return cls(filled.shape, passages, np.empty(0, int), np.empty(0, bool), 0.0, blocks)

    @property
    def free_cells(self) -> Array:
        """Cells ``(F,)`` that are not filled."""
        return np.setdiff1d(np.arange(self.cells), self.blocks)

    @property
    def cells(self) -> int:
        """How many there are."""
        return self.shape[0] * self.shape[1]

    def middle(self, cells: Array) -> Array:
        """Middles ``(..., 2)`` in metres of cells ``(...)``."""
        return CELL * np.stack([cells % self.shape[1], cells // self.shape[1]], -1)

    def cell(self, points: Array) -> Array:
        """Cells ``(...)`` that points ``(..., 2)`` are in, the nearest ones if they are outside."""
        column, row = np.moveaxis(np.rint(np.asarray(points) / CELL).astype(int), -1, 0)
        return np.clip(row, 0, self.shape[0] - 1) * self.shape[1] + np.clip(column, 0, self.shape[1] - 1)

    def with_doors(self, shut: Array | bool) -> Maze:
        """The same maze with these doors ``(D,)`` shut and the others open."""
        return replace(self, shut=np.broadcast_to(np.asarray(shut, bool), self.doors.shape))

    @cached_property
    def walls(self) -> Array:
        """Rectangles ``(W, 4)`` as lowest x and y, highest x and y in metres: outer walls, inner ones, shut doors."""
        neighbours = _neighbours(self.shape)
        open_pairs = np.delete(self.passages, self.doors[self.shut], axis=0)
        closed = neighbours[~np.isin(_code(neighbours, self.cells), _code(open_pairs, self.cells))]
        closed = closed[~np.isin(closed, self.blocks).any(1)]
        low, high, half = -CELL / 2, self.middle(np.array(self.cells - 1)) + CELL / 2, self.thickness / 2
        outer = [[low, low, high[0], low], [low, high[1], *high], [low, low, low, high[1]], [high[0], low, *high]]
        middles = self.middle(self.blocks)
        filled = np.concatenate([middles - CELL / 2, middles + CELL / 2], -1)
        return np.concatenate([outer + half * np.array([-1, -1, 1, 1]), self._between(closed), filled])

    @cached_property
    def panels(self) -> Array:
        """Rectangles ``(D, 4)`` that the doors fill when they are shut."""
        return self._between(self.passages[self.doors])

    def _between(self, pairs: Array) -> Array:
        first, second = self.middle(pairs[:, 0]), self.middle(pairs[:, 1])
        half = np.where(first == second, CELL, 0) / 2 + self.thickness / 2
        return np.concatenate([(first + second) / 2 - half, (first + second) / 2 + half], -1)

    def free(self, points: Array, margin: float = 0.0) -> Array:
        """Whether points ``(..., 2)`` are in the maze and in no wall ``(...)``; to touch a wall is not free."""
        return self.segment_free(points, points, margin)

    def segment_free(self, start: Array, end: Array, margin: float = 0.0) -> Array:
        """Whether straight lines between points ``(..., 2)`` stay in the maze and touch no wall ``(...)``.

        Args:
            start: Of the lines.
            end: Of the lines.
            margin: By how many metres the walls are thicker for this question, for example the radius of a robot.
        """
        low, high = -CELL / 2, self.middle(np.array(self.cells - 1)) + CELL / 2
        inside = ((start > low) & (start < high) & (end > low) & (end < high)).all(-1)
        return inside & ~touches(self.walls + margin * np.array([-1, -1, 1, 1]), start, end)

    @cached_property
    def _links(self) -> csr_array:
        pairs = np.delete(self.passages, self.doors[self.shut], axis=0)
        return csr_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(self.cells, self.cells))

    @cached_property
    def parts(self) -> Array:
        """By cell ``(cells,)`` the number of the part it is in; there is no way between parts."""
        return connected_components(self._links, directed=False)[1]

    @cached_property
    def routes(self) -> tuple[Array, Array]:
        """Least number of passages from each cell to each ``(cells, cells)``, infinite if there is no way, and the
        next cell on the way, negative if there is none."""
        distance, before = shortest_path(self._links, directed=False, unweighted=True, return_predecessors=True)
        return distance, before.T  # the cell before the goal, from the goal's side


def touches(rectangles: Array, start: Array, end: Array) -> Array:
    """Whether straight lines between points ``(..., 2)`` touch any of the rectangles ``(W, 4)``, see `Maze.walls`.

    Exact by separating axes: x, y and the normal of the line; unlike clipping this divides by nothing.
    """
    start, end = np.asarray(start, float)[..., None, :], np.asarray(end, float)[..., None, :]
    half, size = (end - start) / 2, (rectangles[:, 2:] - rectangles[:, :2]) / 2
    off = (start + end - rectangles[:, :2] - rectangles[:, 2:]) / 2
    beside = np.abs(half[..., 0] * off[..., 1] - half[..., 1] * off[..., 0])
    half = np.abs(half)
    near = (np.abs(off) <= half + size).all(-1)
    return (near & (beside <= half[..., 0] * size[:, 1] + half[..., 1] * size[:, 0])).any(-1)


def _neighbours(shape: tuple[int, int]) -> Array:
    """All pairs ``(P, 2)`` of cells side by side, the lower one first."""
    cell = np.arange(shape[0] * shape[1]).reshape(shape)
    beside = np.stack([cell[:, :-1].ravel(), cell[:, 1:].ravel()], -1)
    return np.concatenate([beside, np.stack([cell[:-1].ravel(), cell[1:].ravel()], -1)])


def _code(pairs: Array, cells: int) -> Array:
    return pairs[:, 0] * cells + pairs[:, 1]


def sample_maze(rng: np.random.Generator, shape: tuple[int, int] = (8, 8), loops: float = 0.15, doors: int = 4) -> Maze:
    """Draw a maze with all doors open.

    A random walk that never enters a cell twice, backing up where it is stuck, makes long corridors with dead ends;
    loops are opened in it afterwards. The first door is the only way between two large parts, which no loop joins.

    Args:
        rng: Decides everything.
        shape: Rows and columns.
        loops: Share of the walls that is opened again.
        doors: How many passages can be shut.
    """
    neighbours, tree = _neighbours(shape), _tree(rng, shape)
    gate, side = _gate(tree, shape[0] * shape[1])
    cells = len(side)
    extra = neighbours[~np.isin(_code(neighbours, cells), _code(tree, cells))]
    opened = rng.permutation(extra)[: round(loops * len(extra))]
    passages = np.concatenate([tree, opened[side[opened[:, 0]] == side[opened[:, 1]]]])
    others = rng.permutation(np.delete(np.arange(len(passages)), gate))[: doors - 1]
    return Maze(shape, passages, np.array([gate, *others]), np.zeros(doors, bool))


def _tree(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """Passages ``(cells - 1, 2)`` of a maze without loops."""
    cells, pairs = shape[0] * shape[1], _neighbours(shape)
    beside = [np.concatenate([pairs[pairs[:, 0] == cell, 1], pairs[pairs[:, 1] == cell, 0]]) for cell in range(cells)]
    trail, seen, tree = [int(rng.integers(cells))], np.zeros(cells, bool), []
    seen[trail[0]] = True
    while trail:
        fresh = beside[trail[-1]][~seen[beside[trail[-1]]]]
        if not len(fresh):
            trail.pop()
            continue
        cell = int(rng.choice(fresh))
        tree.append(sorted((trail[-1], cell)))
        trail.append(cell)
        seen[cell] = True
    return np.array(tree)


def _gate(tree: Array, cells: int) -> tuple[int, Array]:
    """The passage of a tree ``(P, 2)`` that splits it most evenly, and the side of each cell."""
    best, side = 0, np.zeros(cells, int)
    for gate in range(len(tree)):
        pairs = np.delete(tree, gate, axis=0)
        links = csr_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(cells, cells))
        found = connected_components(links, directed=False)[1]
        if abs(found.mean() - 0.5) < abs(side.mean() - 0.5):
            best, side = gate, found
    return best, side


def sample_points(maze: Maze, rng: np.random.Generator, count: int) -> Array:
    """Points ``(count, 2)`` in metres, uniform in the free space of a maze."""
    points = np.empty((0, 2))
    while len(points) < count:
        drawn = maze.middle(rng.integers(maze.cells, size=count)) + rng.uniform(-CELL / 2, CELL / 2, (count, 2))
        points = np.concatenate([points, drawn[maze.free(drawn)]])
    return points[:count]


def stitch_trajectories(maze: Maze, rng: np.random.Generator, episodes: int = 1000) -> Array:
    """How a point robot wanders, each time within a few cells, so that long ways have to be put together.

    It follows ``x += SPEED * clip(a, -1, 1)`` where ``a`` is the direction to the middle of the next cell with normal
    noise, walks to and fro between two places up to `ROAM` passages apart, and slides along walls. Speed, noise and
    length are those of OGBench's stitch data; the data are not the same.

    Returns:
        Positions ``(episodes, EPISODE, 2)`` in metres, float32.
    """
    distance, following = maze.routes
    home = rng.integers(maze.cells, size=episodes)
    draw = rng.random((episodes, maze.cells)) * ((distance[home] <= ROAM) & (distance[home] > 0))
    ends = np.stack([draw.argmax(1), home], 1)  # of a walled-in cell: itself twice
    ends[draw.max(1) == 0, 0] = home[draw.max(1) == 0]
    places = maze.middle(ends) + rng.uniform(-SPREAD, SPREAD, (episodes, 2, 2))
    position, leg, every = places[:, 1].copy(), np.zeros(episodes, int), np.arange(episodes)
    states = np.empty((episodes, EPISODE, 2), np.float32)
    for step in range(EPISODE):
        states[:, step] = position
        leg ^= np.linalg.norm(places[every, leg] - position, axis=-1) < ARRIVED
        here, there = maze.cell(position), ends[every, leg]
        towards = np.where((here == there)[:, None], places[every, leg], maze.middle(following[here, there]))
        way = towards - position
        action = way / np.maximum(np.linalg.norm(way, axis=-1, keepdims=True), 1e-9)
        action += rng.normal(0, NOISE, action.shape)
        position = slide(maze, position, SPEED * np.clip(action, -1, 1))
    return states


def slide(maze: Maze, position: Array, move: Array, margin: float = 0.0) -> Array:
    """Positions ``(B, 2)`` after moves ``(B, 2)``; where a wall is in the way, as much of the move as goes along it.

    Args:
        maze: With the walls.
        position: Before, free.
        move: Metres.
        margin: Radius in metres of what moves.
    """
    after = position + move
    inner = np.abs(after - maze.middle(maze.cell(position))).max(-1) < (CELL - maze.thickness) / 2 - margin
    near = np.flatnonzero(~inner)  # the others stay in their cell, where no wall is
    for share in ((1, 0), (0, 1), (0, 0)):
        near = near[~maze.segment_free(position[near], after[near], margin)]
        after[near] = position[near] + move[near] * share
    return after
