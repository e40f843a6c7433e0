"""As many steps as there is time for, on a machine whose speed the test decides."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_bundle import SPEC, draw, expected, make_graph

from policies.network import Network
from policies.runtime.any_step import EXCEEDED, AnyStep
from policies.spec import Array, Observation

COSTS = {1: 1e-3, 2: 2e-3, 4: 4e-3, 10: 10e-3}


class Machine:
    """A clock that only computing moves, at a speed that can be changed."""

    def __init__(self) -> None:
        self.now, self.slow = 0.0, 1.0

    def clock(self) -> float:
        return self.now


class Timed(Network):
    """Takes a given time on a machine that is not busy."""

    def __init__(self, machine: Machine, seconds: float) -> None:
        super().__init__(make_graph(), SPEC)
        self._machine, self._seconds = machine, seconds

    def latency(self, n: int) -> Array:
        return np.full(n, self._seconds * self._machine.slow)

    def _plan(self, observation: Observation, noise: Array, committed: Array, hold: Array) -> Array:
        self._machine.now += self._seconds * self._machine.slow
        return super()._plan(observation, noise, committed, hold)


def make(warm: bool = True) -> tuple[AnyStep, Machine]:
    machine = Machine()
    policy = AnyStep({steps: Timed(machine, seconds) for steps, seconds in COSTS.items()}, machine.clock)
    if warm:
        policy.warm_up(3)
    return policy, machine


def chunk(policy: AnyStep, machine: Machine, time_left_s: float) -> float:
    """Plan one chunk and return the seconds it took."""
    policy.time_left_s, begin = time_left_s, machine.now
    policy.act(*draw(1))
    return machine.now - begin


@pytest.mark.parametrize(
    ("time_left_ms", "steps"), [(np.inf, 10), (11, 10), (9, 4), (3, 2), (1.5, 1), (0.5, 1), (-1, 1)]
)
def test_takes_the_most_steps_for_which_there_is_time(time_left_ms: float, steps: int) -> None:
    policy, machine = make()
    assert chunk(policy, machine, 1e-3 * time_left_ms) == pytest.approx(COSTS[steps])
    assert policy.steps == steps


def test_before_it_is_warm_only_what_has_no_deadline_gets_all_steps() -> None:
    policy, machine = make(warm=False)
    chunk(policy, machine, np.inf)
    assert policy.steps == 10
    policy, machine = make(warm=False)
    chunk(policy, machine, 1e6)
    assert policy.steps == 1


def test_answers_as_the_graph_does() -> None:
    policy, _ = make()
    np.testing.assert_allclose(policy.act(*draw(2)), expected(*draw(2)), atol=1e-6)
    assert policy.disagreement == 1 and policy.arrival == pytest.approx(draw(2)[-1].mean())


def test_a_machine_that_becomes_busy_costs_a_few_chunks_and_one_that_is_free_again_gets_all_steps() -> None:
    policy, machine = make()
    assert [chunk(policy, machine, 0.02) for _ in range(5)] == pytest.approx([0.01] * 5)
    machine.slow = 4.5
    late = [chunk(policy, machine, 0.02) > 0.02 for _ in range(200)]
    assert sum(late) <= 3 and not any(late[10:])
    assert policy.steps in (2, 4)
    machine.slow = 1.0
    assert not any(chunk(policy, machine, 0.02) > 0.02 for _ in range(300))
    assert policy.steps == 10


@pytest.mark.parametrize("spread", [0.1, 0.5, 1.0])
def test_only_a_small_share_takes_longer_than_expected_whatever_the_times_are(spread: float) -> None:
    policy, machine = make()
    rng = np.random.default_rng(0)
    slow, misses, count = rng.lognormal(0, spread, 4000).clip(1, 50), 0, 0
    for machine.slow in slow:
        misses += chunk(policy, machine, 0.06) > 0.06
        count += policy.steps > 1
    assert misses <= 1.5 * EXCEEDED * len(slow)
    assert count > len(slow) / 4, "and it does not achieve that by taking the fewest steps always"


def test_a_time_that_is_too_short_for_anything_says_nothing_about_the_machine() -> None:
    policy, machine = make()
    machine.slow = 1.5
    for _ in range(50):
        chunk(policy, machine, 1e-4)
    assert policy.slow_down == 1 and policy.steps == 1
