"""How a car follows a plan: speed and curvature fitted to the poses, an LQR tracker and a kinematic bicycle.

These are the definitions of nuPlan's two-stage controller in the batched form of NAVSIM (arXiv 2406.15349). Everything
works on a batch; `lqr` and `bicycle_step` are one step each, so that a closed loop and the open-loop `track` are
driven by the same car.

A state is a row of 8 numbers, all of the rear axle, in SI units:
``x, y, heading, speed, acceleration, steering angle, yaw rate, yaw acceleration``. Speed and acceleration are along
the heading: the bicycle does not slip.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from policies.spec import Array, ContractError

X, Y, HEADING, SPEED, ACCELERATION, STEERING, YAW_RATE, YAW_ACCELERATION = range(8)
STATE_SIZE = 8
STEP = 0.1  # s, between samples of a plan
LOOK_AHEAD = 10  # steps that the tracker looks ahead

JERK_PRICE = 1e-4  # of the fit of the speed
CURVATURE_RATE_PRICE, CURVATURE_PRICE = 1e-2, 1e-10  # of the fit of the curvature; the second one for its first sample
SPEED_PRICE, LATERAL_PRICE, HEADING_PRICE = 10.0, 1.0, 10.0  # of the tracker; its inputs cost 1
STANDING, STANDING_GAIN = 0.2, 0.5  # m/s below which a car that shall stand is braked by a simple gain, 1/s
ACCELERATION_LAG, STEERING_LAG = 0.2, 0.05  # s
LARGEST_STEERING = np.pi / 3  # rad


@dataclass(frozen=True)
class Vehicle:
    """Measures of a car, in m.

    Args:
        front: From the rear axle to the front bumper.
        rear: From the rear axle to the rear bumper.
        width: Without mirrors.
        wheelbase: Between the axles.
    """

    front: float = 4.049
    rear: float = 1.127
    width: float = 2.297
    wheelbase: float = 3.089

    def __post_init__(self) -> None:
        for name in ("front", "rear", "width", "wheelbase"):
            if not 0 < getattr(self, name) < 100:
                raise ContractError(f"vehicle {name} is {getattr(self, name)}; it must be in (0, 100), in metres")

    @property
    def length(self) -> float:
        """From bumper to bumper, m."""
        return self.front + self.rear

    @property
    def ahead(self) -> float:
        """From the rear axle to the middle of the box, m."""
        return (self.front - self.rear) / 2


PACIFICA = Vehicle()
"""The Chrysler Pacifica of nuPlan and NAVSIM."""


def wrapped(angle: Array) -> Array:
    """Angles in [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def sampled(waypoints: Array, period: float, pose: Array, samples: int = 41) -> Array:
    """Plans at 10 Hz in the frame of the scene from waypoints in the frame of the car, linearly interpolated.

    Args:
        waypoints: ``(P, N, 3)`` x, y in m and heading in rad of the rear axle in its frame at t=0; the first one is at
            ``period``, because the pose at t=0 is the origin.
        period: Seconds between waypoints.
        pose: ``(3,)`` x, y, heading of the rear axle at t=0 in the frame of the scene.
        samples: Number of samples of the result, 41 for 4 s.

    Returns:
        ``(P, samples, 3)``.

    Raises:
        ContractError: The waypoints have another shape, are not finite or end too early.
    """
    waypoints, pose = np.asarray(waypoints, float), np.asarray(pose, float)
    if waypoints.ndim != 3 or waypoints.shape[-1] != 3 or not np.isfinite(waypoints).all():
        raise ContractError(f"waypoints have shape {waypoints.shape}; give (P, N, 3) finite x, y, heading")
    if waypoints.shape[1] * period < (samples - 1) * STEP - 1e-9:
        raise ContractError(
            f"waypoints end after {waypoints.shape[1] * period:g} s, the plan lasts {(samples - 1) * STEP:g} s; "
            "plan further ahead or ask for fewer samples"
        )
    known = np.concatenate([np.zeros_like(waypoints[:, :1]), waypoints], 1)
    known[..., 2] = np.unwrap(known[..., 2])
    place = np.arange(samples) * STEP / period
    before = np.minimum(place.astype(int), waypoints.shape[1] - 1)
    share = (place - before)[:, None]
    local = (1 - share) * known[:, before] + share * known[:, before + 1]
    cos, sin = np.cos(pose[2]), np.sin(pose[2])
    x, y = local[..., 0], local[..., 1]
    return np.stack([pose[0] + cos * x - sin * y, pose[1] + sin * x + cos * y, pose[2] + local[..., 2]], -1)


@cache
def _speed_fit(count: int, dt: float, reference_quirks: bool) -> Array:
    """Matrix ``(count, count)`` from the distances driven in each step to the speeds at the begin of each."""
    # The normal equations do not depend on the plan: a displacement enters through its part along the heading only.
    speeds = np.tril(np.full((count, count), dt), -1)
    speeds = np.concatenate([np.ones((count, 1)), speeds[:, : count - 1]], 1)
    distances = dt * speeds
    roughness = np.zeros((max(count - 2, 0), count))
    if count > 2:
        roughness[:, 1:] = np.diff(np.eye(count - 1), axis=0)
        if reference_quirks:
            roughness[:, 1:] = -np.eye(count - 2, count - 1)
            roughness[-1, -1] = 1.0
    normal = distances.T @ distances + JERK_PRICE * roughness.T @ roughness
    return speeds @ np.linalg.pinv(normal) @ distances.T


def _curvature_fit(turns: Array, speeds: Array, dt: float) -> Array:
    """Curvatures ``(P, N)`` in 1/m at the begin of steps with turns ``(P, N)`` in rad at speeds ``(P, N)`` in m/s.

    Least squares with a price for the rate of change. Written in the curvatures themselves the normal equations are
    tridiagonal: -1 beside the diagonal once they are divided by the price.
    """
    price = CURVATURE_RATE_PRICE / dt**2
    weight, target = (speeds * dt) ** 2 / price, speeds * dt * turns / price
    # The pivots are 1 + excess. The excess, not the pivot, is what the recursion carries: it may be as small as 1e-10.
    excess, right = np.empty_like(weight), np.empty_like(weight)
    excess[:, 0], right[:, 0] = weight[:, 0] + CURVATURE_PRICE / price, target[:, 0]
    for index in range(1, weight.shape[1]):
        pivot = 1 + excess[:, index - 1]
        excess[:, index] = weight[:, index] + excess[:, index - 1] / pivot
        right[:, index] = target[:, index] + right[:, index - 1] / pivot
    curvature = np.empty_like(weight)
    curvature[:, -1] = right[:, -1] / excess[:, -1]
    for index in range(weight.shape[1] - 2, -1, -1):
        curvature[:, index] = (right[:, index] + curvature[:, index + 1]) / (1 + excess[:, index])
    return curvature


def fitted(plans: Array, dt: float = STEP, *, reference_quirks: bool = False) -> tuple[Array, Array]:
    """Speeds in m/s and curvatures in 1/m, each ``(P, N - 1)``, at the begin of every step of plans ``(P, N, 3)``.

    Args:
        plans: Poses x, y, heading; m and rad.
        dt: Seconds between poses.
        reference_quirks: The regulariser of NAVSIM, whose difference matrix lost its upper diagonal: it prices the
            acceleration instead of the jerk and so pulls the speed towards a constant.
    """
    steps = np.diff(plans, axis=1)
    heading = plans[:, :-1, 2]
    along = np.cos(heading) * steps[..., 0] + np.sin(heading) * steps[..., 1]
    speeds = along @ _speed_fit(along.shape[1], dt, reference_quirks).T
    return speeds, _curvature_fit(wrapped(steps[..., 2]), speeds, dt)


def look_ahead(speeds: Array, curvatures: Array, step: int) -> tuple[Array, Array]:
    """What the tracker follows at a step: speed ``(P,)`` one look-ahead later, curvatures ``(P, 10)`` until then.

    Args:
        speeds: ``(P, N)``, see `fitted`.
        curvatures: ``(P, N)``.
        step: Current one; beyond the end the last sample is held.
    """
    last = speeds.shape[1] - 1
    window = np.minimum(np.arange(step, step + LOOK_AHEAD), last)
    return speeds[:, min(step + LOOK_AHEAD, last)], curvatures[:, window]


def lqr(
    states: Array, references: Array, speeds: Array, curvatures: Array, dt: float = STEP, vehicle: Vehicle = PACIFICA
) -> tuple[Array, Array]:
    """One command of the tracker: least squared errors at the end of the look-ahead, with the inputs held until then.

    Args:
        states: ``(B, 8)``.
        references: ``(B, 3)`` poses x, y, heading where the cars should be now.
        speeds: ``(B,)`` m/s at the end of the look-ahead.
        curvatures: ``(B, N)`` 1/m of the reference at the N steps of the look-ahead, the first one now.
        dt: Seconds per step.
        vehicle: For its wheelbase.

    Returns:
        Acceleration in m/s^2 and steering rate in rad/s, each ``(B,)``.
    """
    now, cos, sin = states[:, SPEED], np.cos(references[:, 2]), np.sin(references[:, 2])
    lateral = cos * (states[:, Y] - references[:, 1]) - sin * (states[:, X] - references[:, 0])
    heading = wrapped(states[:, HEADING] - references[:, 2])
    standing = (speeds <= STANDING) & (now <= STANDING)
    count = curvatures.shape[1]
    time, span = dt * np.arange(count), dt * count
    gain = SPEED_PRICE * span / (SPEED_PRICE * span**2 + 1)
    acceleration = np.where(standing, STANDING_GAIN, gain) * (speeds - now)
    driven = dt * (now[:, None] + acceleration[:, None] * time)
    # Where the errors end without input, and what they gain per rad/s of it; small angles, as the tracker assumes.
    turns = driven * (states[:, STEERING, None] / vehicle.wheelbase - curvatures)
    bends = driven * time / vehicle.wheelbase
    turned, bent = np.cumsum(turns, 1), np.cumsum(bends, 1)
    lateral = lateral + driven.sum(1) * heading + (driven[:, 1:] * turned[:, :-1]).sum(1)
    heading = wrapped(heading + turned[:, -1])
    to_lateral, to_heading = (driven[:, 1:] * bent[:, :-1]).sum(1), bent[:, -1]
    wanted = LATERAL_PRICE * to_lateral * lateral + HEADING_PRICE * to_heading * heading
    rate = -wanted / (LATERAL_PRICE * to_lateral**2 + HEADING_PRICE * to_heading**2 + 1)
    return acceleration, np.where(standing, 0.0, rate)


def bicycle_step(
    states: Array, acceleration: Array, steering_rate: Array, dt: float = STEP, vehicle: Vehicle = PACIFICA
) -> Array:
    """States ``(B, 8)`` one step later: a kinematic bicycle whose acceleration and steering lag behind the command.

    Args:
        states: ``(B, 8)``.
        acceleration: ``(B,)`` commanded, m/s^2.
        steering_rate: ``(B,)`` commanded, rad/s.
        dt: Seconds.
        vehicle: For its wheelbase.
    """
    speed, heading, steering = states[:, SPEED], states[:, HEADING], states[:, STEERING]
    after = np.empty_like(states, dtype=float)
    after[:, ACCELERATION] = states[:, ACCELERATION] + dt / (dt + ACCELERATION_LAG) * (
        acceleration - states[:, ACCELERATION]
    )
    turned = steering + dt / (dt + STEERING_LAG) * dt * steering_rate
    after[:, STEERING] = np.clip(turned, -LARGEST_STEERING, LARGEST_STEERING)
    after[:, X] = states[:, X] + dt * speed * np.cos(heading)
    after[:, Y] = states[:, Y] + dt * speed * np.sin(heading)
    after[:, HEADING] = heading + dt * speed * np.tan(steering) / vehicle.wheelbase
    after[:, SPEED] = speed + dt * after[:, ACCELERATION]
    after[:, YAW_RATE] = after[:, SPEED] * np.tan(after[:, STEERING]) / vehicle.wheelbase
    after[:, YAW_ACCELERATION] = (after[:, YAW_RATE] - states[:, YAW_RATE]) / dt
    return after


def track(
    plans: Array, start: Array, dt: float = STEP, vehicle: Vehicle = PACIFICA, *, reference_quirks: bool = False
) -> Array:
    """States ``(P, N, 8)`` of a car that follows each plan.

    Args:
        plans: ``(P, N, 3)`` poses of the rear axle, N at least 2; sample k is meant for ``k * dt``.
        start: ``(8,)`` or ``(P, 8)`` states at t=0; they are the first sample of the result.
        dt: Seconds between samples.
        vehicle: For its wheelbase.
        reference_quirks: See `fitted`.
    """
    speeds, curvatures = fitted(plans, dt, reference_quirks=reference_quirks)
    states = np.empty((*plans.shape[:2], STATE_SIZE))
    states[:, 0] = start
    for step in range(plans.shape[1] - 1):
        command = lqr(states[:, step], plans[:, step], *look_ahead(speeds, curvatures, step), dt, vehicle)
        states[:, step + 1] = bicycle_step(states[:, step], *command, dt, vehicle)
    return states
