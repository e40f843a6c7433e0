"""Run a bundle on a simulated robot in real time: as three ROS 2 processes, or in this process without ROS 2."""

from __future__ import annotations

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
from envs.rooms import HALF_SIZE, sample_point
from policies.load import LOADER
from policies.runtime.buffer import ChunkBuffer
from policies.runtime.guard import Guard, GuardLimits
from policies.runtime.loop import Loop
from policies.runtime.runner import Runner
from policies.runtime.worker import InferenceWorker
from policies.spec import Array, ContractError, Spec
from ros_nodes.pilot import GOAL, ODOMETRY, REPLAN, SCAN, Pilot, timing

ENVIRONMENT = "kinoflow/Nav-v0"
FENCE = (-HALF_SIZE, HALF_SIZE, -HALF_SIZE, HALF_SIZE)
MAX_AGE_S = {ODOMETRY: 0.2, SCAN: 0.25}
MAX_CHUNK_AGE_S = 0.5
COMMAND_HZ = 50.0
SCAN_EVERY = 5  # ticks
NEAREST, FARTHEST = 3.0, 6.0  # m, from one goal to the next
HOLD_S = 1.0  # the robot rests at a goal this long before the next one
START_S = 90.0  # for all processes to come up
LAST_REPORT_S = 0.7  # to receive what the nodes report last
TRACE_S = 0.1  # between two points of the path
POLICY = (
    *("rate_hz", "period_ms", "lateness_ms", "deadline_misses", "commands", "scheduling"),
    *("inference_ms", "delay_ms", "chunk_age_ms"),
)

Progress = Callable[..., None]


@dataclass(frozen=True)
class RunConfig:
    """What to run.

    Args:
        bundle: Policy bundle (.kfb).
        env: Environment; the room follows from the seed.
        embodiment: Robot: wheeled, drone or g1.
        seconds: Longest time to drive.
        goals: Goals to reach, the room's own first, then random reachable ones 3 to 6 m apart.
        seed: Seed of the room and of the further goals.
        in_process: Run everything in this process, without ROS 2.
    """

    bundle: tyro.conf.Positional[Path]
    env: str = ENVIRONMENT
    embodiment: str = "wheeled"
    seconds: float = 60.0
    goals: int = 1
    seed: int = 0
    in_process: bool = False


def run(config: RunConfig, progress: Progress) -> dict[str, Any]:
    """Drive a simulated robot with a bundle in real time.

    Args:
        config: What to run.
        progress: Called with (seconds driven, seconds in all, text).

    Returns:
        A report for ``json.dump``: rate, periods and lateness of the policy's control loop against its deadlines,
        inference time, the rate at which commands reached the robot, what the guard did, goals, falls, collisions,
        the path as ``[t, x, y]`` and every command that reached the robot as ``[t, *command]``.

    Raises:
        ContractError: The bundle is damaged or made for another robot.
        NodeError: A process did not start or ended early.
    """
    if config.env != ENVIRONMENT:
        raise ContractError(f"env is '{config.env}', robots run in {ENVIRONMENT}; for others there is kinoflow eval")
    spec = _spec(config)
    env = NavEnv(config.embodiment, step_hz=COMMAND_HZ)  # type: ignore[arg-type]
    env.reset(seed=config.seed)
    spec.require(env.contract)
    course = Course(draw_goals(env, config.goals, config.seed), config.seconds)
    reason = "asked for" if config.in_process else _why_no_ros()
    if reason:
        report = {"mode": "in-process", "note": reason, **_drive_here(config, spec, env, course, progress)}
    else:
        report = {"mode": "ros2", **_drive_nodes(config, env, course, progress)}
    where = {"env": config.env, "embodiment": config.embodiment, "seed": config.seed}
    return {**where, **report, **course.report()}


def _why_no_ros() -> str:
    try:
        importlib.import_module("rclpy")
    except ImportError as error:
        return f"ROS 2 is not there ({error}); pip install 'kinoflow[ros]'"
    return ""


def _spec(config: RunConfig) -> Spec:
    from policies.bundle import Bundle

    return Bundle.load(config.bundle).spec


def draw_goals(env: NavEnv, count: int, seed: int) -> list[Array]:
    """Return the room's own goal and further ones, each reachable and 3 to 6 m from the one before.

    Args:
        env: Freshly reset environment.
        count: Number of goals.
        seed: Seed of the further goals.

    Returns:
        ``(3,)`` points in m, world frame.
    """
    rng = np.random.default_rng([seed, 1])  # another stream than the room's
    goals = [np.array(env.goal, float)]
    while len(goals) < count:
        point, last = sample_point(env.room, rng), goals[-1][:2]
        in_range = NEAREST <= np.linalg.norm(point - last) <= FARTHEST
        if in_range and env.room.map.routes(point).reachable(last):
            goals.append(np.array([*point, goals[0][2]]))
    return goals


class Course:
    """Goals to reach one after the other, and the path that was taken.

    Args:
        goals: ``(3,)`` points in m, world frame.
        seconds: Longest time.
    """

    def __init__(self, goals: list[Array], seconds: float) -> None:
        self.fall = self.collision = False
        self.failure = ""
        """Why the robot cannot go on, in words; empty while it can."""
        self.now = 0.0
        """Seconds since the start."""
        self._goals, self._seconds, self._reached = goals, seconds, 0
        self._path: list[list[float]] = []
        self._arrived: float | None = None

    @property
    def goal(self) -> Array:
        """The goal to drive to."""
        return self._goals[min(self._reached, len(self._goals) - 1)]

    @property
    def ended(self) -> str:
        """Why the run is over, empty while it is not."""
        if self._reached == len(self._goals):
            return "all goals reached"
        return self.failure or ("the time is over" if self.now >= self._seconds else "")

    def update(self, now: float, position: Array, success: bool) -> bool:
        """Take note of where the robot is; return whether it shall drive to a new goal.

        Args:
            now: Seconds since the start.
            position: ``(2,)`` or more, in m, world frame.
            success: Whether it rests at the goal.
        """
        self.now = now
        if not self._path or now >= self._path[-1][0] + TRACE_S:
            self._path.append([round(now, 2), *(round(float(value), 3) for value in position[:2])])
        if not success:
            self._arrived = None
        elif self._arrived is None:
            self._arrived = now
        elif now - self._arrived >= HOLD_S:
            self._arrived, self._reached = None, self._reached + 1
            return not self.ended
        return False

    def fail(self, fall: bool, collision: bool, fault: str | None) -> None:
        """Take note of what ends a run: a fall, a collision, a fault of the guard."""
        self.fall, self.collision = fall, collision and not fall
        self.failure = "the robot fell" if fall else "the robot hit something" if collision else fault or ""

    def text(self) -> str:
        """Say how far it is, for a progress bar."""
        return f"{self._reached} of {len(self._goals)} goals"

    def report(self) -> dict[str, Any]:
        """Return the outcome as JSON values."""
        return {
            "success": self._reached == len(self._goals),
            "ended": self.ended,
            "goals_reached": self._reached,
            "goals": [[round(float(value), 3) for value in goal] for goal in self._goals],
            "falls": int(self.fall),
            "collisions": int(self.collision),
            "seconds": round(self.now, 2),
            "path": self._path,
        }


def _drive_nodes(config: RunConfig, env: NavEnv, course: Course, progress: Progress) -> dict[str, Any]:
    from ros_nodes.session import Monitor, Nodes, private_domain

    with tempfile.TemporaryDirectory(prefix="kinoflow-run-") as name:
        folder = Path(name)
        with private_domain(folder), Nodes(folder) as nodes:
            for node, parameters in _parameters(config, env).items():
                nodes.start(node, parameters)
            with Monitor(nodes.check, env.contract.action.names) as monitor:
                _start(monitor)
                _follow(monitor, course, lambda: progress(int(course.now), int(config.seconds), course.text()))
                monitor.spin(LAST_REPORT_S)
                states = (monitor.status(node).values for node in ("policy_node", "guard_node", "sim_node"))
                return {**_summary(*states), "trace": _since_start(monitor.commands)}


def _since_start(commands: list[list[float]]) -> list[list[float]]:
    return [[round(time - commands[0][0], 5), *(round(value, 4) for value in values)] for time, *values in commands]


def _parameters(config: RunConfig, env: NavEnv) -> dict[str, dict[str, Any]]:
    """Parameters per node, in the order of the start."""
    action, names = env.contract.action, list(env.contract.action.names)
    limits = GuardLimits.of(action)
    guard = {name: list(getattr(limits, name)) for name in ("low", "high", "acceleration", "jerk")}
    policy = {"bundle": str(config.bundle.resolve()), "embodiment": config.embodiment, "seed": config.seed}
    return {
        "sim_node": {"embodiment": config.embodiment, "seed": config.seed},
        "guard_node": {"names": names, "geofence": list(FENCE), **guard},
        "policy_node": {"names": names, "geofence": list(FENCE), **policy},
    }


def _start(monitor: Any) -> None:
    """Bring up the policy, then, with everything else ready, let it drive."""
    from ros_nodes.session import NodeError

    if not monitor.transition("configure", START_S):
        monitor.until(lambda: monitor.status("policy_node").level == 2, START_S, "reason")
        raise NodeError(f"policy_node: {monitor.status('policy_node').text}")
    ready = ("sim_node", "guard_node")
    monitor.until(lambda: all(monitor.status(node).text for node in ready), START_S, "simulator and guard")
    monitor.until(lambda: monitor.position is not None, START_S, "position")
    if not monitor.transition("activate"):
        raise NodeError(f"policy_node did not activate: {monitor.status('policy_node').text}")


def _follow(monitor: Any, course: Course, progress: Callable[[], None]) -> None:
    """Send goal after goal until the course has ended."""
    begin = time.monotonic()
    while not course.ended:
        monitor.spin(0.05)
        sim, guard = monitor.status("sim_node").values, monitor.status("guard_node").values
        course.fail(sim.get("fall", False), sim.get("collision", False), guard.get("fault"))
        there = sim.get("success", False) and np.allclose(sim["goal"], course.goal, atol=1e-2)
        if course.update(time.monotonic() - begin, monitor.position, there):
            monitor.send_goal(course.goal)
        progress()


def _summary(policy: Mapping[str, Any], guard: Mapping[str, Any], sim: Mapping[str, Any]) -> dict[str, Any]:
    report = {name: policy.get(name) for name in (*POLICY, "bundle_hash")}
    report["guard"] = {name: guard.get(name) for name in ("fault", "interventions")}
    return {**report, "received_hz": sim.get("received_hz"), "real_time_factor": sim.get("real_time_factor")}


class _Robot:
    """Policy, guard and simulation in one control loop."""

    def __init__(self, env: NavEnv, pilot: Pilot, course: Course) -> None:
        limits = GuardLimits.of(env.contract.action)
        self.guard = Guard(GuardLimits(limits.low, limits.high, limits.acceleration, limits.jerk, geofence=FENCE))
        self._env, self._pilot, self._course = env, pilot, course
        self._command: tuple[Any, float] = (None, 0.0)
        self._scan = env.observe()["scan"]
        self.commands: list[list[float]] = []
        self._ticks, self._begin = 0, time.monotonic()
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
        observation, *_ = env.step(safe)
        self._scan = observation["scan"]
        fall = env.body.fallen(env.data)
        self._course.fail(fall, env.collision, guard.fault)
        if self._course.update(now - self._begin, env.pose, env.success):
            self._drive_to(self._course.goal)

    def _sense(self, now: float) -> None:
        env, pilot = self._env, self._pilot
        pilot.receive(ODOMETRY, now, lambda: pilot.motion(env.pose, env.body.twist(env.data), now))
        if self._ticks % SCAN_EVERY == 0:
            pilot.receive(SCAN, now, lambda: self._scan)
        self._ticks += 1

    def _drive_to(self, goal: Array) -> None:
        self._env.goal = goal
        self._pilot.receive(GOAL, time.monotonic(), lambda: goal)


def _drive_here(config: RunConfig, spec: Spec, env: NavEnv, course: Course, progress: Progress) -> dict[str, Any]:
    with InferenceWorker(str(config.bundle), LOADER, spec) as worker:
        worker.wait_ready()
        rng = np.random.default_rng(config.seed)
        runner = Runner(worker, ChunkBuffer(spec, MAX_CHUNK_AGE_S), rng, REPLAN * spec.rate_hz)
        pilot = Pilot(spec, runner, MAX_AGE_S)
        robot = _Robot(env, pilot, course)
        loop = Loop(1 / COMMAND_HZ, robot.tick)
        loop.start()
        try:
            while loop.running and not course.ended:
                time.sleep(0.05)
                progress(int(course.now), int(config.seconds), course.text())
        finally:
            loop.stop()
    statistics = {**timing(loop), **pilot.report(), "commands": pilot.commands}
    report = {name: statistics[name] for name in POLICY}
    outcome = {"fault": robot.guard.fault, "interventions": dict(robot.guard.interventions)}
    return {**report, "guard": outcome, "received_hz": report["rate_hz"], "trace": _since_start(robot.commands)}
