"""Small policies that the inference process of the tests can import."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from policies.spec import ActionSpec, Array, Feature, Observation, Spec

SPEC = Spec(
    observations=(Feature("goal", (2,), "m", "base_link"), Feature("image", (4, 5, 3), "1", "camera")),
    action=ActionSpec(("vx", "vy"), ("m/s", "m/s"), "base_link", (-1.0, -1.0), (1.0, 1.0)),
    rate_hz=10.0,
    history=2,
    horizon=8,
)


def observation(value: float, spec: Spec = SPEC) -> dict[str, Array]:
    """One observation without history, filled with ``value``."""
    return {f.name: np.full(f.shape, value, np.float32) for f in spec.observations}


@dataclass
class Follow:
    """Commands the newest goal, honours the hold weights, and reports a non-finite observation as its contract says."""

    spec: Spec = SPEC
    calls: list[tuple[Array, Array, Array]] = field(default_factory=list)

    def act(self, observation: Observation, noise: Array, committed: Array, hold: Array) -> Array:
        self.spec.check(observation)
        self.calls.append((noise.copy(), committed.copy(), hold.copy()))
        wanted = np.broadcast_to(observation["goal"][-1], noise.shape)
        return (hold[:, None] * committed + (1 - hold[:, None]) * wanted).astype(np.float32)


@dataclass
class Arriving(Follow):
    """Is as sure that it has arrived as the image is bright."""

    arrival: float = 0.0

    def act(self, observation: Observation, noise: Array, committed: Array, hold: Array) -> Array:
        self.arrival = float(observation["image"][-1].max())
        return super().act(observation, noise, committed, hold)

    def act_batch(self, requests: Sequence[tuple[Observation, Array, Array, Array]]) -> Array:
        """Plan for several robots, each of which is as sure as its own image is bright."""
        chunks, arrivals = [], []
        for request in requests:
            chunks.append(self.act(*request))
            arrivals.append(self.arrival)
        self.arrivals, self.disagreement = np.array(arrivals, np.float32), 0.0
        return np.stack(chunks)


class Slow(Follow):
    """Takes 0.2 s."""

    def act(self, observation: Observation, noise: Array, committed: Array, hold: Array) -> Array:
        time.sleep(0.2)
        return super().act(observation, noise, committed, hold)


class Stuck(Follow):
    """Never answers after its warm-up."""

    def act(self, observation: Observation, noise: Array, committed: Array, hold: Array) -> Array:
        while observation["goal"].any():
            pass
        return super().act(observation, noise, committed, hold)


class Extremes(Follow):
    """Commands the smallest and the largest value in the image: equal in every observation that is whole."""

    def act(self, observation: Observation, noise: Array, committed: Array, hold: Array) -> Array:
        extremes = [observation["image"].min(), observation["image"].max()]
        return np.broadcast_to(np.array(extremes, np.float32), noise.shape)


class Process(Follow):
    """Commands the number of numeric threads and of calls so far, warm-up included."""

    def act(self, observation: Observation, noise: Array, committed: Array, hold: Array) -> Array:
        super().act(observation, noise, committed, hold)
        threads = int(os.environ["OMP_NUM_THREADS"])
        return np.broadcast_to(np.array([threads, len(self.calls)], np.float32), noise.shape)


class Broken(Follow):
    """Commands NaN."""

    def act(self, observation: Observation, noise: Array, committed: Array, hold: Array) -> Array:
        return np.full(noise.shape, np.nan, np.float32)


LARGE = Spec((Feature("image", (200, 300, 3), "1", "camera"),), SPEC.action, SPEC.rate_hz, 1, SPEC.horizon)


def load(path: str) -> Follow:
    """Build the policy that ``path`` names; ``missing`` does not load, ``die`` ends the process."""
    if path == "die":
        os._exit(3)
    if path == "large":
        return Extremes(LARGE)
    return {"follow": Follow, "arriving": Arriving, "slow": Slow, "stuck": Stuck, "process": Process}[path]()
