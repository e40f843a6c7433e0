"""kinoflow/Maze-*: OGBench's point mazes; kinoflow/PuckMaze-*: the same mazes for a puck that has inertia.

The point robot and everything around it are those of OGBench (arXiv 2410.20092): layouts, tasks, goal tolerance and
step limit. It stops and turns at once, so whoever knows the way arrives. A puck on ice does not: it needs room to turn,
and to touch a wall is a crash.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import mujoco
import numpy as np

from envs.mazes import CELL, Maze
from envs.racing_line import racing_drive
from policies.spec import ActionSpec, Array, ContractError, Feature, Spec

STEP = 0.1  # s
TIME_LIMIT = 100.0  # s, OGBench's 1000 steps
SLACK = 1.2  # times what the expert of a puck needs is its limit
RADIUS = 0.7  # m, of either robot
ARRIVED = 1.0  # m from the goal, OGBench's tolerance
SPREAD = 1.0  # m, by how much start and goal are off the middle of their cells at most
SPEED = 2.0  # m/s per axis, of the point
ACCELERATION = 0.5  # m/s^2 per axis, of the puck
PHYSICS_DT = 0.02  # s


class MazeEnv(gymnasium.Env[Any, Array]):
    """Get a point robot from one place of a maze to another.

    Observation (float32): ``position`` (2,) and ``goal`` (2,) in m. Action: velocity (vx, vy) in m/s; walls stop the
    robot but do no harm. Success: within 1 m of the goal, which ends the episode, as do 1000 steps. The reward is
    OGBench's: 1 at the goal.

    Args:
        layout: ``"medium"``, ``"large"`` or ``"giant"``.
        task: One of OGBench's five, 1 to 5; by default ``seed % 5 + 1``.

    Raises:
        ImportError: OGBench is not installed.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own convention)
    step_dt = STEP
    execute, objective, noise = 1, "success", 0.5
    radius: ClassVar[float] = RADIUS
    states: ClassVar[tuple[str, ...]] = ("position",)
    """The features that make up the state of the robot, the position first."""
    action: ClassVar[ActionSpec] = ActionSpec(("vx", "vy"), ("m/s", "m/s"), "map", (-SPEED,) * 2, (SPEED,) * 2)

    def __init__(self, layout: str = "giant", task: int | None = None) -> None:
        self.game = _game(layout)
        self.maze = Maze.of_blocks(self.game.maze_map[1:-1, 1:-1] == 1)
        if task is not None and not 1 <= task <= len(self.game.task_infos):
            raise ContractError(f"there is no task {task}; choose 1 to {len(self.game.task_infos)}")
        self.task, self._chosen = task or 1, task
        observed = [Feature(name, (2,), "m" if name == "position" else "m/s", "map") for name in self.states]
        self.contract = Spec(
            (*observed, Feature("goal", (2,), "m", "map")), self.action, 1 / STEP, history=1, horizon=1
        )
        self.action_space = gymnasium.spaces.Box(
            np.array(self.action.low, np.float32), np.array(self.action.high, np.float32)
        )
        self.observation_space = gymnasium.spaces.Dict(
            {
                feature.name: gymnasium.spaces.Box(-np.inf, np.inf, feature.shape)
                for feature in self.contract.observations
            }
        )
        self.goal, self.time, self.time_limit = np.zeros(2), 0.0, TIME_LIMIT

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Place robot and goal as OGBench does, but by the seed alone.

        Args:
            seed: Decides the task, if none was chosen, and by how much start and goal are off the middle of a cell.
            options: ``"start"`` and ``"goal"`` (2,) in m replace those of the task.
        """
        super().reset(seed=seed)
        count = len(self.game.task_infos)
        self.task = self._chosen or 1 + (int(self.np_random.integers(count)) if seed is None else seed % count)
        task = self.game.task_infos[self.task - 1]
        start, goal = (
            np.array(task[name]) + self.np_random.uniform(-SPREAD, SPREAD, 2) for name in ("init_xy", "goal_xy")
        )
        given = options or {}
        self.goal, self.time = np.asarray(given.get("goal", goal), float), 0.0
        self._place(np.asarray(given.get("start", start), float))
        return self.observe(), self._info()

    def _place(self, start: Array) -> None:
        self.game.reset()
        self.game.set_goal(goal_xy=self.goal)
        self.game.set_xy(start)

    def step(self, action: Array) -> tuple[dict[str, Array], float, bool, bool, dict[str, Any]]:
        command = np.asarray(action, np.float32)
        if command.shape != (2,) or not np.isfinite(command).all():
            raise ContractError(f"action must be 2 finite values {self.action.names}, got {action}")
        self._move(np.asarray(self.action.clip(command), float))
        self.time += STEP
        success = self.success
        ended = success or self.failed
        return self.observe(), float(success), ended, self.time >= self.time_limit - 1e-9, self._info()

    def _move(self, command: Array) -> None:
        self.game.step(command / SPEED)

    @property
    def pose(self) -> Array:
        """``(2,)`` position in m."""
        return np.array(self.game.data.qpos[:2])

    @property
    def state(self) -> Array:
        """State of the robot: position and, of a puck, velocity."""
        return self.pose

    @property
    def success(self) -> bool:
        """Whether the robot is at the goal."""
        return not self.failed and bool(np.linalg.norm(self.pose - self.goal) <= ARRIVED)

    @property
    def failed(self) -> bool:
        """Whether the episode is lost."""
        return False

    @property
    def rest(self) -> Array:
        """Command that does nothing."""
        return np.zeros(2, np.float32)

    @property
    def metrics(self) -> dict[str, float]:
        """Whether the robot crashed, and how far from the goal it is in m."""
        return {"crash": float(self.failed), "final_distance_m": round(float(np.linalg.norm(self.pose - self.goal)), 3)}

    def observe(self) -> dict[str, Array]:
        """Return the current observation."""
        parts = self.state.astype(np.float32).reshape(-1, 2)
        return {**dict(zip(self.states, parts, strict=True)), "goal": self.goal.astype(np.float32)}

    def _info(self) -> dict[str, Any]:
        return {"success": self.success, "task": self.task, **self.metrics}


class PuckMazeEnv(MazeEnv):
    """Get a puck on ice from one place of a maze to another without touching a wall.

    As in `MazeEnv`, with ``velocity`` (2,) in m/s in the observation, accelerations (ax, ay) of up to 0.5 m/s^2 as
    actions, on MuJoCo physics without friction. An episode also ends with a crash, which any touch of a wall is, and
    when a fifth more time has passed than an expert needs: to creep is no way to steer a puck.
    """

    states = ("position", "velocity")
    noise = 0.3
    action = ActionSpec(("ax", "ay"), ("m/s^2", "m/s^2"), "map", (-ACCELERATION,) * 2, (ACCELERATION,) * 2)

    def __init__(self, layout: str = "giant", task: int | None = None) -> None:
        super().__init__(layout, task)
        self.model = self._scene().compile()
        self.data = mujoco.MjData(self.model)
        self._crashed = False

    def _scene(self) -> mujoco.MjSpec:
        spec = mujoco.MjSpec()
        spec.option.timestep = PHYSICS_DT
        for low_x, low_y, high_x, high_y in self.maze.walls + 1e-3 * np.array([-1, -1, 1, 1]):  # outer ones are lines
            spec.worldbody.add_geom(
                type=mujoco.mjtGeom.mjGEOM_BOX,
                pos=[(low_x + high_x) / 2, (low_y + high_y) / 2, CELL / 8],
                size=[(high_x - low_x) / 2, (high_y - low_y) / 2, CELL / 8],
            )
        puck = spec.worldbody.add_body(name="puck")
        puck.gravcomp = 1.0
        puck.add_geom(type=mujoco.mjtGeom.mjGEOM_CYLINDER, size=[RADIUS, 0.2, 0], pos=[0, 0, CELL / 8], mass=1.0)
        for name, axis in (("x", [1, 0, 0]), ("y", [0, 1, 0])):
            puck.add_joint(name=name, type=mujoco.mjtJoint.mjJNT_SLIDE, axis=axis)
            motor = spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
            motor.gainprm[0] = 1.0  # newton per m/s^2 for one kilogram
        return spec

    def _place(self, start: Array) -> None:
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = start
        mujoco.mj_forward(self.model, self.data)
        self._crashed = bool(self.data.ncon)
        self.drive = racing_drive(self.maze, start, self.goal, ACCELERATION, STEP)
        self.time_limit = SLACK * float(self.drive.x[-1])

    def _move(self, command: Array) -> None:
        self.data.ctrl[:] = command
        for _ in range(round(STEP / PHYSICS_DT)):
            mujoco.mj_step(self.model, self.data)
            self._crashed = self._crashed or bool(self.data.ncon)

    @property
    def pose(self) -> Array:
        return np.array(self.data.qpos)

    @property
    def state(self) -> Array:
        return np.concatenate([self.data.qpos, self.data.qvel])

    @property
    def failed(self) -> bool:
        return self._crashed


def _game(layout: str) -> Any:
    try:
        import ogbench  # noqa: F401 (registers its environments)
    except ImportError as error:
        raise ImportError(f"mazes need OGBench ({error}); install it: pip install 'kinoflow[maze]'") from error
    try:
        return gymnasium.make(f"pointmaze-{layout}-v0", disable_env_checker=True).unwrapped
    except gymnasium.error.Error as error:
        raise ContractError(f"there is no layout '{layout}'; choose medium, large or giant") from error


for _layout in ("medium", "large", "giant"):
    gymnasium.register(f"kinoflow/Maze-{_layout}-v0", entry_point="envs.maze:MazeEnv", kwargs={"layout": _layout})
    gymnasium.register(
        f"kinoflow/PuckMaze-{_layout}-v0", entry_point="envs.maze:PuckMazeEnv", kwargs={"layout": _layout}
    )
