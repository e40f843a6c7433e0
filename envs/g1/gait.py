"""The learned walking gait: body velocity in, joint targets out, 50 times a second. numpy and ONNX Runtime only."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnxruntime

from policies.spec import Array

CONTROL_DT = 0.02
STAND_BELOW = 0.01

_LEG = (-0.312, 0.0, 0.0, 0.669, -0.363, 0.0)
_ARM = (0.2, 0.2, 0.0, 0.6, 0.0, 0.0, 0.0)
_RIGHT_ARM = (0.2, -0.2, 0.0, 0.6, 0.0, 0.0, 0.0)
STANDING_POSE = np.array([*_LEG, *_LEG, 0.0, 0.0, 0.0, *_ARM, *_RIGHT_ARM])

_ACTION_SCALE = 0.25
_PHASE_STEP = 2 * math.pi * CONTROL_DT  # one stride of both legs per second


class Gait:
    """Holosoma's FastSAC walking policy for the 29-joint G1 (github.com/amazon-far/holosoma, arXiv 2512.01996).

    Args:
        path: The ONNX file; its metadata names the joints, in order, and their gains.
    """

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.joints: tuple[str, ...] = tuple(json.loads(metadata["dof_names"]))
        self.stiffness: tuple[float, ...] = tuple(json.loads(metadata["kp"]))
        self.damping: tuple[float, ...] = tuple(json.loads(metadata["kd"]))
        self._input = np.zeros((1, 100), np.float32)
        self._feed = {"actor_obs": self._input}
        self._phase = np.zeros(2)
        self.reset()

    def reset(self) -> None:
        """Forget the previous action and begin with the left foot."""
        self._input[:] = 0
        self._standing = False
        self._phase[:] = (0, math.pi)

    def targets(self, command: Array, turn_rate: Array, gravity: Array, angles: Array, rates: Array) -> Array:
        """Advance the gait by one control step.

        Args:
            command: ``(3,)`` forward, lateral and yaw velocity the policy is asked for, each within [-1, 1].
                Below `STAND_BELOW` the robot stands.
            turn_rate: ``(3,)`` angular velocity of the pelvis in its own frame, rad/s.
            gravity: ``(3,)`` unit vector of gravity in the frame of the pelvis.
            angles: ``(29,)`` joint angles in rad, in the order of `joints`.
            rates: ``(29,)`` joint velocities in rad/s.

        Returns:
            ``(29,)`` joint position targets in rad.
        """
        self._advance(command)
        row = self._input[0]
        # Alphabetical order of the terms; the first 29 hold the previous action.
        row[29:32] = turn_rate * 0.25
        row[32] = command[2]
        row[33:35] = command[:2]
        row[35:37] = np.cos(self._phase)
        row[37:66] = angles - STANDING_POSE
        row[66:95] = rates * 0.05
        row[95:98] = gravity
        row[98:100] = np.sin(self._phase)
        row[:29] = self._session.run(None, self._feed)[0][0]
        return STANDING_POSE + _ACTION_SCALE * row[:29]

    def _advance(self, command: Array) -> None:
        if math.hypot(command[0], command[1]) < STAND_BELOW and abs(command[2]) < STAND_BELOW:
            self._phase[:] = math.pi
            self._standing = True
        elif self._standing:
            self._phase[:] = (0, math.pi)
            self._standing = False
        else:
            self._phase += _PHASE_STEP
