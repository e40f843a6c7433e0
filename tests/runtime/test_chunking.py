"""What the three ways to follow a chunk command, with a policy that plans what the newest observation says."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from toy_policies import SPEC, Follow, observation

from policies.runtime.buffer import ChunkBuffer
from policies.runtime.runner import Chunking, Runner
from policies.runtime.worker import InlineWorker
from policies.spec import Array

TICK, PERIOD, DELAY = 0.05, 0.4, 0.2


@dataclass
class Counting(Follow):
    """Plans 0.1, 0.2, ... 0.8 above what it sees, so that a command says which action it is."""

    def act(self, observation: dict[str, Array], noise: Array, committed: Array, hold: Array) -> Array:  # type: ignore[override]
        chunk = super().act(observation, noise, committed, hold)
        ramp = 0.1 * np.arange(1, self.spec.horizon + 1, dtype=np.float32)[:, None]
        return chunk + (1 - hold[:, None]) * ramp


def drive(chunking: Chunking, policy: Follow, delay: float = DELAY) -> tuple[dict[float, Array | None], Follow]:
    """Commands of 2 s by time; the observation is the time in whole seconds."""
    buffer = ChunkBuffer(policy.spec, max_age_s=2.0)
    rng = np.random.default_rng(0)
    runner = Runner(InlineWorker(policy), buffer, rng, 1 / PERIOD, delay, chunking)
    commands = {}
    for now in (round(k * TICK, 2) for k in range(40)):
        runner.observe(observation(float(int(now)), policy.spec), now)
        runner.plan(now)
        commands[now] = runner.command(now)
    return commands, policy


def test_a_synchronous_robot_waits_for_every_chunk_and_begins_it_at_its_begin() -> None:
    commands, policy = drive("synchronous", Counting())
    assert len(policy.calls) == 4  # every 0.2 s of waiting and 0.4 s of chunk
    for begin in (0.0, 0.6, 1.2):
        waiting = [commands[now] for now in commands if begin <= now < begin + DELAY]
        assert len(waiting) == 4 and not np.any(waiting)
        first = commands[round(begin + DELAY, 2)]
        assert first is not None and first[0] == pytest.approx(int(begin) + 0.1)
    assert not any(hold.any() for _, _, hold in policy.calls)  # nothing is executed while they are planned


def test_a_synchronous_robot_that_is_told_positions_is_told_nothing_while_it_waits() -> None:
    action = replace(SPEC.action, units=("m", "m"))
    commands, _ = drive("synchronous", Counting(replace(SPEC, action=action)))
    assert [now for now in commands if commands[now] is None and now < 0.8] == [
        now for now in commands if now < 0.2 or 0.6 <= now < 0.8
    ]


def test_naive_chunks_know_nothing_of_what_is_executed_and_jump() -> None:
    commands, policy = drive("naive", Counting())
    assert len(policy.calls) == 5 and not any(hold.any() for _, _, hold in policy.calls)
    assert commands[1.35] is not None and commands[1.4] is not None
    assert commands[1.4][0] - commands[1.35][0] > 0.5  # what was seen at 1.2 s is a second more


def test_held_chunks_pass_through_what_was_commanded_until_they_arrived() -> None:
    commands, policy = drive("hold", Counting())
    assert [int(hold.sum()) for _, _, hold in policy.calls] == [0, 3, 3, 3, 3]  # 0.2 s and what is interpolated
    assert commands[1.35] is not None and commands[1.4] is not None
    assert abs(commands[1.4][0] - commands[1.35][0]) < 0.06


def test_without_delay_the_three_are_one() -> None:
    held, naive, synchronous = (drive(chunking, Counting(), 0.0)[0] for chunking in ("hold", "naive", "synchronous"))
    for now, command in held.items():
        assert command is not None
        np.testing.assert_array_equal(command, naive[now])
        np.testing.assert_allclose(command, synchronous[now], atol=1e-6)
