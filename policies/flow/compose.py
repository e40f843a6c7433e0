"""Several fields as one: weighted consensus of policies at sampling time (arXiv 2510.01068)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor
from torch.nn.functional import pad

from policies.flow.path import Estimate, Field, expand, positive


def blend(fields: Sequence[Field], weights: Sequence[float | Tensor]) -> Field:
    """Weighted sum of estimates.

    With weights that sum to 1 this is the same whether data, noise, velocity or score is summed. Sampling it does not
    draw from the product of the experts: a Gaussian's end variance is the weighted geometric mean of the parents'.

    Args:
        fields: Fields on the linear path over the same normalised actions.
        weights: One per field: a number, or a tensor that broadcasts to ``(B, H, A)``. They should sum to 1; negative
            ones push away. One-hot weights return the parent bit for bit.
    """

    def blended(x: Tensor, t: Tensor) -> Estimate:
        shares = [[weight * part for part in field(x, t)] for field, weight in zip(fields, weights, strict=True)]
        return Estimate(*(reduce(torch.add, parts) for parts in zip(*shares, strict=True)))

    return blended


def padded(field: Field, horizon: int) -> Field:
    """Let a parent with a shorter horizon speak about the begin of a longer chunk.

    Args:
        field: Field over ``horizon`` actions.
        horizon: Its horizon; it sees the first ``horizon`` actions of the chunk and says zero about the others. Blend
            it with weights shaped ``(H, 1)`` that are 0 there.
    """

    def extended(x: Tensor, t: Tensor) -> Estimate:
        estimate = field(x[:, :horizon], t)
        missing = x.shape[1] - horizon
        return Estimate(*(pad(part, (0, 0, 0, missing)) for part in estimate))

    return extended


def disagreement(fields: Sequence[Field], weights: Sequence[float]) -> Callable[[Tensor, Tensor], Tensor]:
    """How much the parents contradict each other: the rate at which the blend departs from the product of experts.

    Returns:
        Function of ``x`` ``(B, H, A)`` and ``t`` ``(B,)`` with values ``(B,)``: the weighted variance of the velocities
        summed over the chunk, times t / (1 - t). Its integral over t, negated, is the log weight of the sample under
        the product of experts.
    """

    def measure(x: Tensor, t: Tensor) -> Tensor:
        velocities = [field(x, t).velocity for field in fields]
        mean = sum(weight * velocity for weight, velocity in zip(weights, velocities, strict=True))
        spread = sum(weight * (velocity - mean) ** 2 for weight, velocity in zip(weights, velocities, strict=True))
        return (expand(t / positive(1 - t), x) * spread).flatten(1).sum(1)

    return measure
