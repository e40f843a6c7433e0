"""Commands learned from recordings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from planners.inverse_dynamics import InverseDynamics
from planners.search import Route
from planners.track import AccelerationTracker, Curve, Follower, Reference, Tracker
from policies.spec import Array, ContractError

STEP, LEAD, LIMIT = 0.1, 4, 0.5


def recordings(count: int = 60, length: int = 150) -> tuple[list[Array], list[Array]]:
    """Pucks that are pushed about: accelerations that change slowly."""
    rng = np.random.default_rng(0)
    states, commands, push = np.zeros((count, length, 4)), np.zeros((count, length, 2)), np.zeros((count, 2))
    state = rng.normal(0, 0.5, (count, 4))
    for step in range(length):
        push = np.clip(0.95 * push + rng.normal(0, 0.12, push.shape), -LIMIT, LIMIT)
        states[:, step], commands[:, step] = state, push
        state = moved(state, push)
    return list(states), list(commands)


def moved(state: Array, command: Array) -> Array:
    velocity = state[..., 2:] + STEP * command
    return np.concatenate([state[..., :2] + STEP * (state[..., 2:] + velocity) / 2, velocity], -1)


@pytest.fixture(scope="module")
def learned() -> InverseDynamics:
    return InverseDynamics.train_on(*recordings(), LEAD, STEP, LIMIT)


def test_it_finds_the_command_that_leads_there(learned: InverseDynamics) -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        velocity, wanted = rng.normal(0, 0.5, 2), rng.uniform(-0.4, 0.4, 2)
        state = np.r_[rng.normal(0, 5, 2), velocity]
        there = state
        for _ in range(LEAD):
            there = moved(there, wanted)
        lead = LEAD * STEP
        reference = Reference(there[:2] - lead * velocity, velocity, np.zeros(2))
        np.testing.assert_allclose(learned.command(state, reference), wanted, atol=0.12)


def deviation(tracker: Tracker) -> float:
    """Mean distance in m from a curve that a puck can follow."""
    angles = np.linspace(0, 4, 80)
    route = Route(np.stack([4 * np.cos(angles) - 4, 4 * np.sin(angles)], -1), np.linspace(0, 200, 80))
    follower, state, off = Follower(Curve(route, STEP), 5.0, 9.0), np.zeros(4), []
    for _ in range(200):
        command = tracker.command(state, follower.advance(state[:2], STEP))
        assert command.dtype == np.float32 and np.abs(command).max() <= LIMIT
        state = moved(state, command)
        off.append(follower.deviation)
    return float(np.mean(off[50:]))


class Nothing:
    def command(self, state: Array, reference: Reference) -> Array:
        return np.zeros(2, np.float32)


def test_it_follows_a_plan_nearly_as_well_as_who_knows_the_model(learned: InverseDynamics) -> None:
    by_model, by_recordings = deviation(AccelerationTracker(1.5, LIMIT)), deviation(learned)
    assert by_recordings < by_model + 0.15 and by_recordings < 0.2 * deviation(Nothing())


def test_it_comes_back_from_its_file(learned: InverseDynamics, tmp_path: Path) -> None:
    learned.save(tmp_path / "inverse.safetensors")
    again = InverseDynamics.load(tmp_path / "inverse.safetensors")
    values = torch.randn(2, 5, 2)
    assert torch.equal(learned(*values), again(*values)) and (again.lead_s, again.limit) == (LEAD * STEP, LIMIT)
    (tmp_path / "damaged").write_bytes((tmp_path / "inverse.safetensors").read_bytes()[:200])
    with pytest.raises(ContractError, match="train them again"):
        InverseDynamics.load(tmp_path / "damaged")


def test_the_same_seed_learns_the_same() -> None:
    states, commands = recordings(10, 40)
    one, two = (InverseDynamics.train_on(states, commands, LEAD, STEP, LIMIT, steps=5) for _ in range(2))
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())


def test_recordings_that_do_not_fit_are_refused() -> None:
    states, commands = recordings(2, 30)
    for bad, message in (
        ((states, [one[:5] for one in commands]), "are not"),
        (([s[:3] for s in states], commands), "no"),
    ):
        with pytest.raises(ContractError, match=message):
            InverseDynamics.train_on(*bad, LEAD, STEP, LIMIT, steps=1)
