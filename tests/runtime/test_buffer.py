from __future__ import annotations

import math
import threading

import numpy as np
import pytest
from toy_policies import SPEC

from policies.chunk import Chunk
from policies.runtime.buffer import ChunkBuffer

H, A, DT = SPEC.horizon, SPEC.action.dim, SPEC.dt


def chunk(start: float, value: float | None = None, rng: np.random.Generator | None = None) -> Chunk:
    actions = np.full((H, A), value) if rng is None else rng.standard_normal((H, A))
    return Chunk(actions.astype(np.float32), start, DT)


def delivered(delay: float, period: float, deliveries: int = 3) -> ChunkBuffer:
    """A buffer whose chunks arrive ``delay`` after their observation, under commands every ``period`` seconds."""
    buffer = ChunkBuffer(SPEC, max_age_s=10.0, soft=0)
    ticks = np.arange(0, 1.0, period)
    for start in np.arange(deliveries) * 1.0:
        for tick in start + ticks[ticks < delay - 1e-9]:
            buffer.command(float(tick))
        buffer.put(chunk(float(start), start), float(start + delay))
    return buffer


def test_without_a_chunk_there_is_no_command_and_nothing_committed() -> None:
    buffer = ChunkBuffer(SPEC, 1.0)
    actions, hold = buffer.committed(0.0)
    assert buffer.command(0.0) is None and buffer.age(0.0) == math.inf
    assert actions.shape == (H, A) and hold.shape == (H,)
    assert not actions.any() and not hold.any()


def test_random_deliveries_keep_the_invariants() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        buffer, now, newest = ChunkBuffer(SPEC, max_age_s=0.5), 0.0, None
        for _ in range(200):
            now += rng.exponential(0.05)
            event = rng.random()
            if event < 0.3:
                candidate = chunk(now - rng.exponential(0.2), rng=rng)
                accepted = buffer.put(candidate, now)
                assert accepted == (newest is None or candidate.start >= newest.start)
                newest = candidate if accepted else newest
            elif event < 0.35:
                buffer.clear()
                newest = None
            command = buffer.command(now)
            executing = newest is not None and now - newest.start <= 0.5
            assert (command is not None) == executing
            if command is not None and newest is not None:
                np.testing.assert_array_equal(command, newest.at(now))
            actions, hold = buffer.committed(now)
            assert actions.dtype == hold.dtype == np.float32
            assert ((hold >= 0) & (hold <= 1)).all() and (np.diff(hold) <= 0).all()
            assert executing or not hold.any()


def test_chunk_ends_at_its_age_not_at_its_last_action() -> None:
    buffer = ChunkBuffer(SPEC, max_age_s=1.0)
    buffer.put(chunk(2.0, 3.0), 2.1)
    assert buffer.command(3.0) is not None
    assert buffer.command(3.0 + 1e-6) is None
    assert buffer.age(2.75) == 0.75


def test_committed_is_the_old_chunk_on_the_new_grid() -> None:
    buffer = ChunkBuffer(SPEC, max_age_s=1.0)
    old = chunk(0.0, rng=np.random.default_rng(1))
    buffer.put(old, 0.05)
    actions, _ = buffer.committed(0.2)
    np.testing.assert_allclose(actions[:-2], old.actions[2:], atol=1e-5)
    np.testing.assert_array_equal(actions[-2:], np.stack([old.actions[-1]] * 2))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_with_one_command_per_action_the_frozen_steps_are_the_delay(steps: int) -> None:
    buffer = delivered(delay=steps * DT, period=DT)
    _, hold = buffer.committed(2.1)
    assert hold.tolist() == [1.0] * steps + [0.0] * (H - steps)
    assert buffer.delay_s == pytest.approx(steps * DT)


def test_between_the_grid_points_both_neighbours_of_the_last_command_are_frozen() -> None:
    _, hold = delivered(delay=0.06, period=0.02).committed(2.1)
    assert hold.tolist() == [1.0, 1.0] + [0.0] * (H - 2)


def test_without_delay_nothing_is_frozen() -> None:
    _, hold = delivered(delay=0.0, period=0.02).committed(2.1)
    assert not hold.any()


def test_estimate_is_an_upper_one_that_forgets_an_outlier() -> None:
    buffer = ChunkBuffer(SPEC, max_age_s=1.0, soft=0)
    frozen = []
    for k in range(60):
        start = float(k)
        buffer.command(start + (0.3 if k == 5 else 0.05))
        buffer.put(chunk(start, 0.0), start + 0.35)
        frozen.append(int(buffer.committed(start + 0.1)[1].sum()))
    assert frozen[0] == 2 and frozen[5:25] == [4] * 20 and frozen[25:] == [2] * 35


def test_nothing_beyond_the_end_of_the_old_chunk_is_held() -> None:
    buffer = ChunkBuffer(SPEC, max_age_s=5.0, soft=4)
    buffer.command(10.0)
    buffer.put(chunk(0.0, 1.0), 10.0)
    for start, known in ((0.3, 5), (0.7, 1), (0.75, 0), (2.0, 0)):
        _, hold = buffer.committed(start)
        assert (hold[:known] == 1).all() and not hold[known:].any()


def test_reading_while_another_thread_hands_over_sees_whole_chunks_only() -> None:
    buffer, stop = ChunkBuffer(SPEC, max_age_s=1e9), threading.Event()

    def hand_over() -> None:
        for k in range(20_000):
            buffer.put(chunk(float(k), float(k)), float(k))
            if k % 100 == 0:
                buffer.clear()
        stop.set()

    thread = threading.Thread(target=hand_over)
    thread.start()
    seen = []
    while not stop.is_set():
        command = buffer.command(3e4)
        if command is not None:
            assert command[0] == command[1]
            seen.append(float(command[0]))
    thread.join()
    assert buffer.command(3e4) is not None
    assert seen == sorted(seen)
