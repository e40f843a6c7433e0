"""As many denoising steps as there is time for: several graphs of one policy, one of them per chunk. numpy only.

A number of steps is expected to take the shortest time it ever took, times a slow-down that all of them share. On a
busy machine a chunk waits between time slices of others, so that its time has no mean worth knowing. The slow-down
follows a quantile instead, the one that only a small share of the chunks exceeds: it grows by half after a chunk that
took longer than expected and shrinks a little after every other, which makes that share come out right whatever the
times are and however they change (adaptive conformal inference, arXiv 2106.00170).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

from policies.network import Network, Runnable
from policies.spec import Array, Observation

EXCEEDED = 0.02
"""Share of the chunks that may take longer than expected; most of these are in time nevertheless."""
_GROWTH = 1.5
_DECAY = _GROWTH ** (-EXCEEDED / (1 - EXCEEDED))


def by_steps(policy: Runnable, most: int) -> Mapping[int, Runnable]:
    """What makes chunks in each number of steps: a policy that does not choose has one, its ``most``."""
    return policy.networks if isinstance(policy, AnyStep) else {most: policy}


class AnyStep(Runnable):
    """Takes the most steps that are expected to be done within `time_left_s`; the fewest if none are.

    Nothing is expected before `warm_up`, so until then a chunk with a deadline gets the fewest steps.

    Args:
        networks: The policy by its number of steps; they share its goal.
        clock: Time in seconds.
    """

    def __init__(self, networks: Mapping[int, Network], clock: Callable[[], float] = time.perf_counter) -> None:
        self.networks = dict(sorted(networks.items(), reverse=True))
        """The most steps first."""
        super().__init__(next(iter(self.networks.values())).spec)
        self.steps = max(networks)
        """Of the newest chunk."""
        self.slow_down = 1.0
        """How many times the shortest time a chunk is expected to take."""
        self._shortest_s = dict.fromkeys(self.networks, math.inf)
        self._clock = clock

    def warm_up(self, n: int) -> None:
        """Run ``n`` times with every number of steps and once more, and take note of the shortest times."""
        for steps, network in self.networks.items():
            self._shortest_s[steps] = float(network.latency(n + 1).min())

    def expected_s(self, steps: int) -> float:
        """Seconds within which a chunk of so many steps is expected."""
        return self.slow_down * self._shortest_s[steps]

    def _plan(self, observation: Observation, noise: Array, committed: Array, hold: Array) -> Array:
        in_time = (steps for steps in self.networks if self.expected_s(steps) <= self.time_left_s)
        self.steps = next(in_time, min(self.networks))
        network, begin = self.networks[self.steps], self._clock()
        actions = network._plan(observation, noise, committed, hold)
        self._note(self._clock() - begin)
        self.disagreement, self.arrival = network.disagreement, network.arrival
        return actions

    def _note(self, seconds: float) -> None:
        expected_s = self.expected_s(self.steps)
        if seconds <= expected_s:
            self.slow_down = max(1.0, self.slow_down * _DECAY)
        elif expected_s <= self.time_left_s:  # otherwise there is nothing fewer to take
            self.slow_down *= _GROWTH
        self._shortest_s[self.steps] = min(self._shortest_s[self.steps], seconds)
