"""What a navigation environment asks of a robot, and two light robots: a holonomic wheeled base and a drone."""

from __future__ import annotations

from typing import Protocol

import mujoco
import numpy as np

from policies.spec import ActionSpec, Array

CONTROL_DT = 0.02  # s, the body receives velocity commands at 50 Hz
PHYSICS_DT = 0.005  # s, physics runs at 200 Hz

SCENE_GROUP, VISUAL_GROUP, COLLISION_GROUP = 0, 2, 3  # geom groups; range scans see the scene only


class Body(Protocol):
    """A robot that follows body velocity commands.

    Attributes:
        action: Velocity command: names, units, frame and limits.
        radius: Radius of the robot seen from above, in metres.
        touches_floor: Whether contact with the floor is part of its locomotion rather than a collision.
    """

    action: ActionSpec
    radius: float
    touches_floor: bool

    def add_to(self, spec: mujoco.MjSpec) -> None:
        """Add the robot and its actuators to a scene; its geoms are in `VISUAL_GROUP` or `COLLISION_GROUP`."""

    def reset(self, model: mujoco.MjModel, data: mujoco.MjData, x: float, y: float, yaw: float) -> None:
        """Place the robot at rest."""

    def control(self, model: mujoco.MjModel, data: mujoco.MjData, command: Array) -> None:
        """Turn a velocity command ``(A,)`` into actuator inputs; called every `CONTROL_DT`."""

    def pose(self, data: mujoco.MjData) -> Array:
        """Return ``(4,)``: x, y, z in metres and yaw in radians, world frame."""

    def twist(self, data: mujoco.MjData) -> Array:
        """Return the ``(A,)`` velocity in the yaw-aligned base frame, ordered like the command."""

    def fallen(self, data: mujoco.MjData) -> bool:
        """Whether the robot has fallen."""


class PlanarBody:
    """A rigid base on slide and hinge joints whose velocity follows the command with a first-order lag.

    Velocity servos act in the base frame through a site, so turning while translating is exact.
    """

    MASS = 30.0  # kg
    LAG = 0.25  # s, time constant of the velocity response

    radius = 0.25
    touches_floor = False
    # The limits are those of the walking G1, see envs/g1/calibration.py: a policy for one robot drives the other.
    action = ActionSpec(
        names=("vx", "vy", "wz"),
        units=("m/s", "m/s", "rad/s"),
        frame="base_link",
        low=(-0.3, -0.2, -0.7),
        high=(0.6, 0.2, 0.7),
    )
    _axes: tuple[str, ...] = ("x", "y", "yaw")
    _height = 0.25

    def add_to(self, spec: mujoco.MjSpec) -> None:
        body = spec.worldbody.add_body(name="base", pos=[0, 0, self._height])
        body.explicitinertial = True
        body.mass, body.inertia, body.ipos = self.MASS, [1.0, 1.0, 1.0], [0, 0, 0]
        for axis in self._axes:
            hinge = axis == "yaw"
            direction = [0, 0, 1] if hinge else [float(axis == name) for name in ("x", "y", "z")]
            kind = mujoco.mjtJoint.mjJNT_HINGE if hinge else mujoco.mjtJoint.mjJNT_SLIDE
            body.add_joint(name=axis, type=kind, axis=direction)
        self._add_shape(body)
        site = body.add_site(name="base_link")
        for axis in self._axes:
            self._add_servo(spec, site.name, axis)

    def _add_shape(self, body: mujoco.MjsBody) -> None:
        body.add_geom(
            name="hull",
            type=mujoco.mjtGeom.mjGEOM_CYLINDER,
            size=[self.radius, 0.2, 0],
            group=COLLISION_GROUP,
            rgba=[0.15, 0.55, 0.35, 1],
        )
        body.add_geom(  # shows the heading
            name="nose",
            type=mujoco.mjtGeom.mjGEOM_BOX,
            pos=[0.15, 0, 0.21],
            size=[0.08, 0.03, 0.02],
            group=VISUAL_GROUP,
            contype=0,
            conaffinity=0,
            rgba=[0.95, 0.85, 0.3, 1],
        )

    def _add_servo(self, spec: mujoco.MjSpec, site: str, axis: str) -> None:
        gain = (1.0 if axis == "yaw" else self.MASS) / self.LAG
        gear = [float(axis == name) for name in ("x", "y", "z", "roll", "pitch", "yaw")]
        servo = spec.add_actuator(name=f"{axis}_servo", target=site, trntype=mujoco.mjtTrn.mjTRN_SITE, gear=gear)
        servo.biastype = mujoco.mjtBias.mjBIAS_AFFINE
        servo.gainprm[0], servo.biasprm[2] = gain, -gain

    def reset(self, model: mujoco.MjModel, data: mujoco.MjData, x: float, y: float, yaw: float) -> None:
        values = {"x": x, "y": y, "z": 0.0, "yaw": yaw}
        data.qpos[:] = [values[axis] for axis in self._axes]

    def control(self, model: mujoco.MjModel, data: mujoco.MjData, command: Array) -> None:
        data.ctrl[:] = command

    def pose(self, data: mujoco.MjData) -> Array:
        values = dict(zip(self._axes, data.qpos, strict=False))
        return np.array([values["x"], values["y"], self._height + values.get("z", 0.0), values["yaw"]])

    def twist(self, data: mujoco.MjData) -> Array:
        cos, sin = np.cos(data.qpos[len(self._axes) - 1]), np.sin(data.qpos[len(self._axes) - 1])
        twist = data.qvel[: len(self._axes)].copy()
        twist[0], twist[1] = cos * data.qvel[0] + sin * data.qvel[1], cos * data.qvel[1] - sin * data.qvel[0]
        return twist

    def fallen(self, data: mujoco.MjData) -> bool:
        return False


class WheeledBody(PlanarBody):
    """A holonomic wheeled base that commands (vx, vy, wz)."""


class DroneBody(PlanarBody):
    """A drone with gravity compensated that commands (vx, vy, vz, wz)."""

    radius = 0.2
    action = ActionSpec(
        names=("vx", "vy", "vz", "wz"),
        units=("m/s", "m/s", "m/s", "rad/s"),
        frame="base_link",
        low=(-0.3, -0.2, -0.3, -0.7),
        high=(0.6, 0.2, 0.3, 0.7),
    )
    _axes = ("x", "y", "z", "yaw")
    _height = 1.0

    def _add_shape(self, body: mujoco.MjsBody) -> None:
        body.gravcomp = 1.0
        size = [self.radius, self.radius, 0.06]
        body.add_geom(
            name="hull",
            type=mujoco.mjtGeom.mjGEOM_ELLIPSOID,
            size=size,
            group=COLLISION_GROUP,
            rgba=[0.5, 0.3, 0.6, 1],
        )
