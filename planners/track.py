"""Trackers: they drive a robot along a plan at its own rate, and say when the plan is no longer worth following.

The time of the plan waits for a robot that has fallen behind, so that an obstacle does not leave it chasing a point on
the other side of a wall.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from scipy.interpolate import CubicSpline

from planners.search import Route
from policies.spec import Array

FACING = 0.6  # rad off its way up to which a robot that turns drives on at full speed
SLOW = 0.05  # m/s, below which the direction of a plan does not matter


class Reference(NamedTuple):
    """Where a plan wants the robot: position ``(2,)`` in m, velocity in m/s, acceleration in m/s^2."""

    position: Array
    velocity: Array
    acceleration: Array


class Curve:
    """A plan as a smooth function of time.

    Args:
        route: Positions ``(M, 2)`` in m, the first of which is where the robot is, and when to be there, in steps.
        step_s: Seconds per step.
        velocity: That the robot begins with, ``(2,)`` in m/s.
    """

    def __init__(self, route: Route, step_s: float, velocity: Array | None = None) -> None:
        times = np.asarray(route.times, float) * step_s
        kept = np.r_[True, np.diff(times) > 1e-6]  # of two waypoints at one place the first
        times, places = times[kept], np.asarray(route.states, float)[kept, :2]
        if len(times) == 1:
            times, places = np.array([times[0], times[0] + step_s]), np.repeat(places, 2, axis=0)
        begin = (1, np.zeros(2) if velocity is None else velocity)
        curve = CubicSpline(times, places, bc_type=(begin, (1, np.zeros(2))))
        self._position, self._velocity, self._acceleration = curve, curve.derivative(), curve.derivative(2)
        self.duration, self.goal = float(times[-1]), places[-1]

    def at(self, seconds: float) -> Reference:
        """Where the robot shall be so many seconds into the plan; at rest at its end afterwards."""
        if seconds >= self.duration:
            return Reference(self.goal, np.zeros(2), np.zeros(2))
        time = max(seconds, 0.0)
        return Reference(self._position(time), self._velocity(time), self._acceleration(time))


class Follower:
    """Progress along a plan.

    Args:
        curve: The plan.
        limit: Deviation in m from which the plan is doubted.
        patience: Seconds that it has to last for.
    """

    def __init__(self, curve: Curve, limit: float, patience: float) -> None:
        self.curve, self.elapsed, self.deviation = curve, 0.0, 0.0
        self._limit, self._patience, self._doubted = limit, patience, 0.0

    def advance(self, position: Array, seconds: float) -> Reference:
        """Let time pass and return where the robot shall be; the plan waits for one that is half the limit off."""
        here = self.curve.at(self.elapsed)
        self.deviation = float(np.linalg.norm(here.position - position))
        # Hysteresis: a doubt goes away only when the robot is clearly back.
        if self.deviation > self._limit:
            self._doubted += seconds
        elif self.deviation < self._limit / 2:
            self._doubted = 0.0
        lag = min(1.0, max(0.0, 2 - 2 * self.deviation / self._limit))
        self.elapsed += seconds * lag
        return self.curve.at(self.elapsed)

    @property
    def lost(self) -> bool:
        """Whether the robot has been too far off for too long: it is time to plan again."""
        return self._doubted >= self._patience

    @property
    def over(self) -> bool:
        """Whether the plan has ended."""
        return self.elapsed >= self.curve.duration


class Tracker(Protocol):
    """Turns where a robot shall be into a command."""

    def command(self, state: Array, reference: Reference) -> Array:
        """The command ``(A,)`` for a robot in a state ``(D,)``."""
        ...


class VelocityTracker:
    """For robots that take velocities (vx, vy) in the frame of the map and follow them at once.

    Args:
        gain: Velocity per deviation, 1/s.
        limit: Largest velocity per axis in m/s.
    """

    def __init__(self, gain: float, limit: float) -> None:
        self._gain, self._limit = gain, limit

    def command(self, state: Array, reference: Reference) -> Array:
        velocity = reference.velocity + self._gain * (reference.position - state[:2])
        return np.clip(velocity, -self._limit, self._limit).astype(np.float32)


class AccelerationTracker:
    """For robots with inertia that take accelerations (ax, ay) in the frame of the map: feed-forward and feedback.

    Args:
        frequency: Of the oscillation that deviations are critically damped at, rad/s.
        limit: Largest acceleration per axis in m/s^2.
    """

    def __init__(self, frequency: float, limit: float) -> None:
        self._stiffness, self._damping, self._limit = frequency**2, 2 * frequency, limit

    def command(self, state: Array, reference: Reference) -> Array:
        position, velocity, acceleration = reference
        wanted = acceleration + self._stiffness * (position - state[:2]) + self._damping * (velocity - state[2:4])
        return np.clip(wanted, -self._limit, self._limit).astype(np.float32)


class TwistTracker:
    """For robots that take velocities (vx, vy, wz) in their own frame, and walk or roll forwards rather than sideways.

    Args:
        gain: Velocity per deviation, 1/s.
        turn: Turn rate per deviation of the heading, 1/s.
        low: Smallest velocities ``(3,)`` in m/s and rad/s.
        high: Largest velocities ``(3,)``.
    """

    def __init__(self, gain: float, turn: float, low: Array, high: Array) -> None:
        self._gain, self._turn, self._low, self._high = gain, turn, np.asarray(low), np.asarray(high)

    def command(self, state: Array, reference: Reference) -> Array:
        """The command for a robot whose state is x, y in m and yaw in rad."""
        velocity = reference.velocity + self._gain * (reference.position - state[:2])
        speed = float(np.linalg.norm(velocity))
        if speed < SLOW:
            return np.zeros(3, np.float32)
        bearing = (np.arctan2(velocity[1], velocity[0]) - state[2] + np.pi) % (2 * np.pi) - np.pi
        body = speed * np.array([np.cos(bearing), np.sin(bearing)]) * min(1.0, FACING / max(abs(bearing), 1e-6))
        for axis in (0, 1):  # too fast: slower, in the same direction
            bound = self._high[axis] if body[axis] > 0 else -self._low[axis]
            body *= min(1.0, bound / max(abs(body[axis]), 1e-9))
        return np.array([*body, np.clip(self._turn * bearing, self._low[2], self._high[2])], np.float32)
