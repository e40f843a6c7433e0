"""Several fields as one: weighted consensus of policies at sampling time (arXiv 2510.01068).

All of it is exact algebra on the linear path and survives export. `policies.flow.superpose` has what needs a sampler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor
from torch.nn.functional import pad

from policies.flow.path import Estimate, Field, expand, positive

Weight = float | Tensor | Callable[[Tensor], Tensor]
LogDensity = Callable[[Tensor, Tensor], Tensor]


def blend(fields: Sequence[Field], weights: Sequence[Weight]) -> Field:
    """Weighted sum of estimates.

    With weights that sum to 1 this is the same whether data, noise, velocity or score is summed. Sampling it does not
    draw from the product of the experts: a Gaussian's end variance is the weighted geometric mean of the parents'.

    Args:
        fields: Fields on the linear path over the same normalised actions.
        weights: One per field: a number, a tensor that broadcasts to ``(B, H, A)``, or a function of the times ``(B,)``
            with values ``(B,)``. They should sum to 1; negative ones push away. One-hot weights return the parent bit
            for bit, and a parent whose weight is the number 0 is not evaluated.
    """
    parts = [(f, w) for f, w in zip(fields, weights, strict=True) if isinstance(w, Tensor) or callable(w) or w != 0]
    if not parts:
        raise ValueError(f"blend: weights {list(weights)} leave no field; give at least one a weight that is not 0")

    def blended(x: Tensor, t: Tensor) -> Estimate:
        shares = [[_share(weight, x, t) * part for part in field(x, t)] for field, weight in parts]
        return Estimate(*(reduce(torch.add, column) for column in zip(*shares, strict=True)))

    return blended


def window(field: Field, begin: int, length: int) -> Field:
    """Let a parent speak about a part of a longer chunk and say zero about the rest.

    Args:
        field: Field over ``length`` actions.
        begin: Index in the chunk of its first action; align parents by time, not by index 0.
        length: Its horizon. Blend it with weights that are 0 elsewhere, see `tail_weights`.
    """

    def extended(x: Tensor, t: Tensor) -> Estimate:
        after = x.shape[1] - begin - length
        if begin < 0 or after < 0:
            raise ValueError(f"window: {length} actions from {begin} exceed a chunk of {x.shape[1]}; shorten it")
        return Estimate(*(pad(part, (0, 0, begin, after)) for part in field(x[:, begin : begin + length], t)))

    return extended


def tail_weights(weights: Sequence[float], windows: Sequence[tuple[int, int]], horizon: int) -> tuple[Tensor, ...]:
    """Share the weight of absent parents among those present, action by action.

    Only positive weights grow or shrink, in proportion, until all sum to 1: negative ones push away as hard as before.

    Args:
        weights: One per parent.
        windows: ``(begin, length)`` of each parent in the chunk, as for `window`.
        horizon: H.

    Returns:
        ``(H, 1)`` weights per parent that sum to 1, for `blend`.

    Raises:
        ValueError: No parent with a positive weight speaks about an action.
    """
    steps = torch.arange(horizon)
    present = [(begin <= steps) & (steps < begin + length) for begin, length in windows]
    shares = torch.stack([weight * here for weight, here in zip(weights, present, strict=True)])
    pull, push = shares.clamp(min=0), shares.clamp(max=0)
    silent = (pull.sum(0) == 0).nonzero().flatten().tolist()
    if silent:
        raise ValueError(
            f"tail_weights: no parent with a positive weight speaks about action {silent[0]} "
            f"(weights {list(weights)}, windows {list(windows)}); shorten the chunk to what one covers"
        )
    return (pull / pull.sum(0) * (1 - push.sum(0)) + push)[..., None].unbind(0)


def shifted(field: Field, offset: float | Tensor) -> Field:
    """Field of ``data + offset``, exactly.

    Args:
        field: Field of ``data``.
        offset: Broadcastable to ``(B, H, A)``.
    """

    def moved(x: Tensor, t: Tensor) -> Estimate:
        data, noise = field(x - expand(t, x) * offset, t)
        return Estimate(data + offset, noise)

    return moved


def scaled(field: Field, factor: float) -> Field:
    """Field of ``factor * data``, exactly: the parent is asked at the time of the same signal-to-noise ratio.

    Only a scale that all action dimensions share can be moved into the time; another one changes what noise means.

    Args:
        field: Field of ``data``.
        factor: Positive.
    """
    if not factor > 0:
        raise ValueError(f"scaled: factor {factor} is not positive; give the ratio of the two action scales")

    def resized(x: Tensor, t: Tensor) -> Estimate:
        total = factor * t + 1 - t
        data, noise = field(x / expand(total, x), factor * t / total)
        return Estimate(factor * data, noise)

    return resized


def either(fields: Sequence[Field], weights: Sequence[float], log_densities: Sequence[LogDensity]) -> Field:
    """Logical OR: exact field of the mixture of the parents, where their densities are known.

    Args:
        fields: Fields on the linear path.
        weights: Positive shares of the mixture.
        log_densities: Per field the log density ``(B,)`` of states ``x`` ``(B, H, A)`` at times ``t`` ``(B,)``.
    """

    def mixed(x: Tensor, t: Tensor) -> Estimate:
        parts = zip(weights, log_densities, strict=True)
        logits = torch.stack([math.log(weight) + log_density(x, t) for weight, log_density in parts])
        return blend(fields, [expand(share, x) for share in logits.softmax(0)])(x, t)

    return mixed


def disagreement(fields: Sequence[Field], weights: Sequence[float]) -> Callable[[Tensor, Tensor], Tensor]:
    """How much the parents contradict each other: the rate at which the blend departs from the product of experts.

    Returns:
        Function of ``x`` ``(B, H, A)`` and ``t`` ``(B,)`` with values ``(B,)``: the weighted variance of the velocities
        summed over the chunk, times t / (1 - t). Its integral over t, negated, is the log weight of the sample under
        the product of experts.
    """

    def measure(x: Tensor, t: Tensor) -> Tensor:
        variance = _variance([field(x, t).velocity for field in fields], weights)
        return t / positive(1 - t) * variance.flatten(1).sum(1)

    return measure


def spread(estimates: Sequence[Estimate], weights: Sequence[float | Tensor]) -> Tensor:
    """How far apart the parents' data estimates are, in normal units: a cheap signal to publish and to stop on.

    Args:
        estimates: What each parent said about the same state.
        weights: One per parent, a number or broadcastable to ``(B, H, A)``; only their size counts, not their sign.

    Returns:
        ``(B,)`` root mean square over the chunk of the weighted standard deviation between the parents.
    """
    data = [estimate.data for estimate in estimates]
    sizes = [torch.as_tensor(weight, dtype=data[0].dtype, device=data[0].device).abs() for weight in weights]
    total = positive(reduce(torch.add, sizes))
    return _variance(data, [size / total for size in sizes]).flatten(1).mean(1).sqrt()


def _share(weight: Weight, x: Tensor, t: Tensor) -> float | Tensor:
    return expand(weight(t), x) if callable(weight) else weight


def _variance(values: Sequence[Tensor], weights: Sequence[float | Tensor]) -> Tensor:
    """Weighted variance between tensors of one shape, elementwise; the weights sum to 1."""
    mean = reduce(torch.add, [weight * value for weight, value in zip(weights, values, strict=True)])
    return reduce(torch.add, [weight * (value - mean) ** 2 for weight, value in zip(weights, values, strict=True)])
