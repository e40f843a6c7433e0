"""Trajectories of robots that have wandered through mazes, from which graphs and trajectory models are made.

The recipes are those of OGBench's data (arXiv 2410.20092, pointmaze): *stitch* goes to a place four cells away and
stays there, so that long ways have to be put together; *explore* goes anywhere, by directions that change every ten
steps. All episodes are simulated at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.interpolate import CubicSpline

from envs.maze import ACCELERATION, RADIUS, SPEED, SPREAD, STEP
from envs.maze_nav import SCALE, MazeNavEnv, to_world
from envs.mazes import EPISODE, NOISE, Maze, slide
from envs.racing_line import racing_drive
from policies.spec import Array, ContractError

AWAY = 4  # passages between the places of an episode
HEADING = 10  # steps between two directions
EPISODES = 5000
STIFFNESS = 1.5  # rad/s, of the tracker of a puck
PUSH, PUSH_MEMORY = 0.1, 0.9  # m/s^2, disturbance that it has to live with, correlated over steps
PHYSICS = 5  # steps of the physics per step
CRUISE = 0.4  # m/s, of a base in a room
DRIVES = 200  # of a puck that are simulated at once


def point_stitch(maze: Maze, rng: np.random.Generator, episodes: int = EPISODES) -> list[Array]:
    """Positions ``(201, 2)`` in m per episode of the point of `envs.maze.MazeEnv`."""
    errand = Errand.sample(maze, rng, episodes, AWAY)
    return _point(maze, errand.start, lambda position, step: errand.next(position) - position, rng)


def point_explore(maze: Maze, rng: np.random.Generator, episodes: int = EPISODES) -> list[Array]:
    """Positions ``(201, 2)`` in m per episode of a point that goes anywhere."""
    start = _near(maze, rng, rng.choice(maze.free_cells, episodes))
    headings = rng.normal(size=(EPISODE // HEADING + 1, episodes, 2))
    return _point(maze, start, lambda position, step: headings[step // HEADING], rng)


def _point(maze: Maze, position: Array, way: Callable[[Array, int], Array], rng: np.random.Generator) -> list[Array]:
    states = np.empty((len(position), EPISODE, 2), np.float32)
    for step in range(EPISODE):
        states[:, step] = position
        towards = way(position, step)
        action = towards / np.maximum(np.linalg.norm(towards, axis=-1, keepdims=True), 1e-6)
        action += rng.normal(0, NOISE, action.shape)
        position = slide(maze, position, SPEED * STEP * np.clip(action, -1, 1), RADIUS)
    return list(states)


def puck_stitch(maze: Maze, rng: np.random.Generator, episodes: int = EPISODES) -> list[Array]:
    """Positions and velocities ``(T, 4)`` in m and m/s per episode of the puck of `envs.maze.PuckMazeEnv`.

    It drives quickly from anywhere to anywhere and has to live with disturbances; what it does is cut into episodes as
    short as those of the point. They end where it touches a wall.
    """
    found: list[Array] = []
    while len(found) < episodes:
        for states in _drives(maze, rng, DRIVES):
            touched = ~maze.segment_free(states[:-1, :2], states[1:, :2], RADIUS)
            whole = states[: touched.argmax() + 1] if touched.any() else states
            found += [whole[first : first + EPISODE] for first in range(0, len(whole) - 1, EPISODE)]
    return found[:episodes]


def _drives(maze: Maze, rng: np.random.Generator, count: int) -> list[Array]:
    """States ``(T, 4)`` of drives from anywhere to anywhere else."""
    start = _near(maze, rng, rng.choice(maze.free_cells, count))
    goal = _goals(maze, rng, maze.cell(start), None)
    curves = [racing_drive(maze, *ends, ACCELERATION, STEP) for ends in zip(start, goal, strict=True)]
    lengths = [round(curve.x[-1] / STEP) + 1 for curve in curves]
    moments = STEP * np.arange(max(lengths))
    wanted = np.stack([puck_reference(curve, moments) for curve in curves])
    position, velocity, push = start, np.zeros((count, 2)), np.zeros((count, 2))
    states = np.empty((count, len(moments), 4), np.float32)
    for step in range(len(moments)):
        states[:, step] = np.concatenate([position, velocity], 1)
        push = PUSH_MEMORY * push + np.sqrt(1 - PUSH_MEMORY**2) * rng.normal(0, PUSH, push.shape)
        force = puck_force(states[:, step], wanted[:, step]) + push
        force = np.clip(force, -ACCELERATION, ACCELERATION)
        for _ in range(PHYSICS):
            velocity = velocity + STEP / PHYSICS * force
            position = position + STEP / PHYSICS * velocity
    return [one[:length] for one, length in zip(states, lengths, strict=True)]


def puck_reference(curve: CubicSpline, moments: Array) -> Array:
    """Position, velocity and acceleration ``(T, 6)`` of a drive at times ``(T,)`` in s; it rests at its end."""
    inside = np.clip(moments, 0, curve.x[-1])
    moving = (moments <= curve.x[-1])[:, None]
    return np.concatenate([curve(inside), curve(inside, 1) * moving, curve(inside, 2) * moving], -1)


def puck_force(state: Array, wanted: Array) -> Array:
    """Accelerations ``(B, 2)`` in m/s^2 that keep pucks in states ``(B, 4)`` near references ``(B, 6)``."""
    off = wanted[..., :4] - state
    return wanted[..., 4:] + STIFFNESS**2 * off[..., :2] + 2 * STIFFNESS * off[..., 2:]


class Errand:
    """Where robots go, and by which cells.

    Args:
        maze: Through which.
        start: Where they begin ``(B, 2)``.
        goal: Where they go ``(B, 2)``.
    """

    def __init__(self, maze: Maze, start: Array, goal: Array) -> None:
        self._maze, self.start, self.goal = maze, start, goal
        self._there, self._following = maze.cell(goal), maze.routes[1]

    @classmethod
    def sample(cls, maze: Maze, rng: np.random.Generator, count: int, away: int) -> Errand:
        """Draw places, the goal ``away`` passages from the start; of a cell without such the cell itself."""
        home = rng.choice(maze.free_cells, count)
        return cls(maze, _near(maze, rng, home), _goals(maze, rng, home, away))

    def next(self, position: Array) -> Array:
        """The places ``(B, 2)`` to go to next from positions ``(B, 2)``: middles of the next cells, then the goals."""
        return self._place(self._step(self._maze.cell(position)))

    def _step(self, cell: Array) -> Array:
        return np.where(cell == self._there, cell, self._following[cell, self._there])

    def _place(self, cell: Array) -> Array:
        return np.where((cell == self._there)[:, None], self.goal, self._maze.middle(cell))


def _near(maze: Maze, rng: np.random.Generator, cells: Array) -> Array:
    return maze.middle(cells) + rng.uniform(-SPREAD, SPREAD, (len(cells), 2))


def _goals(maze: Maze, rng: np.random.Generator, home: Array, away: int | None) -> Array:
    """Places ``(B, 2)`` so many passages away from cells ``(B,)``, or anywhere else."""
    distance = maze.routes[0][home]
    draw = rng.random(distance.shape) * (np.isfinite(distance) & (distance > 0) if away is None else distance == away)
    return _near(maze, rng, np.where(draw.max(1) > 0, draw.argmax(1), home))


class Recording(NamedTuple):
    """What a robot has done in a place.

    Args:
        trajectories: States ``(T, D)``, position in m first, one per step.
        step_s: Seconds per step.
    """

    trajectories: list[Array]
    step_s: float


def wander(env: Any, kind: str, rng: np.random.Generator, episodes: int = EPISODES) -> Recording:
    """Let the robot of an environment wander through the maze that it is in.

    Args:
        env: `MazeEnv`, `PuckMazeEnv`, or `MazeNavEnv` after a reset, whose base goes like a point, without physics.
        kind: ``"stitch"`` or, of a point, ``"explore"``.
        rng: Decides everything.
        episodes: How many.

    Raises:
        ContractError: There is no such recipe for this environment.
    """
    known = {"stitch": puck_stitch} if "velocity" in getattr(env, "states", ()) else RECIPES
    if kind not in known or not isinstance(getattr(env, "maze", None), Maze):
        raise ContractError(f"there is no recipe '{kind}' for this environment; mazes have {sorted(known)}")
    trajectories = known[kind](env.maze, rng, episodes)
    if isinstance(env, MazeNavEnv):
        return Recording(
            [to_world(states).astype(np.float32) for states in trajectories], SPEED * STEP * SCALE / CRUISE
        )
    return Recording(trajectories, STEP)


RECIPES = {"stitch": point_stitch, "explore": point_explore}
