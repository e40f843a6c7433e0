"""Jerk of commands whose jerk is known."""

from __future__ import annotations

import numpy as np
import pytest

from envs.drive import jerk
from envs.evaluate import EvaluateConfig, evaluate
from policies.spec import ActionSpec

DT = 0.1
TIME = DT * np.arange(50)


def action(*units: str) -> ActionSpec:
    size = len(units)
    return ActionSpec(("x", "y", "z")[:size], units, "base_link", (-1.0,) * size, (1.0,) * size)


@pytest.mark.parametrize(("unit", "power"), [("m/s^2", 1), ("m/s", 2), ("m", 3), ("1", 3)])
def test_commands_are_differentiated_as_often_as_they_need(unit: str, power: int) -> None:
    factorial = (1, 1, 2, 6)[power]
    commands = 0.5 * TIME[:, None] ** power / factorial  # constant jerk of 0.5 per s^3
    assert jerk(list(commands), action(unit), DT) == {"jerk": pytest.approx(0.5, abs=1e-3)}


def test_components_add_up_and_turning_is_apart() -> None:
    commands = np.stack([3 * TIME**2 / 2, 4 * TIME**2 / 2, 7 * TIME**2 / 2], -1)
    found = jerk(list(commands), action("m/s", "m/s", "rad/s"), DT)
    assert found == pytest.approx({"jerk": 5.0, "turn_jerk": 7.0}, abs=1e-3)


def test_a_sine_has_the_root_mean_square_it_should() -> None:
    time = 0.001 * np.arange(20_000)
    found = jerk(list(np.sin(np.pi * time)[:, None]), action("m/s"), 0.001)
    assert found["jerk"] == pytest.approx(np.pi**2 / np.sqrt(2), rel=1e-3)


def test_too_few_commands_have_none() -> None:
    assert jerk([np.ones(1)] * 2, action("m/s"), DT) == {"jerk": 0.0}


def test_waiting_robots_keep_their_target_and_every_episode_says_its_jerk() -> None:
    pytest.importorskip("gym_pusht")
    config = EvaluateConfig("kinoflow/PushT-v0", episodes=1, workers=1)
    rows = evaluate([], "", config, lambda done, total: None)["rows"]
    assert rows["standing still"][0]["jerk"] == 0.0 < rows["expert"][0]["jerk"]
