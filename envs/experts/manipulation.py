"""Demonstrator for the robosuite tasks. It looks at the present state only, so its behaviour can be cloned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from envs.manipulation import ACTION, ManipulationEnv
from policies.spec import Array

UNIT = np.array([0.05, 0.05, 0.05, 0.5, 0.5, 0.5])  # m and rad that an action of 1 stands for
GAIN = 2.0  # of the way to the goal: pulls harder than the controller would by itself, so noise matters less
DOWN = Rotation.from_quat([1, 0, 0, 0])  # the hand points at the table, its fingers open along y
HOVER = 0.08  # m above the object while the gripper is not above the grasp
ALIGNED = 0.004  # m beside the grasp at which the gripper is all the way down
NEAR = 0.012  # m around the grasp in which the fingers close; twice that while they hold something
SQUEEZE = 0.003  # m, fingers this close to the object's sides hold it
PLACED = 0.03  # m beside the target at which the object may be let go


@dataclass(frozen=True)
class Job:
    """How to grasp an object and where to leave it; lengths in m, angles in rad.

    Args:
        grasp: From the object's centre to the grasp, along its x axis and upwards.
        half_width: Of what is between the fingers.
        period: Turn after which the fingers fit the object again, 0 where any angle fits.
        yaws: Orientations of the object at the target to choose from; none where any will do.
        release: Height of the centre above the target at which to let go, 0 to keep it.
        carry: Height of the centre above the target while the object is not above it.
        slack: Horizontal distance to the target at which the object is all the way down.
        nearer: Shift (2,) of the target towards the robot.
    """

    grasp: tuple[float, float]
    half_width: float
    period: float
    yaws: tuple[float, ...] = ()
    release: float = 0.0
    carry: float = 0.0
    slack: float = 0.0
    nearer: tuple[float, float] = (0.0, 0.0)


JOBS = {
    "Lift": Job(grasp=(0.0, 0.0), half_width=0.021, period=np.pi / 2),
    "Can": Job(  # the middle of its bin is at the end of the arm's reach
        grasp=(0.0, 0.01), half_width=0.025, period=0.0, release=0.075, carry=0.25, slack=0.02, nearer=(-0.04, -0.06)
    ),
    "Square": Job(  # with its handle away from the robot the peg is out of reach
        grasp=(0.06, 0.0),
        half_width=0.016,
        period=np.pi,
        yaws=(np.pi / 2, np.pi, -np.pi / 2),
        release=0.02,
        carry=0.15,
        slack=0.004,
    ),
}


class Expert:
    """Reaches for the object, closes the fingers, carries it to its target, lets go and retreats."""

    def __init__(self, env: ManipulationEnv) -> None:
        self._env = env
        self._job = JOBS[env.task]

    def command(self) -> Array:
        """Return the ``(7,)`` float32 action for the present state."""
        if self._placed():
            return self._action(self._retreat(), 0.0, close=False)
        way, turn = self._to_grasp()
        distance = float(np.linalg.norm(way))
        if distance < 2 * NEAR and self._env.opening < self._job.half_width + SQUEEZE:
            return self._action(*self._carry(), close=True)
        way[2] += np.clip(6 * (np.hypot(*way[:2]) - ALIGNED) + 0.2 * (abs(turn) - 0.2), 0, HOVER)
        return self._action(way, turn, close=distance < NEAR)

    @property
    def _yaw(self) -> float:
        return _yaw(Rotation.from_quat(self._env.object_pose[3:]))

    @property
    def _hand(self) -> Rotation:
        """Orientation of the hand relative to pointing straight down."""
        return Rotation.from_quat(self._env.pose[3:]) * DOWN.inv()

    def _to_grasp(self) -> tuple[Array, float]:
        """Way (3,) in m and turn in rad from the gripper to the grasp."""
        along, up = self._job.grasp
        point = self._env.object_pose[:3] + np.array([along * np.cos(self._yaw), along * np.sin(self._yaw), up])
        hand = _yaw(self._hand)
        return point - self._env.pose[:3], _nearest(self._yaw - hand, self._job.period) if self._job.period else -hand

    def _to_target(self) -> Array:
        """Way (3,) in m from the object to its target."""
        return self._env.target - self._env.object_pose[:3] + np.array([*self._job.nearer, 0.0])

    def _placed(self) -> bool:
        x, y, z = self._to_target()
        return bool(self._job.release > 0 and np.hypot(x, y) < PLACED and -z < self._job.release + 0.015)

    def _retreat(self) -> Array:
        """Straight up, but not before the fingers have let go."""
        free = np.clip((self._env.opening - self._job.half_width) / SQUEEZE - 1, 0, 1)
        return np.array([0.0, 0.0, free * (self._env.target[2] + self._job.carry - self._env.pose[2])])

    def _carry(self) -> tuple[Array, float]:
        """Way and turn along an arch: up first, across, and down once the object is above its target."""
        way, job = self._to_target(), self._job
        turn = min((_nearest(yaw - self._yaw, 2 * np.pi) for yaw in job.yaws), key=abs, default=0.0)
        off = 10 * (np.hypot(*way[:2]) - job.slack) + abs(turn) - 0.1
        way[2] += job.release + np.clip(off, 0, job.carry - job.release)
        way[:2] *= np.clip((0.07 - way[2]) / 0.05, 0, 1)
        return way, turn

    def _action(self, way: Array, turn: float, *, close: bool) -> Array:
        level = Rotation.from_euler("z", _yaw(self._hand) + turn)
        rotation = (level * self._hand.inv()).as_rotvec()
        pull = GAIN * np.concatenate([way, rotation]) / UNIT
        pull[:3] /= max(1.0, float(np.linalg.norm(pull[:3])))
        return ACTION.clip(np.append(pull, 1.0 if close else -1.0)).astype(np.float32)


def _yaw(rotation: Rotation) -> float:
    x, y, _ = rotation.apply([1.0, 0.0, 0.0])
    return float(np.arctan2(y, x))


def _nearest(angle: float, period: float) -> float:
    """The same angle up to multiples of the period, nearest to zero."""
    return float((angle + period / 2) % period - period / 2)


DRIVERS = {"expert": Expert}
