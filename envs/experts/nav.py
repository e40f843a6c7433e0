"""Demonstrator and baseline for kinoflow/Nav-v0."""

from __future__ import annotations

import numpy as np

from envs.nav import NavEnv
from envs.rooms import Routes
from policies.spec import Array

LOOK_AHEAD = 0.9  # m
CRUISE = 0.55  # m/s
BRAKE = 0.9  # 1/s, speed per metre of remaining distance
ARRIVED = 0.08  # m
TURN_GAIN = 1.8  # 1/s
ACCELERATION = np.array([1.0, 1.0, 2.0])  # m/s^2, m/s^2, rad/s^2


class StraightLine:
    """Baseline: drives straight at the goal while turning towards it, blind to obstacles."""

    def __init__(self, env: NavEnv) -> None:
        self._env = env
        self._last = np.zeros(env.body.action.dim)

    def command(self) -> Array:
        """Return the ``(A,)`` float32 command for the current state."""
        env = self._env
        x, y, z, yaw = env.pose
        target = _velocity(env, self._aim(np.array([x, y])), np.array([x, y]), yaw)
        limit = ACCELERATION * env.step_dt
        planar = self._last[[0, 1, -1]]
        command = planar + np.clip(target - planar, -limit, limit)
        if "vz" in env.body.action.names:
            command = np.insert(command, 2, np.clip(env.goal[2] - z, -0.3, 0.3))
        self._last = np.asarray(env.body.action.clip(command), float)
        return self._last.astype(np.float32)

    def _aim(self, position: Array) -> Array:
        """The ``(2,)`` world point to drive at."""
        return self._env.goal[:2]


def _velocity(env: NavEnv, aim: Array, position: Array, yaw: float) -> Array:
    """Planar command (vx, vy, wz) towards a point; brakes for the goal and keeps its direction within the limits."""
    remaining = float(np.linalg.norm(env.goal[:2] - position))
    if remaining < ARRIVED:
        return np.zeros(3)
    offset = aim - position
    bearing = (np.arctan2(offset[1], offset[0]) - yaw + np.pi) % (2 * np.pi) - np.pi
    velocity = np.array([np.cos(bearing), np.sin(bearing)]) * min(CRUISE, BRAKE * remaining)
    low, high = env.body.action.low, env.body.action.high
    for axis in (0, 1):
        bound = high[axis] if velocity[axis] > 0 else -low[axis]
        velocity *= min(1.0, bound / max(abs(velocity[axis]), 1e-9))
    turn = TURN_GAIN * bearing * float(remaining > 0.4)
    return np.array([*velocity, np.clip(turn, low[-1], high[-1])])


class NavExpert(StraightLine):
    """Demonstrator: drives at a look-ahead point on the shortest route over the true map."""

    def __init__(self, env: NavEnv) -> None:
        super().__init__(env)
        self._goal = np.full(3, np.nan)
        self._routes: Routes | None = None

    def _aim(self, position: Array) -> Array:
        if self._routes is None or not np.array_equal(self._goal, self._env.goal):
            self._goal = self._env.goal.copy()
            self._routes = self._env.room.map.routes(self._goal[:2])
        return self._look_ahead(self._routes.path(position), position)

    def _look_ahead(self, path: Array, position: Array) -> Array:
        """Farthest waypoint within reach that is in sight along a comfortably free line."""
        near = path[np.linalg.norm(path - position, axis=1) < LOOK_AHEAD]
        for waypoint in near[::-1][:: max(1, len(near) // 6)]:
            line = np.linspace(position, waypoint, 8)
            if self._env.room.clearance(line).min() > self._env.room.map.INFLATION - 0.02:
                return waypoint
        return path[min(1, len(path) - 1)]


DRIVERS = {"expert": NavExpert, "straight line": StraightLine}
