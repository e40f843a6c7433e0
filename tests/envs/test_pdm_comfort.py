"""Every bound of comfort, its quirks, and plans that agree with the one before."""

from __future__ import annotations

import numpy as np
import pytest
from toy_roads import TIME, drive, one, road

from envs.metrics import (
    PACIFICA,
    score_states,
)
from envs.metrics.comfort import comfort_signals, comfortable
from envs.metrics.tracker import ACCELERATION, HEADING, YAW_RATE, X
from policies.spec import Array, ContractError


def signals_like(row: int, value: float) -> Array:
    """A drive whose signal ``row`` of `comfort_signals` is constant."""
    states = drive(8.0)
    if row == 0:
        states[..., ACCELERATION] = value
    elif row == 1:
        states[..., YAW_RATE] = value / 8
    elif row == 2:
        states[..., YAW_RATE] = value * (1 + TIME) / 8
    elif row == 3:
        states[..., ACCELERATION] = value * TIME
    elif row == 4:
        states[..., HEADING] = value * TIME**2 / 2
    else:
        states[..., HEADING] = value * TIME
    return states


@pytest.mark.parametrize(
    ("row", "bound"),
    [(0, 2.40), (0, -4.05), (1, 4.89), (1, -4.89), (2, 8.37), (3, 4.13), (3, -4.13), (4, 1.93), (4, -1.93), (5, 0.95),
     (5, -0.95)],
)  # fmt: skip
def test_each_bound_of_comfort(row: int, bound: float) -> None:
    for share, expected in ((0.999, True), (1.0, False), (1.001, False)):
        states = signals_like(row, share * bound)
        np.testing.assert_allclose(comfort_signals(states)[row], share * bound, atol=1e-7)
        assert comfortable(states)[row, 0] == expected
        if not expected:
            assert one("comfort", states, road()) == 0
    other = np.delete(comfortable(signals_like(row, 0.1 * bound)), row, 0)
    assert other.all()


def test_the_quirks_of_comfort() -> None:
    turning = signals_like(1, 6.0)
    assert one("comfort", turning, road()) == 0
    assert one("comfort", turning, road(), reference_quirks=True) == 1, "no lateral acceleration"
    # One hard push for half a second hides in a window of 41 samples.
    push = drive(8.0)
    push[:, 18:24, ACCELERATION] = 4.0
    for version, quirks, expected in ((1, True, 1), (1, False, 0), (2, True, 0), (2, False, 0)):
        assert one("comfort", push, road(), version=version, reference_quirks=quirks) == expected
    spinning = drive(8.0)
    spinning[..., YAW_RATE] = 0.9
    forward = comfort_signals(spinning, 2, reference_quirks=True)[0]
    np.testing.assert_allclose(forward, PACIFICA.ahead * 0.81, atol=1e-7)


def test_the_history_belongs_to_comfort_in_version_2() -> None:
    history = drive(5.0, samples=15)[0]
    history[..., X] -= 7.5
    assert one("comfort", drive(), road(history=history), version=2) == 1
    history[:, ACCELERATION] = 3.0
    assert one("comfort", drive(), road(history=history), version=2) == 0
    assert one("comfort", drive(), road(history=history), version=1) == 1


@pytest.mark.parametrize(
    ("signal", "limit"), [("acceleration", 0.7), ("jerk", 0.5), ("yaw rate", 0.1), ("yaw acceleration", 0.1)]
)
def test_plans_agree_with_the_one_before(signal: str, limit: float) -> None:
    since = TIME - 3.0  # around the middle of the two seconds that overlap
    for share, expected in ((0.99, 1), (1.01, 0)):
        states, before = drive(8.0), drive(8.0)
        states[..., ACCELERATION] = before[..., ACCELERATION] = 20.0
        value = share * limit
        if signal == "acceleration":
            before[..., ACCELERATION] += value
        elif signal == "jerk":
            before[..., ACCELERATION] += value * since
        elif signal == "yaw rate":
            before[..., HEADING] = value * since
        else:
            before[..., HEADING] = value * since**2 / 2
        score = score_states(states, road(), version=2, previous=before[0], previous_steps=20)
        assert score.extended_comfort[0] == expected


def test_extended_comfort_is_neutral_without_a_plan_before() -> None:
    rough = signals_like(3, 4.0)
    assert one("extended_comfort", rough, road(), version=2) == 1
    assert one("extended_comfort", rough, road(), version=1, previous=drive()[0]) == 1
    assert one("extended_comfort", rough, road(), version=2, previous=drive()[0]) == 0
    older = drive(samples=46)[0]
    assert one("extended_comfort", drive(), road(), version=2, previous=older) == 1
    with pytest.raises(ContractError, match="overlap"):
        score_states(drive(), road(), version=2, previous=older[:6])
