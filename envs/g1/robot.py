"""The Unitree G1 as a MuJoCo specification that can be attached to any scene."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mujoco

from envs.g1.assets import REMEDY, AssetError

PREFIX = "g1/"
BASE_JOINT = "floating_base_joint"
FOOT_FRICTION = 0.6
# Softer contacts, such as MuJoCo's default, let the feet creep: a standing robot would turn by 0.01 rad per second.
FOOT_STIFFNESS = (0.99, 0.995, 0.001, 0.5, 2.0)

# Reflected rotor inertia in kg m^2 and torque limit in N m of each motor.
_MOTORS = {
    "hip_pitch": (0.01018, 88.0),
    "hip_yaw": (0.01018, 88.0),
    "waist_yaw": (0.01018, 88.0),
    "hip_roll": (0.02510, 139.0),
    "knee": (0.02510, 139.0),
    "ankle_pitch": (0.00722, 50.0),
    "ankle_roll": (0.00722, 50.0),
    "waist_roll": (0.00722, 50.0),
    "waist_pitch": (0.00722, 50.0),
    "shoulder_pitch": (0.00361, 25.0),
    "shoulder_roll": (0.00361, 25.0),
    "shoulder_yaw": (0.00361, 25.0),
    "elbow": (0.00361, 25.0),
    "wrist_roll": (0.00361, 25.0),
    "wrist_pitch": (0.00425, 5.0),
    "wrist_yaw": (0.00425, 5.0),
}


def robot_spec(
    path: Path, joints: Sequence[str], stiffness: Sequence[float], damping: Sequence[float], meshes: bool
) -> mujoco.MjSpec:
    """Read the robot and give every joint a position actuator.

    Collision geoms are in group 3, visual geoms in group 2. Lights and sensors of the file are dropped: lighting
    belongs to the scene, and the body reads the state of the simulator directly.

    Args:
        path: MuJoCo model of the robot.
        joints: The actuated joints, in the order of the model.
        stiffness: Proportional gain per joint, in N m / rad.
        damping: Derivative gain per joint, in N m s / rad.
        meshes: Keep the visual meshes. They have no mass and touch nothing, but take about a second to compile.

    Raises:
        AssetError: The joints of the model are not the base followed by ``joints``.
    """
    spec = mujoco.MjSpec.from_file(str(path))
    found, expected = [joint.name for joint in spec.joints], [BASE_JOINT, *joints]
    if found != expected:
        raise AssetError(f"G1 model {path} has the joints {found}, the walking policy expects {expected}; {REMEDY}")
    for unused in [*spec.lights, *spec.sensors]:
        spec.delete(unused)
    if not meshes:
        _drop_meshes(spec)
    for geom in spec.geoms:
        if "_foot" in geom.name:
            geom.priority = 1  # the contact is that of the foot, whatever the floor is made of
            geom.friction[0] = FOOT_FRICTION
            geom.solimp = FOOT_STIFFNESS
    for name, gain, rate_gain in zip(joints, stiffness, damping, strict=True):
        _add_actuator(spec, name, gain, rate_gain)
    return spec


def _drop_meshes(spec: mujoco.MjSpec) -> None:
    visual = [geom for geom in spec.geoms if int(geom.type) == int(mujoco.mjtGeom.mjGEOM_MESH)]
    for unused in [*visual, *spec.meshes, *spec.materials]:
        spec.delete(unused)


def _add_actuator(spec: mujoco.MjSpec, name: str, stiffness: float, damping: float) -> None:
    inertia, torque = _MOTORS[name.removeprefix("left_").removeprefix("right_").removesuffix("_joint")]
    spec.joint(name).armature = inertia
    actuator = spec.add_actuator(
        name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT, forcelimited=True, forcerange=[-torque, torque]
    )
    actuator.set_to_position(kp=stiffness, kv=damping)
