"""Where a robot shall drive in one run, and what came of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from envs.nav import NavEnv
from envs.rooms import sample_point
from policies.spec import Array

NEAREST, FARTHEST = 3.0, 6.0  # m, from one goal to the next
HOLD_S = 1.0  # the robot rests at a goal this long before the next one
TRACE_S = 0.1  # between two points of the path


def draw_goals(env: NavEnv, count: int, seed: int) -> list[Array]:
    """Return the room's own goal and further ones, each reachable and 3 to 6 m from the one before.

    Args:
        env: Freshly reset environment.
        count: Number of goals.
        seed: Seed of the further goals.

    Returns:
        ``(3,)`` points in m, world frame.
    """
    rng = np.random.default_rng([seed, 1])  # another stream than the room's
    goals = [np.array(env.goal, float)]
    while len(goals) < count:
        point, last = sample_point(env.room, rng), goals[-1][:2]
        in_range = NEAREST <= np.linalg.norm(point - last) <= FARTHEST
        if in_range and env.room.map.routes(point).reachable(last):
            goals.append(np.array([*point, goals[0][2]]))
    return goals


class Course:
    """Goals to reach one after the other, and the path that was taken.

    Args:
        goals: ``(3,)`` points in m, world frame.
        seconds: Longest time.
    """

    def __init__(self, goals: list[Array], seconds: float) -> None:
        self.fall = self.collision = self.gave_up = False
        self.failure = ""
        """Why the robot cannot go on, in words; empty while it can."""
        self.now = 0.0
        """Seconds since the start."""
        self._goals, self._seconds, self._reached = goals, seconds, 0
        self._path: list[list[float]] = []
        self._arrived: float | None = None

    @property
    def goal(self) -> Array:
        """The goal to drive to."""
        return self._goals[min(self._reached, len(self._goals) - 1)]

    @property
    def ended(self) -> str:
        """Why the run is over, empty while it is not."""
        if self._reached == len(self._goals):
            return "all goals reached"
        return self.failure or ("the time is over" if self.now >= self._seconds else "")

    def update(self, now: float, position: Array, success: bool) -> bool:
        """Take note of where the robot is; return whether it shall drive to a new goal.

        Args:
            now: Seconds since the start.
            position: ``(2,)`` or more, in m, world frame.
            success: Whether it rests at the goal.
        """
        self.now = now
        if not self._path or now >= self._path[-1][0] + TRACE_S:
            self._path.append([round(now, 2), *(round(float(value), 3) for value in position[:2])])
        if not success:
            self._arrived = None
        elif self._arrived is None:
            self._arrived = now
        elif now - self._arrived >= HOLD_S:
            self._arrived, self._reached = None, self._reached + 1
            return not self.ended
        return False

    def fail(self, fall: bool, collision: bool, gave_up: bool, fault: str | None) -> None:
        """Take note of what ends a run: a fall, a collision, to have given up, a fault of the guard."""
        self.fall, self.collision, self.gave_up = fall, collision and not fall, gave_up
        failure = "the robot fell" if fall else "the robot hit something" if collision else ""
        self.failure = failure or ("the robot gave up" if gave_up else fault or "")

    def text(self) -> str:
        """Say how far it is, for a progress bar."""
        return f"{self._reached} of {len(self._goals)} goals"

    def report(self) -> dict[str, Any]:
        """Return the outcome as JSON values."""
        return {
            "success": self._reached == len(self._goals),
            "ended": self.ended,
            "goals_reached": self._reached,
            "goals": [[round(float(value), 3) for value in goal] for goal in self._goals],
            "falls": int(self.fall),
            "collisions": int(self.collision),
            "seconds": round(self.now, 2),
            "path": self._path,
        }
