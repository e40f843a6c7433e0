"""kinoflow/MazeNav-v0: drive through a maze with doors to a goal far off, on MuJoCo physics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gymnasium
import mujoco
import numpy as np

from envs import mazes
from envs.mazes import Maze, sample_maze
from envs.nav import NavEnv
from envs.rooms import HALF_SIZE, WALL_HEIGHT, Obstacle, Room
from policies.spec import Array

SHAPE = (5, 5)  # rows and columns: with cells of 2 m the maze fills the room
CELL = 2 * HALF_SIZE / SHAPE[0]  # m
SCALE = CELL / mazes.CELL  # metres of the world per metre of a `Maze`, whose walls become 0.1 m thick
CENTRE = mazes.CELL * (np.array(SHAPE[::-1]) - 1) / 2  # of a `Maze`, in its metres
PASSAGES = 4  # between start and goal, at least
SPREAD = 0.35  # m, how far off the middle of a cell start and goal are: 0.6 m from every wall
# No route enters a cell twice, so that the longest of all has 24 passages of 2 m: 160 s at 0.3 m/s, and twice that.
TIME_LIMIT = 320.0  # s
DOOR_COLOUR = (0.75, 0.3, 0.25)


def to_world(points: Array) -> Array:
    """World metres of points ``(..., 2)`` in the metres of `MazeNavEnv.maze`."""
    return (np.asarray(points) - CENTRE) * SCALE


def to_maze(points: Array) -> Array:
    """Points ``(..., 2)`` of the world in the metres of `MazeNavEnv.maze`."""
    return np.asarray(points) / SCALE + CENTRE


class MazeNavEnv(NavEnv):
    """Reach a goal point in a maze without touching anything.

    Observations, actions, success, failure and reward are those of `NavEnv`; an episode is truncated after 320 s. The
    maze follows from the seed. It has 5 x 5 cells of 2 m, thin walls and four doors, all of them open after a reset.
    Start and goal are at least four passages apart.

    Attributes:
        maze: Walls and doors as they are now, in its own metres; see `to_world` and `to_maze`.
    """

    maze: Maze

    def _sample(self, options: Mapping[str, Any]) -> Room:
        rng = self.np_random
        self.maze = sample_maze(rng, SHAPE)
        cells = rng.choice(np.argwhere(self.maze.routes[0] >= PASSAGES))
        places = to_world(self.maze.middle(cells)) + rng.uniform(-SPREAD, SPREAD, (2, 2))
        (x, y), (goal_x, goal_y) = places.tolist()
        yaw, height = rng.uniform(-np.pi, np.pi), rng.uniform(0.6, 1.6) if self._flies else 0.0
        self._unshut = Room(_obstacles(self.maze.walls), (x, y, yaw), (goal_x, goal_y, height))
        return self._unshut

    def _furnish(self, spec: mujoco.MjSpec) -> None:
        super()._furnish(spec)
        for index, door in enumerate(_obstacles(self.maze.panels)):
            spec.worldbody.add_geom(
                name=f"door{index}",
                type=mujoco.mjtGeom.mjGEOM_BOX,
                size=[*door.half, WALL_HEIGHT / 2],
                pos=[door.x, door.y, WALL_HEIGHT / 2],
                rgba=[*DOOR_COLOUR, 1],
            )

    def _build(self) -> None:
        super()._build()
        for index in range(len(self.maze.doors)):
            self._fill_door(index, shut=False)

    def _fill_door(self, index: int, shut: bool) -> None:
        # The geom stays where it was when the model was compiled and has to be solid then: MuJoCo builds its search
        # trees only once, of solid geoms only. Rays and pictures leave out what is wholly transparent.
        geom = self.model.geom(f"door{index}")
        geom.contype[:] = geom.conaffinity[:] = geom.rgba[3] = float(shut)

    def segment_free(self, start: Array, end: Array, margin: float = 0.0) -> Array:
        """Whether straight lines stay in the maze and away from walls and shut doors ``(...)``.

        Args:
            start: ``(..., 2)`` in metres, world frame.
            end: As the start.
            margin: By how many metres walls and doors grow on every side. They stay rectangles, so that a line past a
                corner keeps up to 1.4 times as much.
        """
        return self.maze.segment_free(to_maze(start), to_maze(end), margin / SCALE)

    def open_door(self, index: int) -> None:
        """Open one of ``maze.doors``, now and until the next reset.

        Raises:
            ValueError: There is no such door.
        """
        self._set_door(index, shut=False)

    def shut_door(self, index: int) -> None:
        """Shut one of ``maze.doors``: from now on it is a wall to the physics, the scans and the map of the room.

        Raises:
            ValueError: There is no such door, or the robot stands in it.
        """
        self._set_door(index, shut=True)

    def _set_door(self, index: int, shut: bool) -> None:
        doors = _obstacles(self.maze.panels)
        if not 0 <= index < len(doors):
            raise ValueError(f"there is no door {index}; choose one from 0 to {len(doors) - 1}")
        radius = self.body.radius
        if shut and (gap := float(doors[index].distance(self.pose[:2]))) < radius:
            raise ValueError(f"door {index} cannot shut, the robot stands in it; drive {radius - gap:.2f} m on first")
        self._fill_door(index, shut)
        self.maze = self.maze.with_doors(np.where(np.arange(len(doors)) == index, shut, self.maze.shut))
        self.room = replace(self.room, obstacles=_obstacles(self.maze.walls))

    @property
    def shortest(self) -> float:
        """Length in metres of the shortest route from the start to the goal with all doors open, as at the reset."""
        routes = self._unshut.map.routes(self.goal[:2], comfortable=False)
        return routes.length(np.array(self._unshut.start[:2]))

    def step(self, action: Array) -> tuple[dict[str, Array], float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, self.time >= TIME_LIMIT - 1e-9, info


def _obstacles(rectangles: Array) -> tuple[Obstacle, ...]:
    """Boxes in the world for rectangles ``(W, 4)`` of a `Maze`."""
    low, high = to_world(rectangles[:, :2]), to_world(rectangles[:, 2:])
    boxes = np.concatenate([(low + high) / 2, (high - low) / 2], -1).tolist()
    return tuple(Obstacle("box", x, y, (half_x, half_y), 0.0) for x, y, half_x, half_y in boxes)


gymnasium.register("kinoflow/MazeNav-v0", entry_point="envs.maze_nav:MazeNavEnv")
