"""Several policies as one: their fields are combined at every denoising step (GPC, arXiv 2510.01068).

A composition is a head without weights of its own, so it is evaluated, exported and launched like any other policy,
and may be a parent itself. Parents keep their own observations, normalisation, history and horizon.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from policies.agreement import Units, agree, check_scales, shared_units
from policies.bundle import Bundle
from policies.flow import (
    Estimate,
    Field,
    blend,
    certain,
    scaled,
    shifted,
    solve,
    spread,
    straight,
    tail_weights,
    window,
)
from policies.head import Head
from policies.norm import ACTION, Normaliser
from policies.policy import Policy
from policies.spec import Array, ChunkPolicy, ContractError, Spec

Level = Literal["score", "action"]
Weight = float | Sequence[float] | Sequence[Sequence[float]]


@dataclass(frozen=True)
class Config:
    """What is composed, and how.

    Args:
        parents: Settings of the parents, as in their ``policy.json``.
        weights: One per parent, summing to 1: a number, or ``(past + H,)`` or ``(past + H, A)`` numbers.
        units: Per parent the map from its normal actions to those of the composition, None where they are the same.
        level: ``"score"`` combines the fields at every step, ``"action"`` averages finished chunks.
    """

    parents: tuple[Mapping[str, Any], ...]
    weights: tuple[Weight, ...]
    units: tuple[Units | None, ...]
    level: Level = "score"


class Context(NamedTuple):
    """What the denoising steps of one chunk share."""

    fields: list[Field]
    spreads: list[Tensor]  # how far apart they were at each step so far


class Composition(Head):
    """Weighted consensus of policies; build one with `compose`.

    Of a parent that weighs several candidates it asks for the best guess alone, and memories of what is executed it
    does not pass on. It encodes what is constant with every chunk and leaves `arrival` at 0, whatever its parents say:
    their shares in a chunk are no shares in a stop.
    """

    Config = Config

    def __init__(self, spec: Spec, config: Any) -> None:
        super().__init__(spec, config)
        self.parents = nn.ModuleList(Policy.build(settings) for settings in config.parents)
        self._policies: list[Policy] = list(self.parents)  # type: ignore[arg-type]
        self._windows = [(spec.past - p.spec.past, p.spec.past + p.spec.horizon) for p in self._policies]
        self._whole = (0, spec.past + spec.horizon)
        self._weights = _aligned(config.weights, self._windows, spec.noise_shape)

    def grid(self, steps: int) -> tuple[float, ...]:
        """The grid of the first parent that is bound to discrete noise levels; the others know every time.

        Raises:
            ContractError: Finished chunks are averaged in one step, and more are asked for.
        """
        if self.config.level == "action":
            _check_single(steps)
            return (0.0, 1.0)
        grids = [policy.head.grid(steps) for policy in self._policies]
        return next((grid for grid in grids if grid[0] > 0), grids[0])

    def encode(self, observation: Mapping[str, Tensor]) -> Context:
        """Give every parent its own part of the observation, in SI units."""
        return Context([self._field(index, observation) for index in range(len(self._policies))], [])

    def estimate(self, x: Tensor, t: Tensor, context: Context) -> Estimate:
        # One after the other: one call over stacked weights is slower on a processor, see docs/architecture.md.
        estimates = [field(x, t) for field in context.fields]
        weights = [weight.to(x) if isinstance(weight, Tensor) else weight for weight in self._weights]
        context.spreads.append(spread(estimates, weights))
        return blend([_known(estimate) for estimate in estimates], weights)(x, t)

    def disagreement(self, context: Context) -> Tensor:
        """Largest `spread` of the parents' data over the steps so far, ``(B,)``, in normal units."""
        return torch.stack(context.spreads).amax(0)

    @property
    def policies(self) -> tuple[Policy, ...]:
        """The parents."""
        return tuple(self._policies)

    @property
    def windows(self) -> tuple[tuple[int, int], ...]:
        """First action and number of actions per parent in the chunk of the composition."""
        return tuple(self._windows)

    @property
    def weights(self) -> Tensor:
        """Weights ``(parents, past + H, A)`` over the chunk of the composition."""
        shape = self.spec.noise_shape
        return torch.stack([torch.as_tensor(weight, dtype=torch.float64).expand(shape) for weight in self._weights])

    def over(self, index: int, field: Field) -> Field:
        """A parent's field over its own chunk and units as one over the chunk and in the units of the composition."""
        units, (begin, length) = self.config.units[index], self._windows[index]
        if units:
            field = _converted(field, units) if self.config.level == "score" else _mapped(field, units)
        return field if (begin, length) == self._whole else window(field, begin, length)

    def _field(self, index: int, observation: Mapping[str, Tensor]) -> Field:
        policy = self._policies[index]
        field = policy.bind(_part(policy, observation))
        return self.over(index, _finished(field, policy) if self.config.level == "action" else field)


def compose(
    policies: Sequence[ChunkPolicy],
    weights: Sequence[Weight | Array],
    *,
    level: Level = "score",
    steps: int | None = None,
) -> Policy:
    """Compose policies into one.

    The parent with the largest weight comes first: its normal units, number of steps and temperature are used, also
    where it is a consensus itself. Chunks are aligned by time; beyond the end of a shorter parent the others go on
    alone. Finished chunks come from every parent's own sampler.

    Args:
        policies: Parents as `policies.load.load_policy` returns them; those with weight 0 are left out.
        weights: One per parent, summing to 1; negative ones push away. A number, or one per planned action, or one per
            planned action and component, as lists or arrays.
        level: ``"score"`` combines the parents at every denoising step; ``"action"`` averages their finished chunks,
            which is possible for any two policies with the same action and rate.
        steps: Denoising steps; those of the first parent by default, always 1 for finished chunks.

    Raises:
        ContractError: The parents cannot be composed; the message names what differs and the remedy.
    """
    if len(policies) != len(weights):
        raise ContractError(f"{len(policies)} policies but {len(weights)} weights; give one weight per policy")
    pairs = [pair for pair in zip(policies, _numbers(weights), strict=True) if _size(pair[1])]
    pairs.sort(key=lambda pair: -_size(pair[1]))
    chosen = [(_trained(policy), weight) for policy, weight in pairs]
    lead = chosen[0][0]
    usual, temperature = (lead.steps, lead.temperature) if level == "score" else (1, 1.0)
    if level == "score":
        chosen = [part for pair in chosen for part in _flat(*pair)]
    parents = [policy for policy, _ in chosen]
    spec = agree([policy.spec for policy in parents])
    # the sampler that parents run beside each other under does not limit accelerations; the guard does
    spec = replace(spec, action=replace(spec.action, acceleration=()))
    units = tuple(shared_units(policy.normaliser, lead.normaliser) for policy in parents)
    if level == "score":
        _require_fields(parents)
        check_scales(units)
    config = Config(tuple(policy.settings for policy in parents), tuple(weight for _, weight in chosen), units, level)
    head = Composition(spec, config)
    for own, policy in zip(head.parents, parents, strict=True):
        own.load_state_dict(policy.state_dict())
    normaliser = Normaliser.identity(spec)
    for part in ("offset", "scale"):
        getattr(normaliser, f"{ACTION}_{part}").copy_(getattr(lead.normaliser, f"{ACTION}_{part}"))
    return Policy(head, normaliser, usual if steps is None else steps, temperature).eval()


def _trained(policy: ChunkPolicy) -> Policy:
    """A policy with its weights: a bundle is read again, because its graph does not show single steps."""
    if isinstance(policy, Policy):
        return policy
    if isinstance(policy, Bundle) and policy.path:
        return Policy.load(policy.path)
    raise ContractError(f"{type(policy).__name__} cannot be composed; give a bundle, a run directory or a checkpoint")


def _flat(policy: Policy, weight: Weight) -> list[tuple[Policy, Weight]]:
    """The parents of a consensus instead of itself: with the products of the weights they say the same.

    Parents of different extent keep their own composition, because the sharing of the tail would change.
    """
    head = policy.head
    if not isinstance(head, Composition) or head.config.level == "action" or len({*head.windows}) > 1:
        return [(policy, weight)]
    inner = head.config.weights
    if not all(isinstance(share, (int, float)) for share in inner):
        return [(policy, weight)]
    products = [(np.asarray(weight) * share).tolist() for share in inner]
    return [part for pair in zip(head.policies, products, strict=True) for part in _flat(*pair)]


def _check_single(steps: int) -> None:
    if steps != 1:
        raise ContractError(
            f"steps={steps}: finished chunks are averaged in 1 step; give the parents their own instead, "
            f"mean(0.5*A@{steps} + 0.5*B@{steps})"
        )


def _numbers(weights: Sequence[Weight | Array]) -> list[Weight]:
    """Weights as plain numbers, which JSON can hold."""
    try:
        plain: list[Weight] = [np.asarray(weight, np.float64).tolist() for weight in weights]
        total = torch.as_tensor(sum(map(_columns, plain)), dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ContractError(f"weights: {error}; give each as a number, or all for the same chunk") from error
    if not torch.allclose(total, torch.ones_like(total), atol=1e-6):
        raise ContractError(f"the weights {plain} sum to {total.tolist()}; they have to sum to 1")
    return plain


def _aligned(
    weights: Sequence[Weight], windows: Sequence[tuple[int, int]], shape: tuple[int, int]
) -> Sequence[float | Tensor]:
    """Weights over the whole chunk: where a parent is absent, the others share what it would have had."""
    if all(part == (0, shape[0]) for part in windows):
        return [_fitting(weight, shape) for weight in weights]
    numbers = [weight for weight in weights if isinstance(weight, (int, float))]
    if len(numbers) < len(weights):
        raise ContractError("the parents' chunks differ in extent; give one number per parent as weight")
    return tail_weights(numbers, windows, shape[0])


def _size(weight: Weight) -> float:
    return float(torch.tensor(weight, dtype=torch.float64).abs().mean())


def _fitting(weight: Weight, shape: tuple[int, int]) -> float | Tensor:
    """A weight as a number, or as a tensor that broadcasts to ``shape`` = (past + H, A)."""
    if isinstance(weight, (int, float)):
        return float(weight)
    values = _columns(weight)
    if values.dim() != 2 or any(have not in (1, want) for have, want in zip(values.shape, shape, strict=True)):
        raise ContractError(
            f"a weight has the shape {tuple(values.shape)}, the chunk of the composition has {shape}; "
            f"give a number, {shape[0]} numbers or {shape[0]} x {shape[1]}"
        )
    return values


def _columns(weight: Weight) -> Tensor:
    """A weight as a tensor whose first dimension, if it has one, is that of the actions."""
    values = torch.tensor(weight, dtype=torch.float64)
    return values[:, None] if values.dim() == 1 else values


def _require_fields(parents: Sequence[Policy]) -> None:
    for policy in parents:
        averaged = isinstance(policy.head, Composition) and policy.head.config.level == "action"
        if policy.head.one_step or averaged:
            raise ContractError(
                f"{type(policy.head).__name__} {'averages finished chunks' if averaged else 'jumps to the data'} in "
                "one step and has no field in between; compose finished chunks instead: level='action'"
            )
        if policy.head.noise_scale != 1:
            raise ContractError(
                f"{type(policy.head).__name__} starts from noise of size {policy.head.noise_scale}, others "
                "from 1; compose finished chunks instead: level='action'"
            )


def _known(estimate: Estimate) -> Field:
    """A field that was evaluated already."""
    return lambda x, t: estimate


def _part(policy: Policy, observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
    spec = policy.spec
    return {feature.name: observation[feature.name][:, -spec.history :] for feature in spec.observations}


def _finished(field: Field, policy: Policy) -> Field:
    """Field that runs the parent's own sampler from the noise it is asked about, and is certain of the result."""

    def finished(x: Tensor, t: Tensor) -> Estimate:
        return certain(solve(straight(field), policy.start(x), policy.grid))(x, t)

    return finished


def _mapped(field: Field, units: Units) -> Field:
    """Finished data in other units."""
    factor, offset = (torch.tensor(part) for part in units)
    return lambda x, t: certain(factor.to(x) * field(x, t).data + offset.to(x))(x, t)


def _converted(field: Field, units: Units) -> Field:
    """Field over ``factor * data + offset``: exact for one common factor, and close where the factors nearly agree."""
    # Numbers, not tensors: what decides how a graph looks has to be known when it is exported.
    common = math.exp(sum(map(math.log, units[0])) / len(units[0]))
    same = all(math.isclose(factor, common, rel_tol=1e-6) for factor in units[0])
    stretch, offset = torch.tensor(units[0]) / common, torch.tensor(units[1])

    def stretched(x: Tensor, t: Tensor) -> Estimate:
        time = t[:, None, None]
        data, noise = field(x * (time / stretch + 1 - time), t)
        return Estimate(stretch * data, noise)

    return shifted(scaled(field if same else stretched, common), offset)
