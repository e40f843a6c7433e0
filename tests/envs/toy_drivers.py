"""Policies without a network, loaded by name in worker processes."""

import dataclasses
import math

import gymnasium
import numpy as np

import envs  # noqa: F401 (registers the environment)
from policies.spec import Array, ChunkPolicy, Observation, Spec

BLIND, CAUTIOUS, TOGETHER, UNSTATED = "blind", "cautious", "together", "blind, at no stated rate"


class StraightAhead:
    """Drives at the goal; the cautious one stops a metre before the first obstacle."""

    def __init__(self, stop_before: float) -> None:
        env = gymnasium.make("kinoflow/Nav-v0", disable_env_checker=True).unwrapped
        contract: Spec = env.contract  # type: ignore[attr-defined]
        self.spec = Spec(contract.observations, contract.action, contract.rate_hz, history=1, horizon=8)
        self._stop_before = stop_before

    def act(self, observation: Observation, noise: Array, committed: Array, hold: Array) -> Array:
        x, y = (float(value) for value in observation["goal"][-1])
        bearing, distance = math.atan2(y, x), math.hypot(x, y)
        blocked = observation["scan"][-1].min() < self._stop_before
        speed = 0.0 if blocked or distance < 0.1 else min(0.5, distance) * max(0.0, math.cos(bearing))
        turn = 1.5 * bearing if distance > 0.3 else 0.0
        command = self.spec.action.clip(np.array([speed, 0.0, turn]))
        return np.tile(command, (self.spec.horizon, 1)).astype(np.float32)


class Together(StraightAhead):
    """The blind one, planning for many episodes at once."""

    disagreement = 0.0

    def act_batch(self, requests: list[tuple[Observation, Array, Array, Array]]) -> Array:
        return np.stack([self.act(*request) for request in requests])


def load(name: str) -> ChunkPolicy:
    if name == TOGETHER:
        return Together(0.0)
    policy = StraightAhead(1.0 if name == CAUTIOUS else 0.0)
    if name == UNSTATED:
        policy.spec = dataclasses.replace(policy.spec, rate_hz=0.0)
    return policy
