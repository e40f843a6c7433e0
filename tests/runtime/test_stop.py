from __future__ import annotations

import numpy as np
import pytest

from policies.runtime.stop import CHUNKS, ENTER, LEAVE, StopLatch


def held(arrivals: list[float]) -> list[bool]:
    latch, states = StopLatch(), []
    for arrival in arrivals:
        latch.update(arrival)
        states.append(latch.held)
    return states


@pytest.mark.parametrize(
    ("arrivals", "states"),
    [
        ([0.9, 0.9, 0.9], "..x"),
        ([ENTER] * 3, "..x"),
        ([0.59] * 6, "......"),
        ([0.9, 0.9, 0.5, 0.9], "...x"),
        ([0.9, LEAVE, 0.9, 0.5, 0.5, 0.9], ".....x"),
        ([0.9, 0.9, 0.39, 0.9, 0.9, 0.9], ".....x"),
        ([0.9, 0.9, 0.0] * 4, "............"),
        ([0.9, 0.9, 0.9, 0.0, 0.0, 0.0, 0.5, 0.9], "..xxxxxx"),
        ([0.9, 0.9, float("nan"), 0.9, 0.9, 0.9], ".....x"),
        ([0.0] * 10, ".........."),
    ],
)
def test_three_sure_chunks_in_a_row_engage_for_good(arrivals: list[float], states: str) -> None:
    assert held(arrivals) == [state == "x" for state in states]


def test_clear_lets_go_and_begins_again() -> None:
    latch = StopLatch()
    for counted in (CHUNKS, CHUNKS - 1):
        for _ in range(counted):
            latch.update(1.0)
        assert latch.held == (counted == CHUNKS)
        latch.clear()
        assert not latch.held
    for _ in range(CHUNKS - 1):
        latch.update(1.0)
    assert not latch.held


def test_the_latch_is_what_a_count_by_hand_says() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        arrivals, sure, engaged, states = rng.uniform(0.3, 0.8, 30).tolist(), 0, False, []
        for arrival in arrivals:
            sure = sure + 1 if arrival >= 0.6 else 0 if arrival < 0.4 else sure
            engaged = engaged or sure == 3
            states.append(engaged)
        assert held(arrivals) == states
