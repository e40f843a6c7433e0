"""The policy node's logic on a fake clock, with a policy that sees pictures and is told where to stop."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from policies.runtime.buffer import ChunkBuffer
from policies.runtime.runner import Runner
from policies.runtime.worker import InlineWorker
from policies.spec import ActionSpec, Array, ContractError, Feature, Observation, Spec
from ros_nodes.convert import text_values
from ros_nodes.pilot import (
    CAMERA,
    EMBODIMENT,
    GOAL_VIDEO,
    INSTRUCTION,
    ODOMETRY,
    REST_S,
    Pilot,
    mean_rate,
    offered,
    one_hot,
)

NAMES = ("vx", "vy", "wz")
PICTURE = (3, 8, 8)
SPEC = Spec(
    observations=(
        Feature("camera", PICTURE, "1", "head_camera", "uint8"),
        Feature("twist", (3,), "m/s, rad/s", "base_link"),
        Feature("goal_video", (2, *PICTURE), "1", "head_camera", "uint8", constant=True),
        Feature("instruction", (8,), "1", "text", "uint8", constant=True),
        Feature("embodiment", (3,), "1", "base_link", constant=True),
    ),
    action=ActionSpec(NAMES, ("m/s", "m/s", "rad/s"), "base_link", (-1.0, -1.0, -1.0), (1.0, 1.0, 1.0)),
    rate_hz=10.0,
    history=2,
    horizon=8,
)


class AsBright:
    """Drives as fast as the goal video is bright; takes note of what it saw."""

    spec = SPEC

    def __init__(self) -> None:
        self.seen: list[dict[str, Array]] = []
        self.arrival = 0.0

    def act(self, observation: Observation, noise: Array, committed: Array, hold: Array) -> Array:
        self.seen.append({name: value.copy() for name, value in observation.items()})
        return np.full((8, 3), observation["goal_video"].mean() / 100, np.float32)


class Bench:
    """A pilot with its inputs, on a clock that the test turns; a chunk takes ``latency_s``."""

    def __init__(self, latency_s: float = 0.0) -> None:
        self.policy = AsBright()
        rng = np.random.default_rng(0)
        self.runner = Runner(InlineWorker(self.policy), ChunkBuffer(SPEC, 0.5), rng, 15.0, latency_s)
        self.pilot, self.now = Pilot(SPEC, self.runner, {ODOMETRY: 0.2, CAMERA: 0.3}), 100.0

    def video(self, brightness: int) -> None:
        self.give(GOAL_VIDEO, np.full((2, *PICTURE), brightness, np.uint8))

    def say(self, text: str) -> None:
        self.pilot.receive(INSTRUCTION, self.now, lambda: text_values(text, 8))

    def give(self, name: str, value: Any) -> None:
        self.pilot.receive(name, self.now, lambda: value)

    def odometry(self) -> None:
        stamp, twist = self.now, np.array([0.1, 0, 0], np.float32)
        self.pilot.receive(ODOMETRY, stamp, lambda: self.pilot.motion(np.zeros(4), twist, stamp))

    def camera(self) -> None:
        self.give(CAMERA, np.full(PICTURE, 9, np.uint8))

    def tick(self) -> float | None:
        """Forward velocity that is commanded now."""
        command = self.pilot.tick(self.now)
        return None if command is None else round(float(command[0]), 6)

    def run(self, seconds: float, senses: tuple[str, ...] = (ODOMETRY, CAMERA)) -> list[float | None]:
        """Tick at 50 Hz with odometry at every tick and a picture at every fifth."""
        commands = []
        for tick in range(round(seconds * 50)):
            self.now = round(self.now + 0.02, 6)
            if ODOMETRY in senses:
                self.odometry()
            if CAMERA in senses and tick % 5 == 0:
                self.camera()
            commands.append(self.tick())
        return commands


def driving(latency_s: float = 0.0) -> Bench:
    bench = Bench(latency_s)
    bench.video(50)
    bench.say("door")
    bench.give(EMBODIMENT, one_hot("g1"))
    assert bench.run(1.5)[-1] == 0.5
    return bench


def test_waits_for_what_the_policy_sees_and_for_no_goal_point() -> None:
    bench, found = Bench(), []
    steps = (
        (lambda: bench.video(50), "goal_video"),
        (lambda: bench.say("door"), "instruction"),
        (lambda: bench.give(EMBODIMENT, one_hot("g1")), "embodiment"),
        (bench.odometry, "odom"),
        (bench.camera, "camera"),
    )
    for receive, missing in steps:
        assert bench.tick() is None
        found.append((bench.pilot.waiting, bench.pilot.fault))
        assert found[-1] == (f"no {missing} yet", "")
        receive()
    assert bench.tick() == 0.5 and bench.pilot.waiting == ""


def test_policy_sees_every_feature_in_its_type() -> None:
    bench = driving()
    seen = bench.policy.seen[-1]
    SPEC.check(seen)
    assert (seen["camera"] == 9).all() and (seen["goal_video"] == 50).all()
    assert seen["instruction"].tobytes() == b"Door.\0\0\0" and seen["embodiment"].tolist() == [[0, 0, 1]]
    np.testing.assert_allclose(seen["twist"][-1], [0.1, 0, 0], atol=1e-6)


@pytest.mark.parametrize("change", ["video", "sentence"])
def test_another_video_or_sentence_is_a_new_goal_and_the_same_is_not(change: str) -> None:
    bench = driving()
    bench.video(50)
    bench.say("door")
    asked = len(bench.policy.seen)
    assert bench.tick() == 0.5 and len(bench.policy.seen) == asked
    if change == "video":
        bench.video(30)
        assert bench.tick() == 0.3
    else:
        bench.say("box")
        assert bench.tick() == 0.5 and len(bench.policy.seen) == asked + 1
        assert bench.policy.seen[-1]["instruction"].tobytes() == b"Box.\0\0\0\0"


def test_old_picture_is_a_fault_and_a_fresh_one_ends_it() -> None:
    bench = driving()
    commands = bench.run(1.0, (ODOMETRY,))
    first = commands.index(None)
    assert 0.2 <= 0.02 * first <= 0.34 and not any(command is not None for command in commands[first:])
    assert bench.pilot.fault == "camera is older than the limit of 0.3 s; check its source and the clocks"
    assert bench.run(0.2)[-1] == 0.5 and bench.pilot.fault == ""


def test_goal_that_is_refused_stops_until_there_is_a_good_one() -> None:
    def missing() -> Any:
        raise ContractError("goal video 'x.mp4': no such file on this machine; give the path of an .mp4")

    bench = driving()
    bench.pilot.receive(GOAL_VIDEO, bench.now, missing)
    assert bench.run(0.3) == [None] * 15 and "no such file" in bench.pilot.fault
    bench.video(20)
    bench.say("a sentence that is too long")
    assert bench.tick() is None and "has 28 bytes; at most 8 fit" in bench.pilot.fault
    bench.say("door")
    assert bench.run(0.2)[-1] == 0.2


def test_who_has_arrived_rests_until_there_is_another_goal() -> None:
    bench = driving()
    assert not bench.pilot.arrived and not bench.pilot.report()["arrived"]
    bench.policy.arrival = 0.9
    assert bench.run(1.0)[-1] == 0.0 and bench.pilot.arrived
    assert bench.pilot.report()["arrived"] and bench.pilot.report()["arrival"] == 0.9
    bench.policy.arrival = 0.0
    bench.say("door")
    assert bench.run(0.5) == [0.0] * 25  # the same goal
    assert bench.run(0.5, (ODOMETRY,))[-1] is None and bench.pilot.fault
    assert {*bench.run(0.5)} <= {None, 0.0} and bench.pilot.arrived  # nor does a fault release it
    bench.say("box")
    assert bench.run(0.5)[-1] == 0.5 and not bench.pilot.arrived


def test_restart_releases_who_has_arrived() -> None:
    bench = driving()
    bench.policy.arrival = 0.9
    bench.run(1.0)
    bench.policy.arrival = 0.0
    bench.pilot.restart()
    assert not bench.pilot.arrived and bench.run(0.3)[-1] == 0.5


def test_robot_rests_while_the_first_plan_towards_a_new_goal_takes_long() -> None:
    bench = driving(latency_s=0.2)
    bench.video(30)
    commands = bench.run(0.8)
    silent = commands.count(None)
    assert 0 < silent <= math.ceil(REST_S * 50) + 1 and commands[:silent] == [None] * silent
    rests = commands[silent:].count(0.0)
    assert commands[silent:] == [0.0] * rests + [0.3] * (40 - silent - rests) and rests > 2
    assert bench.pilot.fault == ""


def test_first_plan_that_comes_too_late_is_no_fault_and_silence_precedes_it() -> None:
    bench = Bench(latency_s=0.6)
    bench.video(50)
    bench.say("door")
    bench.give(EMBODIMENT, one_hot("wheeled"))
    assert bench.run(2.0) == [None] * 100
    assert bench.pilot.fault == "" and bench.pilot.waiting.startswith("no plan that is fresh yet, the newest is 0.")


def test_plans_are_counted_per_second_towards_one_goal() -> None:
    bench = driving()
    bench.run(2.0)
    assert bench.pilot.report()["plan_rate_hz"] == pytest.approx(10, abs=0.5)
    bench.video(30)
    bench.tick()
    assert bench.pilot.report()["plan_rate_hz"] == 0
    assert mean_rate([]) == mean_rate([3.0]) == 0 and mean_rate([1.0, 1.5, 2.0]) == 2


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (Feature("camera", (3, 8, 6), "1", "head_camera", "uint8"), "observation 'camera'"),
        (Feature("camera", PICTURE, "1", "head_camera"), "observation 'camera'"),
        (Feature("camera", PICTURE, "1", "rear_camera", "uint8"), "observation 'camera'"),
        (Feature("goal_video", (2, 3, 9, 9), "1", "head_camera", "uint8", constant=True), "observation 'goal_video'"),
        (Feature("instruction", (8,), "1", "map", "uint8", constant=True), "observation 'instruction'"),
        (Feature("embodiment", (4,), "1", "base_link", constant=True), "observation 'embodiment'"),
    ],
)
def test_policy_that_sees_otherwise_is_refused_by_name(feature: Feature, message: str) -> None:
    SPEC.require(offered(NAMES, SPEC))
    others = tuple(known for known in SPEC.observations if known.name != feature.name)
    policy = dataclasses.replace(SPEC, observations=(feature, *others))
    with pytest.raises(ContractError, match=message):
        policy.require(offered(NAMES, policy))
