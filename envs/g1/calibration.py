"""What to ask of the walking policy so that the robot moves at the velocity that was commanded.

The policy walks slower than it is told, each direction differently, and drifts backwards while it steps in place.
``python -m benchmarks.g1_calibration`` measures the response below and the error that remains.
"""

from __future__ import annotations

import numpy as np

from policies.spec import Array

# Commands below this on every axis mean standing still: m/s, m/s, rad/s.
STAND_STILL_BELOW = np.array([0.03, 0.03, 0.05])

# Per axis (vx, vy, wz): what the policy is asked for, and the velocity the robot walks at, in m/s or rad/s.
RESPONSE: tuple[tuple[Array, Array], ...] = (
    (
        np.array([-0.6, -0.4, -0.2, -0.1, -0.02, 0.02, 0.1, 0.2, 0.3, 0.5, 0.65, 0.8]),
        np.array([-0.48, -0.327, -0.173, -0.095, -0.034, -0.001, 0.062, 0.149, 0.238, 0.415, 0.534, 0.628]),
    ),
    (
        np.array([-0.6, -0.4, -0.3, -0.2, -0.1, -0.02, 0.02, 0.1, 0.2, 0.3, 0.4, 0.6]),
        np.array([-0.259, -0.2, -0.155, -0.117, -0.07, -0.027, -0.005, 0.045, 0.108, 0.163, 0.212, 0.277]),
    ),
    (
        np.array([-1.0, -0.8, -0.6, -0.4, -0.2, -0.02, 0.02, 0.2, 0.4, 0.6, 0.8, 1.0]),
        np.array([-0.876, -0.704, -0.526, -0.355, -0.175, -0.01, 0.03, 0.196, 0.379, 0.561, 0.733, 0.905]),
    ),
)


def policy_command(command: Array) -> Array:
    """Invert the response, each axis on its own.

    Args:
        command: ``(3,)`` desired forward and lateral velocity in m/s and yaw rate in rad/s.

    Returns:
        ``(3,)`` command of the policy; zero, that is standing, when every axis is below `STAND_STILL_BELOW`.
        Velocities beyond the measured response give its end.
    """
    if (np.abs(command) < STAND_STILL_BELOW).all():
        return np.zeros(3)
    pairs = zip(command, RESPONSE, strict=True)
    return np.array([np.interp(value, delivered, asked) for value, (asked, delivered) in pairs])
