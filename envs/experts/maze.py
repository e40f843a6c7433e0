"""Demonstrators and baseline for the mazes of `envs.maze`: they see the map."""

from __future__ import annotations

import numpy as np

from envs.maze import ACCELERATION, SPEED, STEP, MazeEnv, PuckMazeEnv
from envs.maze_data import Errand, puck_force, puck_reference
from policies.spec import Array


class Expert:
    """Goes from cell to cell by the fewest passages; a puck takes a line with wide curves."""

    def __init__(self, env: MazeEnv) -> None:
        self._env = env
        self._errand = Errand(env.maze, env.pose[None], env.goal[None])
        self._drive = env.drive if isinstance(env, PuckMazeEnv) else None

    def command(self) -> Array:
        """Return the ``(2,)`` float32 command for the current state."""
        state = self._env.state
        if self._drive is None:
            return _clipped((self._errand.next(state[None])[0] - state) / STEP, SPEED)
        wanted = puck_reference(self._drive, np.array([self._env.time]))[0]
        return _clipped(puck_force(state, wanted), ACCELERATION)


def _clipped(command: Array, limit: float) -> Array:
    return np.clip(command, -limit, limit).astype(np.float32)


class StraightLine:
    """Baseline: heads straight for the goal, blind to walls."""

    def __init__(self, env: MazeEnv) -> None:
        self._env = env

    def command(self) -> Array:
        """Return the ``(2,)`` float32 command for the current state."""
        env = self._env
        way = env.goal - env.pose
        limit = float(env.action.high[0])
        return (limit * way / max(float(np.linalg.norm(way)), 1e-6)).astype(np.float32)


DRIVERS = {"expert": Expert, "straight line": StraightLine}
