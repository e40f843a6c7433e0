"""Run a bundle on a simulated robot in real time: as three ROS 2 processes, or in this process without ROS 2."""

from __future__ import annotations

import contextlib
import importlib
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from envs.nav import NavEnv
from envs.rooms import HALF_SIZE
from envs.video_nav import VideoNavEnv
from kinoflow.course import Course, draw_goals
from policies.checks import at_least, check_seed
from policies.load import LOADER
from policies.runtime.buffer import ChunkBuffer
from policies.runtime.guard import Guard, GuardLimits
from policies.runtime.loop import Loop
from policies.runtime.runner import Runner
from policies.runtime.worker import InferenceWorker
from policies.spec import Array, ContractError, Spec
from ros_nodes.convert import text_values
from ros_nodes.pictures import write_video
from ros_nodes.pilot import (
    CAMERA,
    EMBODIMENT,
    GOAL,
    GOAL_VIDEO,
    INSTRUCTION,
    ODOMETRY,
    REPLAN,
    SCAN,
    Pilot,
    one_hot,
    timing,
)
from ros_nodes.simulation import NAV, Eyes, outcome, simulated

FENCE = (-HALF_SIZE, HALF_SIZE, -HALF_SIZE, HALF_SIZE)
MAX_AGE_S = {ODOMETRY: 0.2, SCAN: 0.25, CAMERA: 0.3}
MAX_CHUNK_AGE_S = 0.5
COMMAND_HZ = 50.0
SCAN_EVERY = 5  # ticks
START_S = 90.0  # for all processes to come up
LAST_REPORT_S = 0.7  # to receive what the nodes report last
POLICY = (
    *("rate_hz", "period_ms", "lateness_ms", "deadline_misses", "commands", "scheduling"),
    *("plan_rate_hz", "inference_ms", "delay_ms", "chunk_age_ms", "arrived", "chunks", "chunk_misses", "steps"),
)
PLANNER = ("plans", "replans", "plan_ms", "plan_origin", "planner_restarts")

Progress = Callable[..., None]


@dataclass(frozen=True)
class RunConfig:
    """What to run.

    Args:
        bundle: Policy bundle (.kfb), or a planner (.kfp), which needs --env kinoflow/MazeNav-v0.
        env: Environment, kinoflow/Nav-v0, VideoNav-v0 or MazeNav-v0; the room follows from the seed, and in VideoNav-v0
            the goal video and the instruction.
        embodiment: Robot: wheeled, drone or g1.
        seconds: Longest time to drive.
        goals: Goals to reach, the room's own first, then random reachable ones 3 to 6 m apart.
        seed: Seed of the room and of the further goals.
        in_process: Run everything in this process, without ROS 2.
    """

    bundle: tyro.conf.Positional[Path]
    env: str = NAV
    embodiment: str = "wheeled"
    seconds: float = 60.0
    goals: int = 1
    seed: int = 0
    in_process: bool = False

    @property
    def node(self) -> str:
        """The lifecycle node that commands the robot."""
        return "planner_node" if self.bundle.suffix == ".kfp" else "policy_node"


def run(config: RunConfig, progress: Progress) -> dict[str, Any]:
    """Drive a simulated robot with a bundle in real time.

    Args:
        config: What to run.
        progress: Called with (seconds driven, seconds in all, text).

    Returns:
        A report for ``json.dump``: rate, periods and lateness of the policy's control loop against its deadlines,
        plans per second, chunks and those that were not ready when they were due, chunks by their number of denoising
        steps, inference time, time from an observation to its chunk (``delay_ms``), the rate at which
        commands reached the robot, what the guard did, goals, falls, collisions, language errors (see `outcome`), the
        path as ``[t, x, y]`` and every command that reached the robot as ``[t, *command]``.

    Raises:
        ContractError: The bundle is damaged or made for another robot or environment, or there is no such seed.
        NodeError: A process did not start or ended early.
    """
    check_seed(config.seed)
    at_least(1, goals=config.goals)
    env = simulated(config.env, config.embodiment, COMMAND_HZ)
    env.reset(seed=config.seed)
    spec = _fitting(config, env)
    mission = _mission(config) if isinstance(env, VideoNavEnv) else None
    course = Course(draw_goals(env, config.goals, config.seed), config.seconds)
    reason = "asked for" if config.in_process else _why_no_ros()
    if reason and spec is None:
        raise ContractError(f"a planner runs as a ROS 2 node, in this process is {reason}; bundles (.kfb) run without")
    if reason and spec is not None:
        report = {"mode": "in-process", "note": reason, **_drive_here(config, spec, env, mission, course, progress)}
    else:
        report = {"mode": "ros2", **_drive_nodes(config, env, mission, course, progress)}
    where = {"env": config.env, "embodiment": config.embodiment, "seed": config.seed}
    said = {"instruction": mission.sentence} if mission else {}
    return {**where, **said, **report, **course.report()}


@dataclass(frozen=True)
class Mission:
    """What the robot is shown, ``(16, 3, S, S)`` uint8, and told in VideoNav-v0; where that leads it is not told."""

    video: Array
    sentence: str


def _mission(config: RunConfig) -> Mission:
    if config.goals != 1:
        raise ContractError(f"goals is {config.goals}, a goal video shows the way to 1; leave it at 1 in {config.env}")
    with contextlib.closing(VideoNavEnv(config.embodiment)) as env:  # type: ignore[arg-type]
        env.reset(seed=config.seed)
        return Mission(env.goal_video, env.instruction)


def _why_no_ros() -> str:
    try:
        importlib.import_module("rclpy")
    except ImportError as error:
        return f"ROS 2 is not there ({error}); pip install 'kinoflow[ros]'"
    return ""


def _fitting(config: RunConfig, env: NavEnv) -> Spec | None:
    """The contract of a bundle, checked; None for a planner, which was made for this place."""
    if config.node == "planner_node":
        from kinoflow.planning import load

        load(config.bundle, config.env, config.seed)
        return None
    from policies.bundle import Bundle

    spec = Bundle.load(config.bundle).spec
    spec.require(env.contract)
    return spec


def _drive_nodes(
    config: RunConfig, env: NavEnv, mission: Mission | None, course: Course, progress: Progress
) -> dict[str, Any]:
    from ros_nodes.session import Monitor, Nodes, private_domain

    with tempfile.TemporaryDirectory(prefix="kinoflow-run-") as name:
        folder = Path(name)
        with private_domain(folder), Nodes(folder) as nodes:
            for node, parameters in _parameters(config, env, _handed_over(mission, folder)).items():
                nodes.start(node, parameters)
            with Monitor(nodes.check, env.contract.action.names) as monitor:
                _start(monitor, config.node)
                _follow(monitor, course, lambda: progress(int(course.now), int(config.seconds), course.text()))
                monitor.spin(LAST_REPORT_S)
                states = (monitor.status(node).values for node in (config.node, "guard_node", "sim_node"))
                return {**_summary(*states), "trace": _since_start(monitor.commands)}


def _since_start(commands: list[list[float]]) -> list[list[float]]:
    return [[round(time - commands[0][0], 5), *(round(value, 4) for value in values)] for time, *values in commands]


def _handed_over(mission: Mission | None, folder: Path) -> dict[str, str]:
    """Parameters of the policy node that say what to do in VideoNav-v0; none in Nav-v0, where the goal is a message."""
    if mission is None:
        return {}
    write_video(folder / "goal.mp4", mission.video)
    return {"goal": str(folder / "goal.mp4"), "instruction": mission.sentence}


def _parameters(config: RunConfig, env: NavEnv, goal: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Parameters per node, in the order of the start."""
    action, names = env.contract.action, list(env.contract.action.names)
    limits = GuardLimits.of(action)
    guard = {name: list(getattr(limits, name)) for name in ("low", "high", "acceleration", "jerk")}
    file = str(config.bundle.resolve())
    driven: dict[str, Any] = {"embodiment": config.embodiment, "names": names, "geofence": list(FENCE)}
    if config.node == "planner_node":
        driven |= {"planner": file, "low": list(limits.low), "high": list(limits.high), "radius_m": env.body.radius}
    else:
        driven |= {"bundle": file, "seed": config.seed, **goal}
    return {
        "sim_node": {"env": config.env, "embodiment": config.embodiment, "seed": config.seed},
        "guard_node": {"names": names, "geofence": list(FENCE), **guard},
        config.node: driven,
    }


def _start(monitor: Any, driver: str) -> None:
    """Bring up the node that commands, then, with everything else ready, let it drive."""
    from ros_nodes.session import NodeError

    if not monitor.transition("configure", START_S, driver):
        monitor.until(lambda: monitor.status(driver).level == 2, START_S, "reason")
        raise NodeError(f"{driver}: {monitor.status(driver).text}")
    ready = ("sim_node", "guard_node")
    monitor.until(lambda: all(monitor.status(node).text for node in ready), START_S, "simulator and guard")
    monitor.until(lambda: monitor.position is not None, START_S, "position")
    if not monitor.transition("activate", node=driver):
        raise NodeError(f"{driver} did not activate: {monitor.status(driver).text}")


def _follow(monitor: Any, course: Course, progress: Callable[[], None]) -> None:
    """Send goal after goal until the course has ended."""
    begin = time.monotonic()
    while not course.ended:
        monitor.spin(0.05)
        sim, guard = monitor.status("sim_node").values, monitor.status("guard_node").values
        fall, collision, gave_up = (sim.get(name, False) for name in ("fall", "collision", "gave_up"))
        course.fail(fall, collision, gave_up, guard.get("fault"))
        there = sim.get("success", False) and np.allclose(sim.get("goal", course.goal), course.goal, atol=1e-2)
        if course.update(time.monotonic() - begin, monitor.position, there):
            monitor.send_goal(course.goal)
        progress()


def _summary(policy: Mapping[str, Any], guard: Mapping[str, Any], sim: Mapping[str, Any]) -> dict[str, Any]:
    report = {name: policy.get(name) for name in (*POLICY, "bundle_hash")}
    report |= {name: policy[name] for name in PLANNER if name in policy}
    report["guard"] = {name: guard.get(name) for name in ("fault", "interventions")}
    report |= _language(sim)
    return {**report, "received_hz": sim.get("received_hz"), "real_time_factor": sim.get("real_time_factor")}


def _language(result: Mapping[str, Any]) -> dict[str, int]:
    return {"language_errors": int(result["language_error"])} if "language_error" in result else {}


class _Robot:
    """Policy, guard and simulation in one control loop."""

    def __init__(self, env: NavEnv, pilot: Pilot, course: Course, eyes: Eyes | None) -> None:
        limits = GuardLimits.of(env.contract.action)
        self.guard = Guard(GuardLimits(limits.low, limits.high, limits.acceleration, limits.jerk, geofence=FENCE))
        self._env, self._pilot, self._course, self._eyes = env, pilot, course, eyes
        self._command: tuple[Any, float] = (None, 0.0)
        self._observation = env.observe()
        self.commands: list[list[float]] = []
        self._ticks, self._begin = 0, time.monotonic()
        if eyes is None:
            self._drive_to(course.goal)

    def tick(self, now: float) -> None:
        """Observe, plan, guard, step."""
        env, guard = self._env, self.guard
        self._sense(now)
        command = self._pilot.tick(now)
        if command is not None:
            self._command = (command, now)
        elif self._pilot.fault and not guard.waiting:
            guard.estop(f"policy: {self._pilot.fault}")
        safe = guard.filter(*self._command, now, env.pose)
        self.commands.append([now, *safe.tolist()])
        self._observation, *_ = env.step(safe)
        result = outcome(env)
        self._course.fail(result["fall"], result["collision"], result.get("gave_up", False), guard.fault)
        if self._course.update(now - self._begin, env.pose, env.success):
            self._drive_to(self._course.goal)

    def _sense(self, now: float) -> None:
        env, pilot = self._env, self._pilot
        pilot.receive(ODOMETRY, now, lambda: pilot.motion(env.pose, env.body.twist(env.data), now))
        if self._eyes is not None:
            self._eyes.look(env.data.qpos.copy(), now)
        elif self._ticks % SCAN_EVERY == 0:
            pilot.receive(SCAN, now, lambda: self._observation["scan"])
        self._ticks += 1

    def _drive_to(self, goal: Array) -> None:
        self._env.goal = goal
        self._pilot.receive(GOAL, time.monotonic(), lambda: goal)


def _drive_here(
    config: RunConfig, spec: Spec, env: NavEnv, mission: Mission | None, course: Course, progress: Progress
) -> dict[str, Any]:
    with InferenceWorker(str(config.bundle), LOADER, spec) as worker, contextlib.ExitStack() as stack:
        worker.wait_ready()
        rng = np.random.default_rng(config.seed)
        runner = Runner(worker, ChunkBuffer(spec, MAX_CHUNK_AGE_S), rng, REPLAN * spec.rate_hz)
        pilot = Pilot(spec, runner, MAX_AGE_S)
        eyes = None
        if mission is not None:
            _tell(pilot, mission, spec, config.embodiment)
            eyes = stack.enter_context(contextlib.closing(_eyes(pilot, config)))
        robot = _Robot(env, pilot, course, eyes)
        loop = Loop(1 / COMMAND_HZ, robot.tick)
        loop.start()
        try:
            while loop.running and not course.ended:
                time.sleep(0.05)
                progress(int(course.now), int(config.seconds), course.text())
        finally:
            loop.stop()
    statistics = {**timing(loop), **pilot.report(), "commands": pilot.commands}
    report = {name: statistics[name] for name in POLICY} | _language(outcome(env))
    guard = {"fault": robot.guard.fault, "interventions": dict(robot.guard.interventions)}
    return {**report, "guard": guard, "received_hz": report["rate_hz"], "trace": _since_start(robot.commands)}


def _tell(pilot: Pilot, mission: Mission, spec: Spec, embodiment: str) -> None:
    """Give a policy those features of its contract that stay as they are until the next goal."""
    shapes = {feature.name: feature.shape for feature in spec.observations}
    now = time.monotonic()
    pilot.receive(GOAL_VIDEO, now, lambda: mission.video)
    pilot.receive(EMBODIMENT, now, lambda: one_hot(embodiment))
    pilot.receive(INSTRUCTION, now, lambda: text_values(mission.sentence, *shapes.get(INSTRUCTION, (0,))))


def _eyes(pilot: Pilot, config: RunConfig) -> Eyes:
    def show(picture: Array, stamp: float) -> None:
        pilot.receive(CAMERA, stamp, lambda: picture)

    return Eyes(config.embodiment, config.seed, show)
