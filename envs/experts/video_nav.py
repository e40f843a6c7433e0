"""Demonstrator and baselines for kinoflow/VideoNav-v0."""

from __future__ import annotations

import numpy as np

from envs.experts.nav import StraightLine
from envs.video_nav import VideoNavEnv
from envs.video_rooms import STEP
from policies.spec import Array

LOOK_AHEAD = 0.6  # m
CRUISE = 0.5  # m/s


class PathExpert(StraightLine):
    """Demonstrator: drives at a point ahead on the path of the video and brakes for where the instruction says."""

    def __init__(self, env: VideoNavEnv) -> None:
        super().__init__(env)
        line = env.path[:, :2]
        self._line = line[: 1 + int(np.linalg.norm(line - env.goal[:2], axis=1).argmin())]
        self._nearest = 0

    def _aim(self, position: Array) -> Array:
        # never back, and never on to a stretch of the path that only comes near later
        ahead = self._line[self._nearest : self._nearest + int(1 / STEP)]
        self._nearest += int(np.linalg.norm(ahead - position, axis=1).argmin())
        return self._line[min(self._nearest + int(LOOK_AHEAD / STEP), len(self._line) - 1)]


class Replay:
    """Baseline: repeats the motion of the video from its nominal start, blind to where it is and what it is told."""

    def __init__(self, env: VideoNavEnv) -> None:
        self._env = env
        self._path = env.path

    def command(self) -> Array:
        """Return the ``(A,)`` float32 command for the current time."""
        env, path = self._env, self._path
        along = np.array([env.time, env.time + env.step_dt]) * CRUISE / STEP
        (x, there_x), (y, there_y), (yaw, there_yaw) = (np.interp(along, np.arange(len(path)), axis) for axis in path.T)
        cos, sin = np.cos(yaw), np.sin(yaw)
        way = np.array([[cos, sin], [-sin, cos]]) @ (there_x - x, there_y - y)
        command = np.zeros(env.body.action.dim)
        command[[0, 1, -1]] = np.array([*way, there_yaw - yaw]) / env.step_dt
        return env.body.action.clip(command).astype(np.float32)


DRIVERS = {"expert": PathExpert, "straight line": StraightLine, "replay": Replay}
