"""The policy node's logic on a fake clock, with a policy that drives at the goal."""

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
from ros_nodes.pilot import GOAL, ODOMETRY, SCAN, Pilot, offered

NAMES = ("vx", "vy", "wz")
SPEC = Spec(
    observations=(
        Feature("goal", (2,), "m", "base_link"),
        Feature("twist", (3,), "m/s, rad/s", "base_link"),
        Feature("scan", (8,), "m", "base_link"),
    ),
    action=ActionSpec(NAMES, ("m/s", "m/s", "rad/s"), "base_link", (-1.0, -1.0, -1.0), (1.0, 1.0, 1.0)),
    rate_hz=10.0,
    history=2,
    horizon=8,
)
LIMITS = {ODOMETRY: 0.2, SCAN: 0.25}


class ToGoal:
    """Commands the goal, the newest mean velocity and the nearest range; takes note of what it saw."""

    spec = SPEC

    def __init__(self) -> None:
        self.seen: list[dict[str, Array]] = []
        self.scale = 1.0
        self.warning = ""

    def act(self, observation: Observation, noise: Array, committed: Array, hold: Array) -> Array:
        self.seen.append({name: value.copy() for name, value in observation.items()})
        return np.full((8, 3), self.scale, np.float32) * observation["goal"][-1, 0]


class Bench:
    """A pilot with its inputs, on a clock that the test turns."""

    def __init__(self) -> None:
        self.policy = ToGoal()
        runner = Runner(InlineWorker(self.policy), ChunkBuffer(SPEC, 0.5), np.random.default_rng(0))
        self.pilot, self.now = Pilot(SPEC, runner, LIMITS), 100.0

    def goal(self, x: float, y: float = 0.0) -> None:
        self.pilot.receive(GOAL, self.now, lambda: np.array([x, y, 0.0]))

    def odometry(self, twist: Any = (0.1, 0.0, 0.0), pose: Any = (0.0, 0.0, 0.0, 0.0)) -> None:
        stamp = self.now
        self.pilot.receive(
            ODOMETRY, stamp, lambda: self.pilot.motion(np.array(pose), np.array(twist, np.float32), stamp)
        )

    def scan(self, value: float = 2.0) -> None:
        self.pilot.receive(SCAN, self.now, lambda: np.full(8, value, np.float32))

    def tick(self) -> float | None:
        """Forward velocity that is commanded now."""
        command = self.pilot.tick(self.now)
        return None if command is None else float(command[0])

    def run(self, seconds: float, senses: tuple[str, ...] = (ODOMETRY, SCAN)) -> list[float | None]:
        """Tick at 50 Hz with odometry at every tick and a scan at every fifth."""
        commands = []
        for tick in range(round(seconds * 50)):
            self.now = round(self.now + 0.02, 6)
            if ODOMETRY in senses:
                self.odometry()
            if SCAN in senses and tick % 5 == 0:
                self.scan()
            commands.append(self.tick())
        return commands


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.goal(0.5)
    assert bench.run(1.0)[-1] is not None
    return bench


def test_waits_for_every_input_by_name_and_without_a_fault() -> None:
    bench = Bench()
    for receive, missing in ((lambda: bench.goal(0.5), "goal"), (bench.odometry, "odom"), (bench.scan, "scan")):
        assert bench.tick() is None
        assert (bench.pilot.waiting, bench.pilot.fault) == (f"no {missing} yet", "")
        receive()
    assert bench.tick() is not None and bench.pilot.waiting == ""


def test_commands_follow_the_goal_in_the_base_frame(bench: Bench) -> None:
    assert bench.run(0.2) == [0.5] * 10
    assert len(bench.policy.seen) == 12 and bench.pilot.commands == 60
    assert bench.pilot.report()["chunk_age_ms"]["max"] == pytest.approx(80)
    assert bench.pilot.report() | {"chunks": 12, "chunk_misses": 0, "steps": {"0": 12}} == bench.pilot.report()


def test_goal_is_seen_from_the_base() -> None:
    bench = Bench()
    bench.goal(0.5, 2.0)
    bench.odometry(pose=(1.0, 1.0, 0.0, np.pi / 2))
    bench.scan(3.0)
    bench.tick()
    seen = bench.policy.seen[-1]
    np.testing.assert_allclose(seen["goal"][-1], [1.0, 0.5], atol=1e-6)
    np.testing.assert_allclose(seen["twist"][-1], [0.1, 0.0, 0.0])
    assert (seen["scan"] == 3).all()


def test_twist_is_the_mean_over_the_last_second(bench: Bench) -> None:
    for sign in (1, -1) * 100:
        bench.now += 0.02
        bench.odometry((0.3 * sign + 0.2, 0.0, 0.0))
        bench.scan()
        bench.tick()
    assert bench.policy.seen[-1]["twist"][-1, 0] == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize(("missing", "limit"), [(SCAN, 0.25), (ODOMETRY, 0.2)])
def test_old_input_is_a_fault_and_a_fresh_one_ends_it(bench: Bench, missing: str, limit: float) -> None:
    commands = bench.run(1.0, tuple({ODOMETRY, SCAN} - {missing}))
    first = commands.index(None)
    assert limit - 0.1 <= 0.02 * first <= limit + 0.04 and not any(c is not None for c in commands[first:])
    assert bench.pilot.fault == f"{missing} is older than the limit of {limit} s; check its source and the clocks"
    assert bench.run(0.2)[-1] is not None and bench.pilot.fault == ""


def test_stamp_from_the_future_is_a_fault(bench: Bench) -> None:
    bench.now += 5
    bench.odometry()
    bench.now -= 5
    assert bench.tick() is None and bench.pilot.fault.startswith("odom is older than the limit")


def test_message_that_cannot_be_read_is_a_fault_until_the_next(bench: Bench) -> None:
    def bad() -> Any:
        raise ContractError("scan has 1 beams that are not a number; check the scanner")

    bench.pilot.receive(SCAN, bench.now, bad)
    assert bench.tick() is None and "not a number" in bench.pilot.fault
    assert bench.run(0.1)[-1] is not None


def test_velocity_that_is_not_finite_is_a_fault(bench: Bench) -> None:
    bench.odometry((math.nan, 0, 0))
    assert bench.tick() is None and "not finite" in bench.pilot.fault


def test_actions_that_are_not_finite_are_a_fault(bench: Bench) -> None:
    bench.policy.scale = math.nan
    commands = bench.run(0.3)
    assert None in commands and all(np.isfinite(c) for c in commands if c is not None)
    bench.policy.scale = 1.0
    assert bench.run(0.3)[-1] is not None


def test_warning_of_the_policy_is_reported_beside_the_commands(bench: Bench) -> None:
    assert (bench.pilot.warning, bench.pilot.report()["warning"]) == ("", "")
    bench.policy.warning = "parent_1 is left out"
    assert None not in bench.run(0.3) and bench.pilot.fault == ""
    assert bench.pilot.warning == bench.pilot.report()["warning"] == "parent_1 is left out"


def test_new_goal_drops_the_plan_towards_the_old_one(bench: Bench) -> None:
    bench.goal(-0.5)
    assert bench.tick() == -0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observations": (Feature("image", (8, 8), "1", "camera"),)}, "observation 'image'"),
        ({"observations": (Feature("goal", (3,), "m", "base_link"),)}, "observation 'goal'"),
        ({"observations": (Feature("scan", (8,), "m", "laser"),)}, "observation 'scan'"),
        ({"action": dataclasses.replace(SPEC.action, names=("vx", "wz", "vy"))}, "action names"),
        ({"action": dataclasses.replace(SPEC.action, units=("m/s", "m/s", "1"))}, "action units"),
        ({"action": dataclasses.replace(SPEC.action, frame="odom")}, "action frame"),
    ],
)
def test_policy_that_the_robot_cannot_serve_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    SPEC.require(offered(NAMES, SPEC))
    policy = dataclasses.replace(SPEC, **change)
    with pytest.raises(ContractError, match=message):
        policy.require(offered(NAMES, policy))
