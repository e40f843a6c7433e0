"""What the policy node does at every tick: check the inputs, observe, plan, command. numpy only, no ROS 2."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from policies.runtime.loop import Loop, Percentiles
from policies.runtime.runner import Runner
from policies.spec import ActionSpec, Array, ContractError, Feature, Spec
from ros_nodes.convert import BASE_FRAME, CAMERA_FRAME, goal_in_base

GOAL, ODOMETRY, SCAN, CAMERA = "goal", "odom", "scan", "camera"
GOAL_VIDEO, INSTRUCTION, EMBODIMENT = "goal_video", "instruction", "embodiment"
EMBODIMENTS = ("wheeled", "drone", "g1")  # order of the one-hot feature
REPLAN = 1.5  # plans per action of a chunk at most: a new scan never has to wait until the next plan is due
REST_S = 0.1  # of waiting for a plan, after which a robot that was driving is brought to rest
STRIDE = 1.0  # s, a policy sees the mean velocity over one stride: a walking robot sways as fast as it travels
_SAMPLES = 2048  # that percentiles look back


@dataclass(frozen=True)
class Motion:
    """Odometry: ``(4,)`` x, y, z in m and yaw in rad, and the ``(A,)`` mean velocity over the last second."""

    pose: Array
    twist: Array


@dataclass(frozen=True)
class Input:
    """The newest message of one kind.

    Args:
        stamp: Time of the measurement in seconds, monotonic.
        value: What it says, None when it is not usable.
        error: Why it is not usable.
    """

    stamp: float
    value: Any = None
    error: str = ""


class Waiting(Exception):
    """There is no command yet, and nothing is wrong."""


def timing(loop: Loop) -> dict[str, Any]:
    """Return the statistics of a control loop as JSON values."""
    report = loop.report()
    percentiles = {name: getattr(report, name)._asdict() for name in ("period_ms", "lateness_ms", "tick_ms")}
    counts = {name: getattr(report, name) for name in ("rate_hz", "deadline_misses", "commands")}
    return {**counts, **percentiles, "scheduling": loop.scheduling}


def mean_rate(stamps: Iterable[float]) -> float:
    """Return the mean rate in Hz of events at times in seconds."""
    times = list(stamps)
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0


def offered(names: Sequence[str], policy: Spec) -> Spec:
    """Return the contract that a robot's topics and its goal can serve, for `Spec.require`.

    Args:
        names: Components of the robot's velocity command.
        policy: Contract of the policy; a scan is resampled to its number of beams, pictures to their size.
    """
    shapes = {feature.name: feature.shape for feature in policy.observations}
    beams, length = (shapes.get(name, (0,))[:1] for name in (SCAN, INSTRUCTION))
    size = shapes.get(CAMERA, shapes.get(GOAL_VIDEO, (0,)))[-1]
    picture, frames = (3, size, size), shapes.get(GOAL_VIDEO, (0,))[:1]
    observations = (
        Feature(GOAL, (3 if "vz" in names else 2,), "m", BASE_FRAME),
        Feature("twist", (len(names),), "m/s, rad/s", BASE_FRAME),
        Feature(SCAN, beams, "m", BASE_FRAME),
        Feature(CAMERA, picture, "1", CAMERA_FRAME, "uint8"),
        Feature(GOAL_VIDEO, frames + picture, "1", CAMERA_FRAME, "uint8", constant=True),
        Feature(INSTRUCTION, length, "1", "text", "uint8", constant=True),
        Feature(EMBODIMENT, (len(EMBODIMENTS),), "1", BASE_FRAME, constant=True),
    )
    units = tuple("rad/s" if name == "wz" else "m/s" for name in names)
    action = ActionSpec(tuple(names), units, BASE_FRAME, policy.action.low, policy.action.high)
    return Spec(observations, action, policy.rate_hz, policy.history, policy.horizon)


def one_hot(embodiment: str) -> Array:
    """Return the ``(3,)`` float32 feature that tells a policy which robot it drives.

    Raises:
        ContractError: There is no such robot.
    """
    if embodiment not in EMBODIMENTS:
        raise ContractError(f"embodiment is '{embodiment}', policies know {', '.join(EMBODIMENTS)}; choose one of them")
    return np.array([name == embodiment for name in EMBODIMENTS], np.float32)


class Pilot:
    """Drives a runner with inputs that must be fresh, finite and inside the fence.

    Inputs come from any thread, `tick` is called by the control loop. All times are on one monotonic clock.

    Args:
        spec: Contract of the policy.
        runner: Runs it.
        max_age_s: Largest age per input in seconds; inputs that are not listed never expire.
    """

    def __init__(self, spec: Spec, runner: Runner, max_age_s: Mapping[str, float]) -> None:
        self.waiting = "not started"
        """Why there is no command yet; empty when there is one or when something is wrong."""
        self.fault = ""
        """Why there must not be a command; empty when all is well."""
        self.commands = 0
        """Commands so far."""
        self._runner, self._max_age_s = runner, max_age_s
        self._sizes = {feature.name: feature.shape[0] for feature in spec.observations}
        self._given_names = [name for name in (GOAL, GOAL_VIDEO, INSTRUCTION, EMBODIMENT) if name in self._sizes]
        self._inputs: dict[str, Input] = {}
        self._given: dict[str, Input] = {}
        self._twists: deque[tuple[float, Array]] = deque(maxlen=1024)
        self._motions: deque[tuple[float, Motion]] = deque(maxlen=1024)
        self._rest = np.zeros(spec.action.dim, np.float32)
        self._last: float | None = None
        self._planned, self._chunk_ages, self._inferences, self._delays = (
            deque[float](maxlen=_SAMPLES) for _ in range(4)
        )
        self._begin()

    def receive(self, name: str, stamp: float, read: Callable[[], Any]) -> None:
        """Take note of a message; ``read`` returns its value or raises a `ContractError` that says what is wrong."""
        try:
            self._inputs[name] = Input(stamp, read())
        except ContractError as error:
            self._inputs[name] = Input(stamp, error=str(error))

    def motion(self, pose: Array, twist: Array, stamp: float) -> Motion:
        """Return odometry with the velocity averaged over the last second; called once per message.

        Raises:
            ContractError: The velocity is not finite.
        """
        if not np.isfinite(twist).all():
            raise ContractError(f"odom has the velocity {twist}, which is not finite; check the source of odometry")
        self._twists.append((stamp, twist))
        while abs(self._twists[0][0] - stamp) > STRIDE:
            self._twists.popleft()
        while self._motions and abs(self._motions[0][0] - stamp) > STRIDE:
            self._motions.popleft()
        motion = Motion(pose, np.stack([twist for _, twist in self._twists]).mean(axis=0))
        self._motions.append((stamp, motion))
        return motion

    def restart(self) -> None:
        """Start anew towards the present goal: also a robot that had arrived drives again."""
        self._begin()
        self._planned.clear()
        self._last = None

    def tick(self, now: float) -> Array | None:
        """Return the ``(A,)`` command to send now; None when there is none, then `waiting` or `fault` say why.

        A robot that was driving and has to wait, because the first plan towards a new goal takes long, is commanded to
        rest: silence would be a fault to the guard.
        """
        command, waiting, fault = None, "", ""
        try:
            self._observe(now)
            command = self._plan(now)
            self._last = now
        except Waiting as reason:
            waiting = str(reason)
            command = self._rest if self._last is not None and now - self._last > REST_S else None
        except ContractError as error:
            fault = str(error)
            self._underway, self._last = False, None
            if not self.arrived:  # who has arrived stays where it is
                self._begin()
        self.commands += command is not None
        self.waiting, self.fault = waiting, fault
        return command

    @property
    def arrived(self) -> bool:
        """Whether the policy has found that the robot is where it shall stop; it rests until there is a new goal."""
        return self._runner.arrived

    @property
    def warning(self) -> str:
        """Which parents of a composition are left out, since when and why; empty when all is well."""
        return self._runner.warning

    def ages(self, now: float) -> dict[str, float]:
        """Return the age per input in seconds."""
        return {name: round(now - item.stamp, 4) for name, item in dict(self._inputs).items()}

    def report(self) -> dict[str, Any]:
        """Return percentiles in ms of inference, hand-over and age of the chunk, and what else is said of the plans."""
        samples = {"inference_ms": self._inferences, "delay_ms": self._delays, "chunk_age_ms": self._chunk_ages}
        timing = {name: Percentiles.of(1e3 * np.array(list(values)))._asdict() for name, values in samples.items()}
        plans: dict[str, Any] = {"plan_rate_hz": round(mean_rate(self._planned.copy()), 3), "arrived": self.arrived}
        taken = dict(sorted(self._runner.taken.items()))
        plans |= {"chunks": sum(taken.values()), "chunk_misses": self._runner.misses}
        plans["steps"] = {str(steps): chunks for steps, chunks in taken.items()}
        plans["arrival"] = round(self._runner.arrival, 4)
        return {**timing, **plans, "disagreement": round(self._runner.disagreement, 4), "warning": self.warning}

    def _observe(self, now: float) -> None:
        self._aim({name: self._fresh(name, now) for name in self._given_names})
        odometry = self._fresh(ODOMETRY, now)
        sensors = {name: self._fresh(name, now) for name in (SCAN, CAMERA) if name in self._sizes}
        stamp, motion = odometry.stamp, odometry.value
        if sensors:  # the slowest sets the pace; goal and twist are those of its moment
            stamp = min(item.stamp for item in sensors.values())
            _, motion = min(list(self._motions), key=lambda item: abs(item[0] - stamp))
        values = {name: item.value for name, item in (self._given | sensors).items()}
        if GOAL in values:
            values[GOAL] = goal_in_base(values[GOAL], motion.pose, self._sizes[GOAL])
        values["twist"] = motion.twist
        self._runner.observe({name: values[name] for name in self._sizes}, stamp)

    def _aim(self, given: dict[str, Input]) -> None:
        """Start anew when what was given with the goal has changed."""
        old, self._given = self._given, given
        new = (name for name, item in given.items() if item is not old.get(name))
        if any(name not in old or not np.array_equal(given[name].value, old[name].value) for name in new):
            self._begin()
            self._planned.clear()

    def _begin(self) -> None:
        """Drop all plans and whether the robot has arrived."""
        self._runner.clear()
        self._underway = False

    def _fresh(self, name: str, now: float) -> Input:
        item = self._inputs.get(name)
        if item is None:
            raise Waiting(f"no {name} yet")
        limit = self._max_age_s.get(name, math.inf)
        if abs(now - item.stamp) > limit:
            raise ContractError(f"{name} is older than the limit of {limit} s; check its source and the clocks")
        if item.error:
            raise ContractError(item.error)
        return item

    def _plan(self, now: float) -> Array:
        runner, before = self._runner, self._runner.age(now)
        runner.plan(now)
        if runner.error:
            raise ContractError(runner.error)
        age, command = runner.age(now), runner.command(now)
        if command is None:
            if math.isinf(age):
                raise Waiting("no plan yet")
            if not self._underway:  # the first one towards a goal takes longer than those that follow
                raise Waiting(f"no plan that is fresh yet, the newest is {age:.3f} s old; see inference_ms")
            raise ContractError(f"the newest plan is {age:.3f} s old; inference takes too long, see inference_ms")
        self._note(before, age, now)
        return command

    def _note(self, before: float, age: float, now: float) -> None:
        self._underway = True
        if age < before:  # a new chunk took over
            self._planned.append(now)
            self._inferences.append(self._runner.inference_s)
            self._delays.append(self._runner.delay_s)
        self._chunk_ages.append(age)
