"""The walking G1 as a body that follows velocity commands."""

from __future__ import annotations

import math
from dataclasses import dataclass

import mujoco
import numpy as np

from envs.bodies import WheeledBody
from envs.g1.assets import model_path, policy_path
from envs.g1.calibration import policy_command
from envs.g1.gait import STANDING_POSE, Gait
from envs.g1.robot import BASE_JOINT, PREFIX, robot_spec
from policies.spec import Array

STANDING_HEIGHT = 0.757  # m, pelvis above the floor with the feet of the standing pose on it


class G1Body:
    """A Unitree G1 that walks where velocity commands tell it to, in full physics.

    Tested with a physics timestep of 0.005 s; the scene's options apply, the robot brings none of its own.

    Args:
        render_meshes: Keep the visual meshes. Only pictures change, but compiling the scene takes a second instead
            of a millisecond.
        calibrated: Ask the gait for more than the command, by its measured response, so that the robot does move
            at the commanded velocity.

    Raises:
        AssetError: Model or walking policy are missing, or not those that were tested.
    """

    action = WheeledBody.action  # what the calibrated gait delivers, so that one policy drives both
    radius = 0.41
    touches_floor = True

    def __init__(self, render_meshes: bool = False, calibrated: bool = True) -> None:
        self._gait = Gait(policy_path())
        self._robot = robot_spec(
            model_path(), self._gait.joints, self._gait.stiffness, self._gait.damping, render_meshes
        )
        self._calibrated = calibrated

    def add_to(self, spec: mujoco.MjSpec) -> None:
        """Attach the robot to a scene with the floor at z = 0; its names begin with ``g1/``."""
        spec.attach(self._robot.copy(), prefix=PREFIX, frame=spec.worldbody.add_frame())

    def reset(self, model: mujoco.MjModel, data: mujoco.MjData, x: float, y: float, yaw: float) -> None:
        """Stand the robot at rest at ``(x, y)`` in m, facing ``yaw`` in rad, and restart its gait."""
        self._at = at = _Layout.of(model, self._gait.joints)
        data.qpos[at.base] = (x, y, STANDING_HEIGHT, math.cos(yaw / 2), 0, 0, math.sin(yaw / 2))
        data.qpos[at.angles] = data.ctrl[at.targets] = STANDING_POSE
        data.qvel[at.velocity] = 0
        data.qvel[at.rates] = 0
        self._gait.reset()

    def control(self, model: mujoco.MjModel, data: mujoco.MjData, command: Array) -> None:
        """Set the joint targets of the next 0.02 s.

        Args:
            command: ``(3,)`` forward and lateral velocity in m/s and yaw rate in rad/s.
        """
        at = self._at
        data.ctrl[at.targets] = self._gait.targets(
            policy_command(command) if self._calibrated else np.clip(command, -1, 1),
            turn_rate=data.qvel[at.velocity][3:],
            gravity=-_up(data.qpos[at.base][3:]),
            angles=data.qpos[at.angles],
            rates=data.qvel[at.rates],
        )

    def pose(self, data: mujoco.MjData) -> Array:
        """Return ``(4,)`` x, y, z in m and yaw in rad of the pelvis in the world."""
        base = data.qpos[self._at.base]
        return np.array([*base[:3], _yaw(base[3:])], np.float32)

    def twist(self, data: mujoco.MjData) -> Array:
        """Return ``(3,)`` forward and lateral velocity in m/s and yaw rate in rad/s of the pelvis, yaw-aligned.

        The pelvis sways with every step. A mean over one stride, which takes 1 s, is the velocity of travel.
        """
        quaternion, velocity = data.qpos[self._at.base][3:], data.qvel[self._at.velocity]
        yaw = _yaw(quaternion)
        cosine, sine = math.cos(yaw), math.sin(yaw)
        forward = cosine * velocity[0] + sine * velocity[1]
        lateral = cosine * velocity[1] - sine * velocity[0]
        return np.array([forward, lateral, _up(quaternion) @ velocity[3:]], np.float32)

    def fallen(self, data: mujoco.MjData) -> bool:
        """Tell whether the pelvis is below half a metre or tilted by more than 60 degrees."""
        base = data.qpos[self._at.base]
        return bool(base[2] < 0.5 or _up(base[3:])[2] < 0.5)


@dataclass(frozen=True)
class _Layout:
    """Where the robot lies in the arrays of a scene; its joints and actuators are consecutive."""

    base: slice
    velocity: slice
    angles: slice
    rates: slice
    targets: slice

    @classmethod
    def of(cls, model: mujoco.MjModel, joints: tuple[str, ...]) -> _Layout:
        base = model.joint(PREFIX + BASE_JOINT)
        position, velocity = int(base.qposadr[0]), int(base.dofadr[0])
        actuator, count = int(model.actuator(PREFIX + joints[0]).id), len(joints)
        return cls(
            base=slice(position, position + 7),
            velocity=slice(velocity, velocity + 6),
            angles=slice(position + 7, position + 7 + count),
            rates=slice(velocity + 6, velocity + 6 + count),
            targets=slice(actuator, actuator + count),
        )


def _up(quaternion: Array) -> Array:
    """Return the vertical of the world in the frame of the pelvis, whose quaternion is (w, x, y, z) as in MuJoCo."""
    w, x, y, z = quaternion
    return np.array([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)])


def _yaw(quaternion: Array) -> float:
    w, x, y, z = quaternion
    return math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
