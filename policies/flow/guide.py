"""Guides: a field goes in, a field that also obeys something else comes out. They nest in any order.

A guide moves the data estimate and keeps the pair on ``x``, except `clip`, `limited` and `hold`, whose noise is meant
to differ; `consistent` puts the pair back.
How far it may move depends on how uncertain the data still is. With ``jacobian="identity"`` that is the uncertainty of
unit-variance data, ``r^2 = (1-t)^2 / (t^2 + (1-t)^2)``: a closed form that survives export. With ``jacobian="exact"``
it is the field's own, ``(1-t)^2 / t * d data / d x``, one vector-Jacobian product through the network: it also moves
what depends on the guided actions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from policies.flow.compose import blend
from policies.flow.path import Estimate, Field, expand, positive

Jacobian = Literal["identity", "exact"]


def cfg(conditional: Field, unconditional: Field, weight: float | Tensor) -> Field:
    """Classifier-free guidance (arXiv 2207.12598): ``unconditional + weight * (conditional - unconditional)``.

    Args:
        conditional: Field with the condition.
        unconditional: Field without it.
        weight: 0 and 1 return either field bit for bit, more than 1 exaggerates the condition.
    """
    return blend([unconditional, conditional], [1 - weight, weight])


def residual_cfg(field: Field, reference: Tensor, weight: float | Tensor, delta: float = 1.0) -> Field:
    """Guidance without a second evaluation (arXiv 2312.12491): away from what was there before.

    Args:
        field: Field with the condition.
        reference: ``(B, H, A)`` data that stands for the unconditional field: the previous plan, or the unconditional
            estimate made once at t = 0.
        weight: As in `cfg`.
        delta: Share of the way from ``x`` to the reference that the virtual field goes.
    """

    def unconditional(x: Tensor, t: Tensor) -> Estimate:
        return certain(x + delta * (reference - x))(x, t)

    return cfg(field, unconditional, weight)


def certain(data: Tensor) -> Field:
    """Field that knows the data, ``(B, H, A)`` or broadcastable, and reads the noise off ``x``."""

    def field(x: Tensor, t: Tensor) -> Estimate:
        time = expand(t, x)
        return Estimate(data.expand_as(x), (x - time * data) / positive(1 - time))

    return field


def clip(field: Field, low: float, high: float) -> Field:
    """Clamp the data estimate and keep the raw noise, as diffusion samplers do (``clip_sample``)."""

    def clipped(x: Tensor, t: Tensor) -> Estimate:
        data, noise = field(x, t)
        return Estimate(data.clamp(low, high), noise)

    return clipped


def limited(field: Field, low: Tensor, high: Tensor, step: Tensor, known: Tensor, mask: Tensor) -> Field:
    """Keep the data estimate within a box and each action near the one before; the raw noise stays, as in `clip`.

    Of all chunks that change by at most ``step`` per action, the one whose largest deviation from the clamped estimate
    is smallest: midway between the lowest such chunk above it and the highest one below (McShane's extensions).

    Args:
        field: Field to limit.
        low: ``(A,)`` smallest values.
        high: ``(A,)`` largest values.
        step: ``(A,)`` largest change from one action to the next, positive.
        known: ``(B, H, A)`` actions that stay as they are, and that the others have to be near.
        mask: ``(B, H)`` boolean, true where an action is known.
    """

    def kept(x: Tensor, t: Tensor) -> Estimate:
        data, noise = field(x, t)
        place = torch.arange(data.shape[-2], device=data.device)
        reach = (place[:, None] - place).abs()[..., None] * step  # (H, H, A)
        near, fixed = known[..., None, :, :], mask[..., None, :, None]
        least = torch.where(fixed, near - reach, -torch.inf).amax(-2)
        most = torch.where(fixed, near + reach, torch.inf).amin(-2)
        inside = data.clamp(low, high).clamp(least, most)[..., None, :, :]
        above, below = (inside - reach).amax(-2), (inside + reach).amin(-2)
        return Estimate((above + below) / 2, noise)

    return kept


def consistent(field: Field) -> Field:
    """Read the noise off ``x`` again after the data estimate was changed.

    DDPM's ancestral sampler (arXiv 2006.11239) is ``sde(consistent(clip(field, -1, 1)), draw)``: unlike DDIM it does
    not keep the raw noise.
    """

    def agreeing(x: Tensor, t: Tensor) -> Estimate:
        return certain(field(x, t).data)(x, t)

    return agreeing


def pin(field: Field, known: Tensor, mask: Tensor) -> Field:
    """Replace the data where it is known: start states, goals, inpainting.

    The sample ends on the known values exactly. The rest sees them through ``x`` only: the exact conditional for
    independent actions, a weak approximation for correlated ones, which `hold` makes follow.

    Args:
        field: Field on the linear path.
        known: Data, broadcastable to ``(B, H, A)``.
        mask: Boolean, broadcastable to ``(B, H, A)``; true where the data is known.
    """

    def pinned(x: Tensor, t: Tensor) -> Estimate:
        parts = zip(certain(known)(x, t), field(x, t), strict=True)
        return Estimate(*(torch.where(mask, fixed, free) for fixed, free in parts))

    return pinned


def toward(field: Field, target: Tensor, weight: float | Tensor) -> Field:
    """Pull the data toward a target: the proximal step of the cost ``weight / 2 * |data - target|^2``.

    The step minimises ``|moved - data|^2 / (2 r^2) + cost(moved)``, so it is stable for every weight and fades by
    itself toward t = 1. For independent unit-variance Gaussian data it samples ``p(data) * exp(-cost)`` exactly.

    Args:
        field: Field on the linear path.
        target: Where the cost is least, broadcastable to ``(B, H, A)``. Several targets are one: the weighted mean.
        weight: Precision of the target, the sum over several targets; a number or broadcastable to ``(B, H, A)``.
    """

    def pulled(x: Tensor, t: Tensor) -> Estimate:
        strength = weight * expand(_variance(t), x)
        return field(x, t).mix(certain(target)(x, t), strength / (1 + strength))

    return pulled


def descend(
    field: Field, gradient: Callable[[Tensor], Tensor], jacobian: Jacobian = "identity", limit: float = 5.0
) -> Field:
    """Go down the gradient of any cost of the data (arXiv 2209.14687); samples about ``p(data) * exp(-cost)``.

    Args:
        field: Field on the linear path.
        gradient: Gradient of the cost at data ``(B, H, A)``; ``torch.func.grad(lambda data: cost(data).sum())`` where
            no export is needed.
        jacobian: Exact for linear costs of unit-variance data ("identity") or of any Gaussian data ("exact").
        limit: Largest gain on the velocity with the exact Jacobian, whose factor (1-t) / t is unbounded at the noise.
    """

    def identity(x: Tensor, t: Tensor) -> Estimate:
        estimate = field(x, t)
        return _shift(estimate, -_variance(t), gradient(estimate.data), t)

    def exact(x: Tensor, t: Tensor) -> Estimate:
        estimate, pull = _vjp(field, x, t)
        gain = ((1 - t) / positive(t)).clamp(max=limit)
        return _shift(estimate, -(1 - t) * gain, pull(gradient(estimate.data)), t)

    return {"identity": identity, "exact": exact}[jacobian]


def hold(
    field: Field, committed: Tensor, weights: Tensor, jacobian: Jacobian = "identity", limit: float = 5.0
) -> Field:
    """Continue a chunk that is being executed: real-time chunking (arXiv 2506.07339).

    The published guidance weight times the Jacobian of unit-variance data, clipped where it would overshoot, is 1: the
    closed form mixes the data estimate with the committed actions. What follows a frozen prefix sees it through ``x``
    only, as in `pin`.

    Args:
        field: Field on the linear path.
        committed: ``(B, H, A)`` actions of the previous chunk on this chunk's time grid, normalised.
        weights: ``(B, H)`` in [0, 1]; 1 ends on the committed action exactly, 0 leaves the field's estimate as it is,
            bit for bit in the closed form; between them the committed action attracts.
        jacobian: "identity" is the closed form, "exact" guides through the network as published and pins weight 1.
        limit: Largest guidance weight with the exact Jacobian; the paper's beta.
    """
    soft = weights[..., None]

    def identity(x: Tensor, t: Tensor) -> Estimate:
        return field(x, t).mix(certain(committed)(x, t), soft)

    def exact(x: Tensor, t: Tensor) -> Estimate:
        estimate, pull = _vjp(field, x, t)
        gain = ((1 - t) / positive(t * _variance(t))).clamp(max=limit)
        return _shift(estimate, (1 - t) * gain, pull(soft * (committed - estimate.data)), t)

    return {"identity": identity, "exact": pin(exact, committed, soft >= 1)}[jacobian]


def _variance(t: Tensor) -> Tensor:
    """Variance of unit-variance Gaussian data once ``x`` is known, ``(B,)``."""
    return (1 - t) ** 2 / (t**2 + (1 - t) ** 2)


def _shift(estimate: Estimate, gain: Tensor, direction: Tensor, t: Tensor) -> Estimate:
    """Move the data by ``gain * direction`` and the noise so that the pair still mixes to the same ``x``."""
    moved = expand(gain, direction) * direction
    ratio = expand(t / positive(1 - t), direction)
    return Estimate(estimate.data + moved, estimate.noise - ratio * moved)


def _vjp(field: Field, x: Tensor, t: Tensor) -> tuple[Estimate, Callable[[Tensor], Tensor]]:
    """Return the estimate and the product of a vector with d data / d x."""

    def data(state: Tensor) -> tuple[Tensor, Estimate]:
        estimate = field(state, t)
        return estimate.data, estimate

    result: Any = torch.func.vjp(data, x, has_aux=True)
    _, pull, estimate = result
    return estimate, lambda vector: pull(vector)[0]
