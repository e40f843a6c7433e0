from __future__ import annotations

import dataclasses
import math
import time

import numpy as np
import pytest
from toy_policies import SPEC, Arriving, Broken, Follow, observation

from policies.runtime.buffer import ChunkBuffer
from policies.runtime.runner import Runner
from policies.runtime.worker import InferenceWorker, InlineWorker, Request, Result, Worker

TICK = 0.02


def make(policy: Follow | None = None, latency: float = 0.0, worker: Worker | None = None) -> tuple[Runner, Follow]:
    policy = policy or Follow()
    buffer = ChunkBuffer(SPEC, max_age_s=0.5, soft=2)
    worker = worker or InlineWorker(policy)
    return Runner(worker, buffer, np.random.default_rng(0), rate_hz=10.0, latency_s=latency), policy


def times(seconds: float, start: float = 0.0) -> list[float]:
    return [round(start + k * TICK, 6) for k in range(round(seconds / TICK))]


def step(runner: Runner, now: float, value: float = 0.5) -> np.ndarray | None:
    """One control tick with a fresh observation."""
    runner.observe(observation(value), now)
    runner.plan(now)
    return runner.command(now)


def test_plans_at_its_rate_under_faster_jittering_ticks() -> None:
    rng = np.random.default_rng(1)
    runner, policy = make()
    for now in times(20.0):
        step(runner, now + rng.uniform(0, 0.004))
    assert len(policy.calls) == 200


def test_planning_rate_holds_when_it_is_no_multiple_of_the_tick() -> None:
    runner, policy = make()
    for k in range(250):
        step(runner, 0.04 * k)
    assert len(policy.calls) == 100


def test_ticks_slower_than_the_planning_rate_plan_every_time() -> None:
    runner, policy = make()
    for k in range(20):
        step(runner, 0.25 * k)
    assert len(policy.calls) == 20


@pytest.mark.parametrize("latency", [0.0, 0.04, 0.06, 0.2])
def test_chunk_takes_over_after_the_simulated_latency(latency: float) -> None:
    runner, _ = make(latency=latency)
    commands = {now: step(runner, now) for now in times(0.4)}
    assert [now for now, command in commands.items() if command is None] == [t for t in commands if t < latency - 1e-6]
    assert runner.delay_s == pytest.approx(latency)


def test_latency_beyond_the_planning_period_lowers_the_rate() -> None:
    runner, policy = make(latency=0.2)
    for now in times(10.0):
        step(runner, now)
    assert len(policy.calls) == 50
    assert runner.age(9.98) <= 0.4


def test_noise_stays_the_same_until_the_goal_changes() -> None:
    runner, policy = make()
    for now in times(1.0):
        step(runner, now)
    runner.clear()
    for now in times(1.0, start=1.0):
        step(runner, now)
    noises = [noise for noise, _, _ in policy.calls]
    assert all((noise == noises[0]).all() for noise in noises[:10])
    assert all((noise == noises[10]).all() for noise in noises[10:])
    assert (noises[0] != noises[10]).any()
    assert noises[0].dtype == np.float32 and noises[0].shape == (SPEC.horizon, SPEC.action.dim)


def test_same_seed_gives_the_same_commands() -> None:
    runs = []
    for _ in range(2):
        runner, _ = make(latency=0.06)
        runs.append([step(runner, now, value=np.sin(now)) for now in times(3.0)])
    assert all(
        (a is None and b is None) or (a is not None and b is not None and (a == b).all())
        for a, b in zip(*runs, strict=True)
    )


@pytest.mark.parametrize("latency", [0.02, 0.06, 0.1, 0.2])
def test_every_new_chunk_passes_through_the_last_command_of_the_old_one(latency: float) -> None:
    rng, policy = np.random.default_rng(2), Follow()
    buffer = ChunkBuffer(SPEC, max_age_s=1.0, soft=0)
    runner = Runner(InlineWorker(policy), buffer, rng, latency_s=latency)
    hand_overs, before, last = 0, buffer.age(0.0), None
    for now in times(6.0):
        command = step(runner, now, value=rng.normal())
        if last is not None and buffer.age(now) < before and now > 1.0:
            np.testing.assert_allclose(np.asarray(buffer.command(now - TICK)), last, atol=1e-5)
            hand_overs += 1
        before, last = buffer.age(now), command
    assert hand_overs >= 24


def test_jump_of_the_goal_becomes_a_ramp() -> None:
    runner, policy = make(latency=0.06)
    commands = np.stack([c for now in times(4.0) if (c := step(runner, now, float(now > 2.0))) is not None])
    steepest = (
        (1 / 3 + 1 / 3 * 1 / 3) * TICK / SPEC.dt
    )  # the weights fall by 1/3 per action, over a chunk that rises too
    assert commands[0, 0] == 0 and commands[-1, 0] == pytest.approx(1.0, abs=1e-3)
    assert np.abs(np.diff(commands[:, 0])).max() <= 1.001 * steepest
    assert policy.calls[-1][2].tolist() == pytest.approx([1, 1, 2 / 3, 1 / 3, 0, 0, 0, 0])


def test_without_new_observations_the_chunk_ages_out_and_nothing_is_planned() -> None:
    runner, policy = make()
    step(runner, 0.0)
    for now in times(1.0, start=TICK):
        runner.plan(now)
        assert (runner.command(now) is None) == (now > 0.5)
    assert len(policy.calls) == 1
    assert runner.age(0.75) == 0.75


def test_clear_drops_the_chunk_in_flight() -> None:
    runner, _ = make(latency=0.1)
    step(runner, 0.0, value=1.0)
    runner.clear()
    assert runner.age(0.02) == math.inf
    commands = [step(runner, now, value=-1.0) for now in times(0.3, start=0.02)]
    values = [None if command is None else float(command[0]) for command in commands]
    assert values[:5] == [None] * 5 and values[5:] == [-1.0] * 10


def test_non_finite_actions_never_reach_the_robot() -> None:
    runner, _ = make(Broken())
    assert step(runner, 0.0) is None
    assert "not finite" in runner.error


class Scripted:
    """A worker whose answers and death the test decides."""

    spec = SPEC

    def __init__(self) -> None:
        self.alive = True
        self.requests: list[Request] = []
        self.result: Result | None = None

    def submit(self, request: Request) -> int:
        self.requests.append(request)
        return len(self.requests)

    def latest(self) -> Result | None:
        result, self.result = self.result, None
        return result

    def answer(self, number: int, value: float, error: str = "", warning: str = "", arrival: float = 0.0) -> None:
        actions = np.full((SPEC.horizon, SPEC.action.dim), value, np.float32)
        self.result = Result(number, self.requests[number - 1].stamp, actions, 0.01, error, 0.0, warning, arrival)


def test_error_of_the_policy_leaves_the_old_chunk_and_plans_again() -> None:
    worker = Scripted()
    runner, _ = make(worker=worker)
    step(runner, 0.0)
    worker.answer(1, 0.5)
    step(runner, 0.1)
    worker.answer(2, 0.0, error="ContractError: observation 'goal' is not finite")
    command = step(runner, 0.2)
    assert command is not None and command[0] == 0.5
    assert "goal" in runner.error and len(worker.requests) == 3
    worker.answer(3, 0.7)
    step(runner, 0.3)
    assert runner.error == "" and runner.inference_s == 0.01 and runner.delay_s == pytest.approx(0.1)


def test_warning_of_the_policy_is_that_of_its_newest_chunk() -> None:
    worker = Scripted()
    runner, _ = make(worker=worker)
    step(runner, 0.0)
    worker.answer(1, 0.5, warning="parent_1 is left out")
    command = step(runner, 0.1)
    assert command is not None and (runner.warning, runner.error) == ("parent_1 is left out", "")
    worker.answer(2, 0.5)
    step(runner, 0.2)
    assert runner.warning == ""


def test_chunks_are_due_one_planning_period_after_their_request_and_counted_by_steps() -> None:
    worker = Scripted()
    runner, _ = make(worker=worker)
    for number, (steps, missed) in enumerate([(4, False), (1, False), (1, True)], start=1):
        step(runner, 0.1 * number)
        worker.answer(number, 0.5)
        assert worker.result is not None
        worker.result = dataclasses.replace(worker.result, steps=steps, missed=missed)
    step(runner, 0.4)
    assert runner.taken == {4: 1, 1: 2} and runner.misses == 1
    assert [request.time_left_s for request in worker.requests] == [pytest.approx(0.1)] * 4


def arrive(runner: Runner, start: float, *arrivals: float) -> list[np.ndarray | None]:
    """One tick per action of a chunk that wants 0.5; the image says how sure the policy is."""
    commands = []
    for k, arrival in enumerate(arrivals):
        seen = {**observation(arrival), "goal": np.full(2, 0.5, np.float32)}
        now = start + 0.1 * k
        runner.observe(seen, now)
        runner.plan(now)
        commands.append(runner.command(now))
    return commands


def speeds(commands: list[np.ndarray | None]) -> list[float | None]:
    return [None if command is None else float(command[0]) for command in commands]


def test_robot_that_has_arrived_rests_until_the_next_goal() -> None:
    policy = Arriving()
    runner = Runner(InlineWorker(policy), ChunkBuffer(SPEC, 0.5), np.random.default_rng(0))
    assert speeds(arrive(runner, 0.0, 0.9, 0.9, 0.1, 0.9, 0.5, 0.9)) == [0.5] * 6
    assert not runner.arrived and runner.arrival == pytest.approx(0.9)
    assert speeds(arrive(runner, 0.6, 0.9, 0.0, 0.0)) == [0.0] * 3
    assert runner.arrived and runner.arrival == 0 and runner.age(0.8) == pytest.approx(0.0)
    assert len(policy.calls) == 9  # planning goes on
    np.testing.assert_array_equal(policy.calls[-1][1], 0)  # and holds on to the rest
    runner.clear()
    assert not runner.arrived and runner.command(0.85) is None
    assert speeds(arrive(runner, 0.9, 0.9, 0.9)) == [0.5, 0.5] and not runner.arrived


def test_chunk_of_a_robot_that_rests_grows_old_like_any_other() -> None:
    runner = Runner(InlineWorker(Arriving()), ChunkBuffer(SPEC, 0.5), np.random.default_rng(0))
    arrive(runner, 0.0, 0.9, 0.9, 0.9)
    assert runner.arrived
    assert speeds([runner.command(0.7)]) == [0.0] and runner.command(0.71) is None


def test_one_that_says_nothing_never_arrives() -> None:
    runner, _ = make()
    assert speeds(arrive(runner, 0.0, *[0.9] * 10)) == [0.5] * 10
    assert not runner.arrived and runner.arrival == 0


def test_zeros_are_no_rest_for_positions() -> None:
    action = dataclasses.replace(SPEC.action, units=("m", "m"))
    policy = Arriving(dataclasses.replace(SPEC, action=action))
    runner = Runner(InlineWorker(policy), ChunkBuffer(SPEC, 0.5), np.random.default_rng(0))
    assert speeds(arrive(runner, 0.0, *[0.9] * 6)) == [0.5] * 6
    assert not runner.arrived and runner.arrival == pytest.approx(0.9)


def test_failed_and_late_answers_do_not_count_as_arrival() -> None:
    worker = Scripted()
    runner, _ = make(worker=worker)
    for k, error in enumerate(("", "", "ContractError", "ContractError")):
        step(runner, 0.1 * k)
        worker.answer(k + 1, 0.5, error, arrival=1.0)
    step(runner, 0.4)
    assert not runner.arrived
    runner.clear()
    step(runner, 0.5)
    worker.answer(5, 0.5, arrival=1.0)  # to the goal before
    step(runner, 0.6)
    assert not runner.arrived and runner.arrival == 0
    worker.answer(6, 0.5, arrival=1.0)
    step(runner, 0.7)
    assert runner.arrival == 1 and not runner.arrived


def test_late_answer_to_an_old_goal_is_ignored() -> None:
    worker = Scripted()
    runner, _ = make(worker=worker)
    step(runner, 0.0)
    runner.clear()
    step(runner, 0.02)
    worker.answer(1, 9.0)
    assert step(runner, 0.04) is None
    worker.answer(2, 0.5)
    command = step(runner, 0.06)
    assert command is not None and command[0] == 0.5


def test_death_of_the_worker_is_reported_and_the_robot_stops() -> None:
    worker = Scripted()
    runner, _ = make(worker=worker)
    step(runner, 0.0)
    worker.answer(1, 0.5)
    assert step(runner, 0.1) is not None
    worker.alive = False
    assert [step(runner, now) is None for now in (0.2, 0.5, 0.52, 5.0)] == [False, False, True, True]
    assert "ended" in runner.error and len(worker.requests) == 2


def test_process_and_inline_worker_give_the_same_commands() -> None:
    inline, _ = make(latency=0.06)
    with InferenceWorker("follow", "toy_policies:load", SPEC) as process:
        process.wait_ready()
        remote, _ = make(latency=0.06, worker=process)
        for now in times(1.0):
            value = float(np.sin(5 * now))
            remote.observe(observation(value), now)
            remote.plan(now)
            while now >= remote_due(remote):
                remote.plan(now)
                time.sleep(1e-3)
            expected, command = step(inline, now, value), remote.command(now)
            np.testing.assert_equal(command, expected)


def remote_due(runner: Runner) -> float:
    """Time at which the chunk in flight is due, for a test that waits for the process."""
    waiting = runner._in_flight is not None
    return runner._planned + runner._latency_s - 1e-9 if waiting else math.inf
