"""The sampler of a composition: steps along the grid with the estimates of the parents blended. numpy only.

It computes what `policies.policy.Policy` does for a composition in torch: straight steps, `policies.flow.hold` in its
closed form and the limits of the contract. Nothing is allocated per step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from policies.manifest import Consensus, Parent, Sampler
from policies.spec import Array, Spec

_EPS = float(np.finfo(np.float32).eps)


class Shares(NamedTuple):
    """How the parents that are there divide a chunk.

    Args:
        weights: ``(parents, 1, past + H, A)``, summing to 1.
        sizes: ``(parents, past + H, A)`` sizes of the weights relative to each other.
        rows: Per action the one to take, None if it is the action itself.
    """

    weights: Array
    sizes: Array
    rows: Array | None


def share(parents: Sequence[Parent], present: Sequence[bool]) -> Shares | None:
    """Share the weight of the absent among those who are there, action by action, as `policies.flow.tail_weights`.

    Where none of the rest has a positive weight, those who plan this action and have one elsewhere share it equally;
    parents that only push away never drive alone. An action that nobody plans repeats the one next to it.

    Returns:
        None if nobody is there who could drive.
    """
    given = np.array([parent.weights for parent in parents])
    there = np.array(present)[:, None, None]
    pull, steps = given.clip(min=0) * there, np.arange(given.shape[1])
    plans = [(p.begin <= steps) & (steps < p.begin + p.length) & (np.max(p.weights) > 0) for p in parents]
    pull = np.where(pull.sum(0) > 0, pull, np.array(plans)[:, :, None] * there)
    total = pull.sum(0)
    push = np.where(total > 0, given.clip(max=0) * there, 0)
    planned = np.flatnonzero(total.all(1))
    if not len(planned):
        return None
    weights = pull / np.where(total > 0, total, 1) * (1 - push.sum(0)) + push
    sizes = np.abs(weights) / np.maximum(np.abs(weights).sum(0), _EPS)
    rows = planned[np.abs(steps[:, None] - planned).argmin(1)] if len(planned) < len(steps) else None
    return Shares(weights[:, None].astype(np.float32), sizes.astype(np.float32), rows)


class Blend:
    """A chunk on its way from noise to actions.

    Args:
        spec: Contract of the composition.
        sampler: Time grid and temperature.
        consensus: The parents and the units of the actions.
    """

    def __init__(self, spec: Spec, sampler: Sampler, consensus: Consensus) -> None:
        count, shape = len(consensus.parents), spec.noise_shape
        self.x = np.zeros(shape, np.float32)
        """State ``(past + H, A)`` in normal units."""
        self.estimates = np.zeros((count, 2, *shape), np.float32)
        """Data and noise that each parent estimates; 0 for those who are not there."""
        self.spread = 0.0
        """Largest root mean square of the weighted standard deviation between the parents' data so far."""
        self._grid, self._past = sampler.grid, spec.past
        self._start = sampler.temperature * math.hypot(sampler.grid[0], 1 - sampler.grid[0])
        self._offset, self._scale = (np.array(part, np.float32) for part in (consensus.offset, consensus.scale))
        self._low, self._high = (np.array(bound, np.float32) for bound in (spec.action.low, spec.action.high))
        self._committed, self._held, self._mean = (np.zeros(shape, np.float32) for _ in range(3))
        self._hold, self._holds = np.zeros((shape[0], 1), np.float32), False
        self._parts, self._pair = np.zeros_like(self.estimates), np.zeros((2, *shape), np.float32)
        self._apart = np.zeros((count, *shape), np.float32)

    def begin(self, noise: Array, committed: Array, hold: Array) -> None:
        """Begin a chunk, see `policies.spec.ChunkPolicy.act` for the arrays."""
        np.multiply(noise, self._start, out=self.x)
        np.subtract(committed, self._offset, out=self._committed[self._past :])
        self._committed[self._past :] /= self._scale
        self._hold[self._past :, 0] = hold
        self._holds, self.spread = bool(hold.any()), 0.0

    def advance(self, step: int, shares: Shares) -> None:
        """Go straight along the blended pair, and for held actions along the pair that ends on them."""
        begin, end = self._grid[step], self._grid[step + 1]
        np.multiply(self.estimates, shares.weights, out=self._parts)
        np.add.reduce(self._parts, 0, out=self._pair)
        self.spread = max(self.spread, self._deviation(shares.sizes))
        if self._holds:
            slope = (1 - end) / max(1 - begin, _EPS)
            np.multiply(self.x, slope, out=self._held)
            self._held += (end - slope * begin) * self._committed
        data, noise = self._pair
        data *= end
        noise *= 1 - end
        np.add(data, noise, out=self.x)
        if self._holds:
            self._held -= self.x
            self._held *= self._hold
            self.x += self._held

    def actions(self, shares: Shares) -> Array:
        """Return the ``(H, A)`` actions in SI units, within the limits."""
        planned = self.x if shares.rows is None else self.x[shares.rows]
        return np.minimum(np.maximum(planned[self._past :] * self._scale + self._offset, self._low), self._high)

    def _deviation(self, sizes: Array) -> float:
        data = self.estimates[:, 0]
        np.multiply(data, sizes, out=self._apart)
        np.add.reduce(self._apart, 0, out=self._mean)
        np.subtract(data, self._mean, out=self._apart)
        np.multiply(self._apart, self._apart, out=self._apart)
        np.multiply(self._apart, sizes, out=self._apart)
        return math.sqrt(float(self._apart.sum()) / self._mean.size)
