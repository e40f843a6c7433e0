"""The last word before the robot: finite, fresh, within limits, inside the fence, else stop and latch. numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policies.spec import ActionSpec, Array, ContractError

_CHANGED = 0.02  # difference from the command, in m/s or rad/s, that counts as an intervention


@dataclass(frozen=True)
class GuardLimits:
    """Limits per component of the command, in its unit and per s, s^2.

    Args:
        low: Smallest value, at most 0.
        high: Largest value, at least 0.
        acceleration: Largest rate of change.
        jerk: Largest rate of change of the acceleration.
        timeout_s: Age from which a command is stale, in seconds.
        geofence: ``(x_min, x_max, y_min, y_max)`` in the frame of the pose, None without a fence. The robot needs its
            stopping distance beyond it.

    Raises:
        ValueError: A limit that would keep the robot from stopping.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    acceleration: tuple[float, ...]
    jerk: tuple[float, ...]
    timeout_s: float = 0.2
    geofence: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        if len({len(self.low), len(self.high), len(self.acceleration), len(self.jerk)}) != 1:
            raise ValueError(f"limits differ in length, one value per component is needed: {self}")
        if not all(-np.inf < low <= 0 <= high < np.inf for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError(f"low {self.low} .. high {self.high} must be finite and include 0, where the robot stops")
        if not all(0 < value < np.inf for value in (*self.acceleration, *self.jerk, self.timeout_s)):
            raise ValueError(f"acceleration, jerk and timeout_s must be positive and finite: {self}")

    @classmethod
    def of(cls, action: ActionSpec) -> GuardLimits:
        """Limits of a contract; where it leaves accelerations open, those that a walking robot follows."""
        acceleration = action.acceleration or tuple(3.0 if unit == "rad/s" else 1.5 for unit in action.units)
        return cls(action.low, action.high, acceleration, tuple(10 * value for value in acceleration))


class Guard:
    """Limits commands and stops the robot; pure logic, called once per control tick. `estop` may come from any thread.

    Ordinary changes, stops included, keep all limits. A fault stops at once and latches until `reset`: a command that
    is not finite, silence while the robot moves, a pose outside the fence, an emergency stop. Silence of a robot at
    rest is no fault.

    Args:
        limits: The limits.
        underway: ``(A,)`` velocity that the robot has already; at rest by default.
    """

    def __init__(self, limits: GuardLimits, underway: Array | None = None) -> None:
        self.fault: str | None = None
        """Why the robot is stopped until `reset`, None while it is not."""
        self.interventions = dict.fromkeys(("limited", "stale", "non_finite", "geofence", "estop"), 0)
        """Calls of `filter` that changed a command and faults that were raised, by reason."""
        self._limits = limits
        self._low, self._high, self._acceleration, self._jerk = (
            np.array(value, np.float64) for value in (limits.low, limits.high, limits.acceleration, limits.jerk)
        )
        self._time: float | None = None
        self._stamp: float | None = None
        self._rest()
        if underway is not None:
            self._velocity = np.clip(np.asarray(underway, np.float64), self._low, self._high)

    @property
    def waiting(self) -> bool:
        """Whether no command has been received since the start or the last reset."""
        return self._stamp is None

    def reset(self) -> None:
        """Release a latched fault; the robot starts from rest with the next fresh command."""
        self.fault = None
        self._stamp = None
        self._rest()

    def estop(self, reason: str = "emergency stop") -> None:
        """Stop at once and latch."""
        self._latch("estop", reason)

    def filter(self, command: Array | None, stamp: float, now: float, pose: Array | None = None) -> Array:
        """Return the command that may go to the robot.

        Args:
            command: ``(A,)`` wanted command; None when there is none, then the robot ramps down.
            stamp: Time of the command in seconds, on the clock of ``now``.
            now: Present time in seconds, monotonic.
            pose: ``(x, y, ...)`` in the frame of the geofence; without it a fenced robot is ramped down.

        Returns:
            ``(A,)`` float32, finite and within the limits.

        Raises:
            ContractError: The command has another shape than the limits.
        """
        elapsed = 0.0 if self._time is None else min(max(0.0, now - self._time), self._limits.timeout_s)
        self._time = now
        wanted = self._receive(command, stamp)
        self._check_fence(pose)
        fresh = self._check_age(now, bool(wanted.any()))
        allowed = fresh and (pose is not None or self._limits.geofence is None)
        if self.fault is None:
            self._slew(wanted if allowed else np.zeros_like(wanted), elapsed)
            self.interventions["limited"] += bool(allowed and np.abs(self._velocity - wanted).max() > _CHANGED)
        if self.fault is not None:  # also one that another thread raised in the meantime
            self._rest()
        return self._velocity.astype(np.float32)

    def _receive(self, command: Array | None, stamp: float) -> Array:
        """Take note of a command; return it, or zeros when there is none to follow."""
        stop = np.zeros_like(self._low)
        if command is None:
            return stop
        if np.shape(command) != self._low.shape:
            raise ContractError(
                f"command has shape {np.shape(command)}, the limits have {self._low.shape}; "
                "configure the guard for this embodiment"
            )
        self._stamp = stamp
        if not np.isfinite(command).all():
            self._latch("non_finite", f"command {command} is not finite; check the policy")
            return stop
        return np.asarray(command, np.float64)

    def _check_age(self, now: float, wants_motion: bool) -> bool:
        """Return whether the newest command is fresh; latch if it is not and the robot moves."""
        if self._stamp is None:
            return False
        age, limit = now - self._stamp, self._limits.timeout_s
        if abs(age) <= limit:
            return True
        if self._velocity.any():
            self._latch("stale", f"the newest command is {age:.3f} s old, the limit is {limit} s; check its source")
        elif wants_motion and self.fault is None:
            self.interventions["stale"] += 1
        return False

    def _check_fence(self, pose: Array | None) -> None:
        fence = self._limits.geofence
        if fence is None or pose is None:
            return
        x, y = float(pose[0]), float(pose[1])
        if not (fence[0] <= x <= fence[1] and fence[2] <= y <= fence[3]):
            self._latch("geofence", f"position ({x:.2f}, {y:.2f}) is outside the fence {fence}; bring the robot back")

    def _latch(self, kind: str, reason: str) -> None:
        if self.fault is None:
            self.fault = f"{kind}: {reason}"
            self.interventions[kind] += 1
        self._rest()

    def _rest(self) -> None:
        self._velocity = np.zeros_like(self._low)
        self._rate = np.zeros_like(self._low)

    def _slew(self, wanted: Array, elapsed: float) -> None:
        """Move the velocity towards the wanted one by one time step of length ``elapsed``.

        The rate of change is the largest a from which the target can still be met without overshoot at limited jerk,
        however the following steps are timed: velocity + a * elapsed + a^2 / (2 * jerk) = target. Limiting its change
        afterwards can delay the arrival at a new target, never break the velocity limits: the same inequality holds for
        them at every step, because it survives any step that lowers a at full jerk.
        """
        target = np.clip(wanted, self._low, self._high)
        gap = target - self._velocity
        root = np.sqrt(elapsed**2 + 2 * np.abs(gap) / self._jerk)
        rate = 2 * gap / np.maximum(elapsed + root, 1e-12)
        change = self._jerk * elapsed
        rate = np.clip(rate, self._rate - change, self._rate + change)
        self._rate = np.clip(rate, -self._acceleration, self._acceleration)
        self._velocity = np.clip(self._velocity + self._rate * elapsed, self._low, self._high)
