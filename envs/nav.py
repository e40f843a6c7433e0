"""kinoflow/Nav-v0: drive to a goal point in a cluttered room, on MuJoCo physics."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import gymnasium
import mujoco
import numpy as np

from envs.bodies import (
    COLLISION_GROUP,
    CONTROL_DT,
    PHYSICS_DT,
    SCENE_GROUP,
    VISUAL_GROUP,
    Body,
    DroneBody,
    WheeledBody,
)
from envs.pictures import SceneRenderer
from envs.rooms import Room, sample_room
from policies.spec import Array, ContractError, Feature, Spec

Embodiment = Literal["wheeled", "drone", "g1"]

BEAMS = 72
SCAN_RANGE = 6.0  # m
GOAL_RADIUS = 0.3  # m
GOAL_SPEED = 0.1  # m/s
STRIDE = 1.0  # s, velocities are means over one stride of a walking robot: its sway is as large as its speed
POLICY_HZ = 10.0
TIME_LIMIT = 60.0  # s
FILM_SIZE = (480, 640)  # pixels


def _g1(render: bool) -> Body:
    return importlib.import_module("envs.g1.walker").G1Body(render_meshes=render)


BODIES: dict[str, Callable[[bool], Body]] = {
    "wheeled": lambda render: WheeledBody(),
    "drone": lambda render: DroneBody(),
    "g1": _g1,  # loaded on demand: its model is fetched, not vendored
}


class NavEnv(gymnasium.Env[Any, Array]):
    """Reach a goal point without touching anything.

    Observation (float32): ``goal`` (2,) or, for the drone, (3,), in m, base frame; ``twist`` in m/s and rad/s, ordered
    like the action, mean over the last second; ``scan`` (72,), ranges in m over 360 degrees, beam 0 pointing
    backwards, counter-clockwise.
    Action: body velocity command (vx, vy, wz), for the drone (vx, vy, vz, wz).

    An episode succeeds when the robot is within 0.3 m of the goal and, over the last second, slower than 0.1 m/s. It
    ends early on a collision or a fall and is truncated after 60 s. The reward is the progress towards the goal in
    metres, plus 1 on success, minus 1 on a collision or fall.

    Args:
        embodiment: ``"wheeled"``, ``"drone"`` or ``"g1"`` (a walking Unitree G1).
        step_hz: Steps per simulated second: 10, the rate policies plan at, or 50, the rate commands leave at.
        render_mode: ``"rgb_array"`` for pictures; needs an OpenGL library.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (Gymnasium's own convention)
    COMMAND: ClassVar[dict[str, float]] = {"step_hz": 50.0}
    execute, objective, noise = 1, "success", 0.35
    radius: ClassVar[float] = GOAL_RADIUS

    def __init__(
        self, embodiment: Embodiment = "wheeled", step_hz: float = POLICY_HZ, render_mode: str | None = None
    ) -> None:
        if embodiment not in BODIES:
            raise ValueError(f"unknown embodiment '{embodiment}'; choose one of {sorted(BODIES)}")
        ticks = 1 / (step_hz * CONTROL_DT)
        if ticks < 1 or abs(ticks - round(ticks)) > 1e-9:
            raise ValueError(f"step_hz={step_hz} does not divide the command rate of {1 / CONTROL_DT:g} Hz")
        self.render_mode = render_mode
        self.embodiment = embodiment
        self.step_dt = 1 / step_hz
        self.body = BODIES[embodiment](render_mode is not None)
        self.contract = self._contract()
        self._ticks = round(ticks)
        self._flies = "vz" in self.body.action.names
        low, high = np.array((self.body.action.low, self.body.action.high), np.float32)
        self.action_space = gymnasium.spaces.Box(low, high, dtype=np.float32)
        self.observation_space = gymnasium.spaces.Dict(
            {feature.name: _space(feature) for feature in self.contract.observations}
        )
        self._renderer: SceneRenderer | None = None

    def _contract(self) -> Spec:
        action = self.body.action
        return Spec(
            observations=(
                Feature("goal", (3 if "vz" in action.names else 2,), "m", "base_link"),
                Feature("twist", (action.dim,), "m/s, rad/s", "base_link"),
                Feature("scan", (BEAMS,), "m", "base_link"),
            ),
            action=action,
            rate_hz=POLICY_HZ,
            history=1,
            horizon=1,
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        super().reset(seed=seed)
        self.room = self._sample(options or {})
        self._build()
        self.goal = np.array(self.room.goal)
        self.time = 0.0
        self.travelled = 0.0
        self.collision = False
        self._place()
        strides = round(STRIDE / CONTROL_DT)
        self._trail = np.tile(self.pose[:3], (strides + 1, 1))
        self._twists = np.zeros((strides, self.body.action.dim))
        return self.observe(), self._info()

    def _sample(self, options: Mapping[str, Any]) -> Room:
        return sample_room(self.np_random, (0.6, 1.6) if self._flies else (0.0, 0.0))

    def _place(self) -> None:
        x, y, yaw = self.room.start
        self.body.reset(self.model, self.data, x, y, yaw)
        mujoco.mj_forward(self.model, self.data)

    def _furnish(self, spec: mujoco.MjSpec) -> None:
        self.room.add_to(spec)
        self.body.add_to(spec)
        spec.option.timestep = PHYSICS_DT
        if self.render_mode:
            spec.visual.global_.offheight, spec.visual.global_.offwidth = FILM_SIZE

    def _build(self) -> None:
        spec = mujoco.MjSpec()
        self._furnish(spec)
        self.model = spec.compile()
        self.data = mujoco.MjData(self.model)
        self._robot = self.model.geom_bodyid > 0
        self._ignored = (
            mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_GEOM, "floor") if self.body.touches_floor else -1
        )
        angles = -np.pi + 2 * np.pi / BEAMS * np.arange(BEAMS)
        self._beams = np.stack([np.cos(angles), np.sin(angles), np.zeros(BEAMS)], -1)
        self._seen = np.zeros(6, np.uint8)
        self._seen[SCENE_GROUP] = 1
        self._hit, self._ranges = np.zeros(BEAMS, np.int32), np.zeros(BEAMS)

    @property
    def pose(self) -> Array:
        """``(4,)``: x, y, z in m and yaw in rad of the robot, world frame."""
        return self.body.pose(self.data)

    @property
    def state(self) -> Array:
        """Positions and velocities of the simulation, ``(nq + nv,)``."""
        return np.concatenate([self.data.qpos, self.data.qvel])

    @property
    def speed(self) -> float:
        """Mean speed in m/s over the last second."""
        return float(np.linalg.norm(self._trail[-1] - self._trail[0]) / STRIDE)

    @property
    def twist(self) -> Array:
        """Mean velocity ``(A,)`` in the base frame over the last second, ordered like the action."""
        return self._twists.mean(0)

    @property
    def distance(self) -> float:
        """Distance to the goal in metres; on the floor the height does not count."""
        dims = 3 if self._flies else 2
        return float(np.linalg.norm(self.goal[:dims] - self.pose[:dims]))

    @property
    def shortest(self) -> float:
        """Length in metres of the shortest route from the start to the goal."""
        routes = self.room.map.routes(self.goal[:2], comfortable=False)
        return routes.length(np.array(self.room.start[:2]))

    @property
    def success(self) -> bool:
        """Whether the robot rests at the goal."""
        return not self.failed and self.distance < self.radius and self.speed < GOAL_SPEED

    @property
    def failed(self) -> bool:
        """Whether the robot has touched something or fallen."""
        return self.collision or self.body.fallen(self.data)

    @property
    def rest(self) -> Array:
        """Command that stops the robot."""
        return np.zeros(self.body.action.dim, np.float32)

    @property
    def metrics(self) -> dict[str, float]:
        """What came of the episode so far; lengths in metres, SPL as in arXiv 1807.06757."""
        fall, success, shortest = self.body.fallen(self.data), self.success, self.shortest
        return {
            "collision": float(self.collision and not fall),
            "timeout": float(not success and not self.failed),
            "fall": float(fall),
            "spl": round(success * shortest / max(shortest, self.travelled), 4),
            "travelled_m": round(self.travelled, 3),
            "final_distance_m": round(self.distance, 3),
        }

    def step(self, action: Array) -> tuple[dict[str, Array], float, bool, bool, dict[str, Any]]:
        command = np.asarray(action, np.float32)
        if command.shape != (self.body.action.dim,) or not np.isfinite(command).all():
            raise ContractError(
                f"action must be {self.body.action.dim} finite values {self.body.action.names}, got {action}"
            )
        command = self.body.action.clip(command)
        before = self.distance
        for _ in range(self._ticks):
            self._tick(command)
        success, failed = self.success, self.failed
        reward = before - self.distance + float(success) - float(failed)
        return self.observe(), reward, success or failed, self.time >= TIME_LIMIT - 1e-9, self._info()

    def _tick(self, command: Array) -> None:
        self.body.control(self.model, self.data, command)
        mujoco.mj_step(self.model, self.data, round(CONTROL_DT / PHYSICS_DT))
        self.time += CONTROL_DT
        self.collision = self.collision or self._touches()
        centre = self._trail.mean(0)
        for recent, newest in ((self._trail, self.pose[:3]), (self._twists, self.body.twist(self.data))):
            recent[:-1] = recent[1:]
            recent[-1] = newest
        self.travelled += float(np.linalg.norm((self._trail.mean(0) - centre)[:2]))

    def _touches(self) -> bool:
        pairs = self.data.contact.geom
        mixed = self._robot[pairs[:, 0]] != self._robot[pairs[:, 1]]
        return bool((mixed & (pairs != self._ignored).all(1)).any())

    def observe(self) -> dict[str, Array]:
        """Return the current observation."""
        pose = self.pose
        cos, sin = np.cos(pose[3]), np.sin(pose[3])
        to_base = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
        goal = to_base @ (self.goal - pose[:3])
        rays = (self._beams @ to_base).ravel()
        mujoco.mj_multiRay(
            self.model, self.data, pose[:3], rays, self._seen, 1, -1, self._hit, self._ranges, None, BEAMS, SCAN_RANGE
        )
        scan = np.where(self._hit < 0, SCAN_RANGE, self._ranges)
        return {
            "goal": goal[: 3 if self._flies else 2].astype(np.float32),
            "twist": self.twist.astype(np.float32),
            "scan": np.clip(scan, 0, SCAN_RANGE).astype(np.float32),
        }

    def _info(self) -> dict[str, Any]:
        return {
            "success": self.success,
            "collision": self.collision,
            "fall": self.body.fallen(self.data),
            "distance": self.distance,
            "travelled": self.travelled,
        }

    def render(self) -> Array:
        """Return a ``(480, 640, 3)`` uint8 picture from a camera that follows the robot."""
        x, y, _, yaw = self.pose
        camera = mujoco.MjvCamera()
        camera.lookat[:] = (x, y, 0.6)
        camera.distance, camera.elevation, camera.azimuth = 4.0, -35.0, np.degrees(yaw)
        shape = VISUAL_GROUP if self.embodiment == "g1" else COLLISION_GROUP
        return self._shoot(self.data, camera, (SCENE_GROUP, VISUAL_GROUP, shape), FILM_SIZE)

    def _shoot(self, *view: Any, **kwargs: Any) -> Array:
        self._renderer = self._renderer or SceneRenderer()
        return self._renderer.shoot(self.model, *view, **kwargs)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


def _space(feature: Feature) -> gymnasium.spaces.Box:
    if feature.dtype == "uint8":
        return gymnasium.spaces.Box(0, 255, feature.shape, np.uint8)
    low, high = (0.0, SCAN_RANGE) if feature.name == "scan" else (-np.inf, np.inf)
    return gymnasium.spaces.Box(low, high, feature.shape, np.float32)


gymnasium.register("kinoflow/Nav-v0", entry_point="envs.nav:NavEnv")
