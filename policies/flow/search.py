"""Inference-time scaling: spend more network evaluations on a chunk that a reward likes better.

Both searches walk the stochastic form of the flow, `sde` with eta = 1, and judge the data estimate, so nothing is
trained and the reward needs no gradient. Guides and compositions are fields: they are searched like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from policies.flow.path import Estimate, Field
from policies.flow.solve import sde, solve

Reward = Callable[[Tensor], Tensor]


class Found(NamedTuple):
    """Result of a search: the chunk ``(1, H, A)``, its reward and the network evaluations spent on it."""

    chunk: Tensor
    reward: float
    evaluations: int


def best_of(
    field: Field, reward: Reward, x: Tensor, grid: Sequence[float], draw: torch.Generator, budget: int
) -> Found:
    """Sample as many chunks as the budget allows and return the best.

    Args:
        field: Field on the linear path, bound to one observation; it is evaluated on one chunk at a time.
        reward: Function of data ``(N, H, A)``, in the field's normal units, with values ``(N,)``; more is better.
        x: State at ``grid[0]``, ``(1, H, A)``.
        grid: Increasing times on the linear path, ending in 1.
        draw: Generator of fresh noise.
        budget: Most evaluations of the field.

    Raises:
        ValueError: The budget does not allow a single chunk.
    """
    steps = _steps(grid, budget)
    chunks = [solve(sde(field, draw), x, grid) for _ in range(budget // steps)]
    rewards = [reward(chunk).item() for chunk in chunks]
    best = max(range(len(chunks)), key=rewards.__getitem__)
    return Found(chunks[best], rewards[best], len(chunks) * steps)


def rollover(
    field: Field, reward: Reward, x: Tensor, grid: Sequence[float], draw: torch.Generator, budget: int
) -> Found:
    """Rollover budget forcing (arXiv 2503.19385): search along the path instead of among its ends.

    The evaluations are shared equally among the steps. At each, next states are drawn one by one until the data
    estimate of one earns more than that of the present state, and what is left of the share rolls over to the next
    step; if none earns more, the best of them is followed. Easy rewards leave some of the budget unspent.

    Args:
        field: As for `best_of`.
        reward: As for `best_of`.
        x: State at ``grid[0]``, ``(1, H, A)``.
        grid: Increasing times on the linear path, ending in 1.
        draw: Generator of fresh noise.
        budget: Most evaluations of the field.

    Raises:
        ValueError: The budget does not allow a single chunk.
    """
    choices = _steps(grid, budget) - 1
    times = [torch.as_tensor(time, dtype=x.dtype, device=x.device).expand(1) for time in grid]

    def look(x: Tensor, t: Tensor) -> _Point:
        estimate = field(x, t)
        return _Point(x, estimate, reward(estimate.data).item())

    def climb(point: _Point, s: Tensor, t: Tensor, allowance: int) -> tuple[_Point, int]:
        step = sde(lambda *_: point.estimate, draw)
        tried: list[_Point] = []
        while len(tried) < allowance and not (tried and tried[-1].reward > point.reward):
            tried.append(look(step(point.x, s, t), t))
        return max(tried, key=lambda candidate: candidate.reward), len(tried)

    point, spent = look(x, times[0]), 1
    share, spare = divmod(budget - 1, max(choices, 1))
    for s, t in pairwise(times[:-1]):
        point, used = climb(point, s, t, share + spare)
        spare, spent = spare + share - used, spent + used
    return Found(point.estimate.data, point.reward, spent)


class _Point(NamedTuple):
    """A state that was looked at: what the field says there and what that earns."""

    x: Tensor
    estimate: Estimate
    reward: float


def _steps(grid: Sequence[float], budget: int) -> int:
    steps = len(grid) - 1
    if budget < steps:
        raise ValueError(f"a budget of {budget} evaluations does not last for {steps} steps; raise it or take fewer")
    return steps
