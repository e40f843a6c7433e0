"""Comfort of a drive: bounds on accelerations, jerks and yaw, and how far two consecutive plans disagree.

Signals are smoothed by Savitzky-Golay filters, as nuPlan does. With ``reference_quirks`` four things are as in NAVSIM:

* the bicycle does not slip, and so the lateral acceleration is taken to be 0; otherwise it is speed times yaw rate;
* version 2 moves the longitudinal acceleration ``a`` to the middle of the box as ``a + r w^2 + r dw/dt``, which has the
  wrong sign and a lateral term; otherwise all accelerations are those of the rear axle, where none has to be moved;
* version 1 smooths acceleration and differentiates it within one window as long as the drive, a single parabola,
  which hides almost everything; otherwise a window of 15 samples differentiates in both versions;
* version 2 smooths within 8 samples, an even number, and so yields the value between two samples: the ends of a drive,
  where there is no such shift, get a jerk that is too large by an eighth. Otherwise it is 9 samples in both versions.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from envs.metrics.tracker import ACCELERATION, HEADING, PACIFICA, SPEED, STEP, YAW_ACCELERATION, YAW_RATE, Vehicle
from policies.spec import Array

BOUNDS = np.array([[-4.05, 2.40], [-4.89, 4.89], [-8.37, 8.37], [-4.13, 4.13], [-1.93, 1.93], [-0.95, 0.95]])
"""Of longitudinal and lateral acceleration, jerk, longitudinal jerk, yaw acceleration and yaw rate, in m/s^2, m/s^3,
rad/s^2 and rad/s; a value must be strictly inside."""
DIFFERENCES = np.array([0.7, 0.5, 0.1, 0.1])
"""Largest root mean square difference of two plans: acceleration, jerk, yaw rate, yaw acceleration; SI units."""
SHORTEST = 5  # samples that the filters need
SMOOTHING, EVEN_SMOOTHING, JERK_WINDOW, YAW_WINDOW = 9, 8, 15, 5  # samples
DECIMALS = 8  # a signal exactly at its bound is not inside


@cache
def _filter(count: int, window: int, order: int, derivative: int) -> Array:
    """The filter as a matrix ``(count, count)`` that is multiplied from the right."""
    from scipy.signal import savgol_filter  # slow to import, and it is not needed before the first score

    return savgol_filter(np.eye(count), window, order, deriv=derivative, delta=STEP, axis=0).T


def _filtered(signal: Array, window: int, order: int, derivative: int = 0) -> Array:
    count = signal.shape[-1]
    if window > count:
        window = count - 1 + count % 2 if window % 2 else count
    return np.round(signal @ _filter(count, window, order, derivative), DECIMALS)


def comfort_signals(
    states: Array, version: int = 1, *, reference_quirks: bool = False, vehicle: Vehicle = PACIFICA
) -> Array:
    """Signals ``(6, P, T)`` in the order of `BOUNDS` of states ``(P, T, 8)`` at 10 Hz.

    Args:
        states: T is at least `SHORTEST`.
        version: Of NAVSIM, 1 or 2; it matters with ``reference_quirks`` only.
        reference_quirks: See the module.
        vehicle: For the middle of the box.
    """
    forward, heading = states[..., ACCELERATION], np.unwrap(states[..., HEADING])
    sideways = np.zeros_like(forward) if reference_quirks else states[..., SPEED] * states[..., YAW_RATE]
    size = np.hypot(forward, sideways)
    smoothing = wide = EVEN_SMOOTHING if reference_quirks else SMOOTHING
    ramp = JERK_WINDOW
    if reference_quirks and version == 1:
        wide = ramp = states.shape[1]
    elif reference_quirks:
        forward = forward + vehicle.ahead * (states[..., YAW_RATE] ** 2 + states[..., YAW_ACCELERATION])
    jerks = [_filtered(_filtered(signal, smoothing, 2), ramp, 2, derivative=1) for signal in (size, forward)]
    return np.stack(
        [
            _filtered(forward, wide, 2),
            _filtered(sideways, wide, 2),
            *jerks,
            _filtered(heading, YAW_WINDOW, 3, derivative=2),
            _filtered(heading, YAW_WINDOW, 2, derivative=1),
        ]
    )


def comfortable(
    states: Array, version: int = 1, *, reference_quirks: bool = False, vehicle: Vehicle = PACIFICA
) -> Array:
    """Whether ``(6, P)`` each signal of `comfort_signals` stays strictly inside its bounds."""
    signals = comfort_signals(states, version, reference_quirks=reference_quirks, vehicle=vehicle)
    low, high = BOUNDS.T[..., None, None]
    return np.asarray(((signals > low) & (signals < high)).all(-1))


def consistent(
    states: Array, previous: Array, steps: int, *, reference_quirks: bool = False, vehicle: Vehicle = PACIFICA
) -> Array:
    """Whether ``(P,)`` drives agree with the one that was planned before, while they overlap (extended comfort).

    Args:
        states: ``(P, T, 8)``.
        previous: ``(T', 8)`` or ``(P, T', 8)`` states of the previous plan, whose sample ``steps`` is meant for t=0.
        steps: Age of the previous plan in samples of 0.1 s.
        reference_quirks: See the module; the yaw acceleration is then of a parabola.
        vehicle: For the middle of the box.
    """
    before = np.broadcast_to(previous, (len(states), *previous.shape[-2:]))[:, steps:]
    overlap = min(states.shape[1], before.shape[1])
    signals = []
    for drive in (states[:, :overlap], before[:, :overlap]):
        _, _, jerk, _, turning, rate = comfort_signals(drive, 2, reference_quirks=reference_quirks, vehicle=vehicle)
        size, smoothing = np.hypot(drive[..., ACCELERATION], drive[..., SPEED] * drive[..., YAW_RATE]), SMOOTHING
        if reference_quirks:
            size, smoothing = np.abs(drive[..., ACCELERATION]), EVEN_SMOOTHING
            turning = _filtered(np.unwrap(drive[..., HEADING]), YAW_WINDOW, 2, derivative=2)
        signals.append(np.stack([_filtered(size, smoothing, 2), jerk, rate, turning]))
    difference = np.sqrt(np.mean((signals[0] - signals[1]) ** 2, axis=-1))
    return (difference <= DIFFERENCES[:, None]).all(0)
