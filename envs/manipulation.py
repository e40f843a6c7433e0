"""Tabletop manipulation: the robosuite tasks Lift, Can and Square, as robomimic benchmarks them (arXiv 2108.03298).

A Panda arm follows pose increments (robosuite's operational space controller, arXiv 2009.12293) at 20 Hz.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import gymnasium
import mujoco
import numpy as np

from policies.spec import ActionSpec, Array, ContractError, Feature, Spec

Task = Literal["Lift", "Can", "Square"]

TASKS = {"Lift": "Lift", "Can": "PickPlaceCan", "Square": "NutAssemblySquare"}
POLICY_HZ = 20.0
TIME_LIMIT = 20.0  # s, robomimic's 400 steps
PICTURE = (84, 84)
CAMERAS = ("agentview", "robot0_eye_in_hand")
MODEL_SEED = 0  # robosuite draws the size of Lift's cube while it builds the model

# robosuite greets with warnings about its own optional extras
logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)

ACTION = ActionSpec(
    ("dx", "dy", "dz", "drx", "dry", "drz", "gripper_close"), ("1",) * 7, "robot0_base", (-1.0,) * 7, (1.0,) * 7
)
PROPRIOCEPTION = (
    Feature("robot0_eef_pos", (3,), "m", "world"),
    Feature("robot0_eef_quat", (4,), "1", "world"),
    Feature("robot0_gripper_qpos", (2,), "m", "robot0_right_hand"),
)
POSES = Feature("object", (14,), "m, 1", "robot0_eef, world")
OBJECT = {"Lift": Feature("object", (10,), "m, 1", "world"), "Can": POSES, "Square": POSES}
SIDES = ("front_camera", "side_camera")  # they look along x and along y
SIGHTINGS = tuple(Feature(f"{camera}_object", (6,), "m", "world") for camera in SIDES)
IMAGES = tuple(Feature(f"{camera}_image", (3, *PICTURE), "1", camera) for camera in CAMERAS)


class ManipulationEnv(gymnasium.Env[Any, Array]):
    """Lift a cube, move a can into its bin, or put a square nut over its peg.

    Observation (float32, robomimic's names): ``object``, for Lift position (3,), quaternion (4,) and the way from the
    gripper to the cube (3,) in the world frame, for Can and Square the pose in the gripper frame, then the pose in the
    world frame, (3,) and (4,) each; ``robot0_eef_pos`` (3,); ``robot0_eef_quat`` (4,); ``robot0_gripper_qpos`` (2,),
    0.04 and -0.04 when open. Quaternions are (x, y, z, w). With ``images`` also ``agentview_image`` and
    ``robot0_eye_in_hand_image``, (3, 84, 84) in [0, 1], upright and without shadows.

    Action (7,) in [-1, 1]: where the controller is to pull the gripper from its present pose, in the frame of the
    robot's base, whose axes are those of the world. 1 stands for 0.05 m in the first three, 0.5 rad of the rotation
    vector in the next three, robosuite's defaults. The sign of the last closes (+) or opens (-) the fingers.

    Success is robosuite's own: the cube's centre is 4 cm above the table; the can is in its bin, or the nut around and
    low on its peg, and its centre 4.2 cm from the gripper's. It ends the episode, with reward 1; otherwise 20 s do.
    Observations are of the present state, as in robomimic's datasets; what robosuite's ``step`` returns is older.

    Args:
        task: ``"Lift"``, ``"Can"`` or ``"Square"``.
        images: Also observe pictures; a step then takes several times as long.
        depth_error: Where it is not 0, two cameras see the object instead: ``front_camera_object`` and
            ``side_camera_object``, its position (3,) and the way from the gripper to it (3,) in the world frame. Each
            is exact but along its line of sight, x for the front and y for the side, where it is wrong by one number
            for the whole episode, drawn with this standard deviation in m: complementary modalities.
        render_mode: ``"rgb_array"``, for tools that ask; `render` works either way. Pictures need an OpenGL library.

    Raises:
        ImportError: robosuite is not installed.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": POLICY_HZ}  # noqa: RUF012 (Gymnasium's own convention)
    step_dt = 1 / POLICY_HZ
    execute, objective, noise = 8, "success", 0.1

    def __init__(
        self, task: Task = "Lift", images: bool = False, depth_error: float = 0.0, render_mode: str | None = None
    ) -> None:
        if task not in TASKS:
            raise ValueError(f"unknown task '{task}'; choose one of {sorted(TASKS)}")
        self.task, self.images, self.depth_error, self.render_mode = task, images, depth_error, render_mode
        self._errors = np.zeros(2)
        self._arguments = {
            "robots": ["Panda"],
            "control_freq": int(POLICY_HZ),
            **dict.fromkeys(("has_renderer", "has_offscreen_renderer", "use_camera_obs", "hard_reset"), False),
            "ignore_done": True,
            "renderer": "mujoco",
        }
        with legacy_seed(MODEL_SEED):
            self.simulation = _robosuite().make(TASKS[task], **self._arguments)
        features = (*(SIGHTINGS if depth_error else (OBJECT[task],)), *PROPRIOCEPTION, *(IMAGES if images else ()))
        self.contract = Spec(features, ACTION, POLICY_HZ, history=1, horizon=1)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (ACTION.dim,))
        self.observation_space = gymnasium.spaces.Dict(
            {feature.name: gymnasium.spaces.Box(-np.inf, np.inf, feature.shape) for feature in features}
        )
        self.time = 0.0
        self._renderers: dict[tuple[int, int], mujoco.Renderer] = {}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        super().reset(seed=seed)
        with legacy_seed(int(self.np_random.integers(2**32))):
            self.simulation.reset()
        self._errors = self.depth_error * self.np_random.standard_normal(2)
        self.time = 0.0
        self._settle()
        self._start = self._highest = float(self.object_pose[2])
        return self.observe(), self._info()

    def step(self, action: Array) -> tuple[dict[str, Array], float, bool, bool, dict[str, Any]]:
        command = np.asarray(action, np.float32)
        if command.shape != (ACTION.dim,) or not np.isfinite(command).all():
            raise ContractError(f"action must be {ACTION.dim} finite values {ACTION.names}, got {action}")
        self.simulation.step(ACTION.clip(command).astype(float))
        self.time += self.step_dt
        self._settle()
        self._highest = max(self._highest, float(self.object_pose[2]))
        return self.observe(), float(self.success), self.success, self.time >= TIME_LIMIT - 1e-9, self._info()

    def _settle(self) -> None:
        """Bring everything that is derived from the positions up to date; MuJoCo leaves it one time step behind."""
        mujoco.mj_kinematics(*self.physics)
        mujoco.mj_camlight(*self.physics)
        self.simulation._update_observables(force=True)  # relative poses are made of the previous absolute ones
        self._sensed = self.simulation._get_observations(force_update=True)

    @property
    def physics(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """MuJoCo's own objects below robosuite's."""
        return self.simulation.sim.model._model, self.simulation.sim.data._data

    @property
    def object_pose(self) -> Array:
        """``(7,)`` position in m and quaternion (x, y, z, w) of the cube, can or nut, world frame."""
        return self._sensed["object-state"][:7] if self.task == "Lift" else self._sensed["object-state"][7:]

    @property
    def opening(self) -> float:
        """Mean distance in m of the two fingers from the middle: 0.04 when open."""
        return float(np.abs(self._sensed["robot0_gripper_qpos"]).mean())

    @property
    def target(self) -> Array:
        """``(3,)`` where the object is to go, in m, world frame; for Lift above its place on the table."""
        if self.task == "Lift":
            return np.array([*self.object_pose[:2], self.simulation.table_offset[2] + 0.1])
        if self.task == "Can":
            return np.array(self.simulation.target_bin_placements[self.simulation.object_id])
        return np.array(self.simulation.sim.data.body_xpos[self.simulation.peg1_body_id])

    @property
    def state(self) -> Array:
        """Time, positions and velocities of the simulation, ``(1 + nq + nv,)``: robomimic's ``states``."""
        return np.array(self.simulation.sim.get_state().flatten())

    @property
    def pose(self) -> Array:
        """``(7,)`` position of the gripper in m and quaternion (x, y, z, w) of the hand, world frame."""
        return np.concatenate([self._sensed["robot0_eef_pos"], self._sensed["robot0_eef_quat"]])

    @property
    def rest(self) -> Array:
        """Action that keeps the gripper where it is."""
        return np.zeros(ACTION.dim, np.float32)

    @property
    def success(self) -> bool:
        """Whether the task is done, by robosuite's own check."""
        return bool(self.simulation._check_success())

    @property
    def failed(self) -> bool:
        """Whatever fell can be picked up again."""
        return False

    @property
    def metrics(self) -> dict[str, float]:
        """How far the object was lifted at best, in metres: tells a failed grasp from a failed placement."""
        return {"lifted_m": round(self._highest - self._start, 4)}

    @property
    def robomimic(self) -> dict[str, str]:
        """What robomimic's tools need for playback: attribute ``env_args`` of a file, ``model_file`` of an episode."""
        arguments = {"env_name": TASKS[self.task], "type": 1, "env_version": _robosuite().__version__}
        arguments["env_kwargs"] = self._arguments
        return {"env_args": json.dumps(arguments), "model_file": self.simulation.sim.model.get_xml()}

    def observe(self) -> dict[str, Array]:
        """Return the current observation."""
        observed = self._sightings() if self.depth_error else {OBJECT[self.task].name: self._sensed["object-state"]}
        observed |= {feature.name: self._sensed[feature.name] for feature in PROPRIOCEPTION}
        observed = {name: np.array(value, np.float32) for name, value in observed.items()}
        for feature in IMAGES if self.images else ():
            picture = np.moveaxis(self._picture(feature.frame, PICTURE), -1, 0)
            observed[feature.name] = picture.astype(np.float32) / np.float32(255)
        return observed

    def _sightings(self) -> dict[str, Array]:
        seen = self.object_pose[:3] + np.eye(2, 3) * self._errors[:, None]
        ways = seen - self._sensed["robot0_eef_pos"]
        return {feature.name: np.concatenate(pair) for feature, *pair in zip(SIGHTINGS, seen, ways, strict=True)}

    def _info(self) -> dict[str, Any]:
        return {"success": self.success, **self.metrics}

    def render(self) -> Array:
        """Return a ``(480, 640, 3)`` uint8 picture from the camera in front of the robot."""
        return self._picture(CAMERAS[0], (480, 640))

    def _picture(self, camera: str, size: tuple[int, int]) -> Array:
        # not through robosuite: closing one of its cameras silently turns the pictures of all others into noise
        model, data = self.physics
        renderer = self._renderers.get(size) or self._renderers.setdefault(size, _renderer(model, size))
        option = mujoco.MjvOption()
        option.geomgroup[0] = 0  # collision shapes
        renderer.update_scene(data, camera, option)
        renderer.scene.flags[int(mujoco.mjtRndFlag.mjRND_SHADOW)] = 0  # slow in software
        return renderer.render()

    def close(self) -> None:
        while self._renderers:
            self._renderers.popitem()[1].close()
        self.simulation.close()


@contextmanager
def legacy_seed(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, which is what robosuite draws from, and give its state back afterwards."""
    saved = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(saved)


def _renderer(model: mujoco.MjModel, size: tuple[int, int]) -> mujoco.Renderer:
    try:
        return mujoco.Renderer(model, *size)
    except Exception as error:  # MuJoCo raises whatever its OpenGL loader raises
        raise RuntimeError(
            f"no picture can be rendered ({error}); on Debian or Ubuntu: apt-get install libegl1 libgl1, "
            "then set MUJOCO_GL=egl before starting Python"
        ) from error


def _robosuite() -> Any:
    try:
        import robosuite
    except ImportError as error:
        raise ImportError(f"robosuite is missing ({error}); install it: pip install 'kinoflow[robosuite]'") from error
    return robosuite


for _task in TASKS:
    for _id, _arguments in ((_task, {}), (f"{_task}Pixels", {"images": True})):
        gymnasium.register(
            f"kinoflow/{_id}-v0", "envs.manipulation:ManipulationEnv", kwargs={"task": _task, **_arguments}
        )
gymnasium.register(
    "kinoflow/CanCameras-v0", "envs.manipulation:ManipulationEnv", kwargs={"task": "Can", "depth_error": 0.03}
)
