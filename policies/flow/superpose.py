"""Samplers that compose densities: logical OR, logical AND and the product of experts.

A weighted mean of estimates is none of the three: they need to know how likely each parent finds the path walked so
far. On the stochastic form of the flow (`sde` with eta = 1) a parent's step is a Gaussian around its own mean, and by
Bayes' rule its log density gains ``log p(next | here) - log p(here | next)``. The second term is the noising process,
common to all, so only the squared distances between the next state and the parents' means matter: no divergence, and
for small steps the Ito density estimator of arXiv 2412.17762. Steps are exact in (1 - t) / t and finite at both ends.

The parents' densities count as equal where the grid begins; a parent that clips its data goes through `consistent`
first. Claims need a control under the same stochastic sampler: a single parent, or `blend`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from policies.flow.path import Field, expand, positive
from policies.flow.solve import Draw, normal

Grid = Sequence[float] | Tensor
SINGULAR = 1e-2  # directions in which the parents differ less than this (squared, relatively) are not equalised


def sample_or(
    fields: Sequence[Field], weights: Sequence[float], x: Tensor, grid: Grid, draw: Draw, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Logical OR: sample the mixture of the parents' distributions.

    Every step blends with ``softmax(temperature * log density + log weight)``.

    Args:
        fields: N fields on the linear path.
        weights: Positive shares of the mixture.
        x: State at ``grid[0]``, ``(B, H, A)``.
        grid: Increasing times on the linear path.
        draw: Generator or function of fresh noise, as for `sde`.
        temperature: 1 samples the mixture, more commits to one parent earlier, 0 blends.

    Returns:
        State at ``grid[-1]`` and the log densities ``(N, B)`` under the parents relative to their mean, at the last
        time before the data.
    """
    bias = x.new_tensor(weights).log()[:, None]

    def likely(log_density: Tensor, means: Tensor, kick: Tensor) -> Tensor:
        return (temperature * log_density + bias).softmax(0)

    return _walk(fields, x, grid, draw, likely)


def sample_and(fields: Sequence[Field], x: Tensor, grid: Grid, draw: Draw) -> tuple[Tensor, Tensor]:
    """Logical AND: walk where all parents' log densities change alike.

    For two parents this is the plain mean with the fresh noise projected off their difference. For more, the next state
    has the same distance to all their means; where these are nearly collinear no such point is near, and the direction
    concerned is left alone.

    Args:
        fields: N fields on the linear path.
        x: State at ``grid[0]``, ``(B, H, A)``.
        grid: Increasing times on the linear path.
        draw: Generator or function of fresh noise, as for `sde`.

    Returns:
        As for `sample_or`; log densities that are not all 0 tell where the parents could not be equalised.
    """

    def equidistant(log_density: Tensor, means: Tensor, kick: Tensor) -> Tensor:
        apart = (means - means.mean(0)).flatten(2).transpose(0, 1)
        gram = apart @ apart.mT
        target = gram.diagonal(dim1=1, dim2=2) / 2 - (apart @ kick.flatten(1)[..., None])[..., 0]
        inverse = torch.linalg.pinv(gram, rtol=SINGULAR, hermitian=True)
        return 1 / len(means) + (inverse @ target[..., None])[..., 0].mT

    return _walk(fields, x, grid, draw, equidistant)


def product(
    fields: Sequence[Field], weights: Sequence[float], x: Tensor, grid: Grid, draw: Draw, particles: int
) -> tuple[Tensor, Tensor]:
    """Sample the product of experts, the density proportional to ``prod p_i ** weight_i``.

    Particles follow the blend and are weighted with minus the integral of its `disagreement` (Feynman-Kac). A group
    whose effective size drops below half is resampled, systematically. More particles and more steps both come closer.

    Args:
        fields: Fields on the linear path.
        weights: One per field, summing to 1; negative ones push away.
        x: State at ``grid[0]``, ``(B * particles, H, A)``, the particles of a chunk one after the other.
        grid: Increasing times on the linear path.
        draw: Generator or function of fresh noise, as for `sde`.
        particles: Number of particles per chunk.

    Returns:
        State at ``grid[-1]`` and log weights ``(B * particles,)`` whose exponentials sum to 1 within a chunk.
    """
    if len(x) % particles:
        raise ValueError(f"product: {len(x)} states do not make groups of {particles} particles; repeat each start")
    share, log_weight = x.new_tensor(weights)[:, None], x.new_zeros(len(x))
    for s, t in _steps(grid, x):
        means, scale = _transitions(fields, x, s, t)
        mean = (share[..., None, None] * means).sum(0)
        log_weight = log_weight + (share * _log_kernel(means, mean, scale)).sum(0)
        ahead = mean + expand(scale, x) * normal(x, draw)
        x, log_weight = _resample(ahead, log_weight, particles, draw)
    return x, log_weight.view(-1, particles).log_softmax(1).flatten()


def _walk(
    fields: Sequence[Field], x: Tensor, grid: Grid, draw: Draw, choose: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Walk the mean of the parents' steps, weighted by ``choose(log_density, means, kick)`` ``(N, B)``, sum 1."""
    log_density = x.new_zeros(len(fields), len(x))
    for s, t in _steps(grid, x):
        means, scale = _transitions(fields, x, s, t)
        centre, kick = means.mean(0), expand(scale, x) * normal(x, draw)
        share = choose(log_density, means, kick)[..., None, None]
        x = centre + (share * (means - centre)).sum(0) + kick  # centred: large weights of near-equal means cancel
        log_density = log_density + _log_kernel(means, x, scale)
    return x, log_density - log_density.mean(0)


def _steps(grid: Grid, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return pairwise([torch.as_tensor(time, dtype=x.dtype, device=x.device).expand(len(x)) for time in grid])


def _transitions(fields: Sequence[Field], x: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Means ``(N, B, H, A)`` of the parents' stochastic steps from s to t and their common deviation ``(B,)``."""
    kept = (1 - t) * s / positive(t * (1 - s))
    end, rest = expand(t, x), expand((1 - t) * kept, x)
    means = torch.stack([end * data + rest * noise for data, noise in (field(x, s) for field in fields)])
    return means, (1 - t) * (1 - kept**2).clamp(min=0).sqrt()


def _log_kernel(means: Tensor, x: Tensor, scale: Tensor) -> Tensor:
    """Log density ``(N, B)`` of a step to ``x`` up to a common term; 0 for the last step, which has no noise."""
    distance = (x - means).square().flatten(2).sum(2)
    return torch.where(scale > 0, -distance / (2 * positive(scale) ** 2), 0)


def _resample(x: Tensor, log_weight: Tensor, particles: int, draw: Draw) -> tuple[Tensor, Tensor]:
    """Replace the particles of every group whose effective size is below half by equally weighted ones."""
    share = log_weight.view(-1, particles).softmax(1)
    place = torch.arange(particles, device=x.device)
    first = torch.special.ndtr(normal(share[:, :1], draw))
    drawn = torch.searchsorted(share.cumsum(1), (place + first) / particles).clamp(max=particles - 1)
    poor = 1 / share.square().sum(1, keepdim=True) < particles / 2
    ancestor = torch.where(poor, drawn, place)[..., None, None]
    groups = x.unflatten(0, (-1, particles)).take_along_dim(ancestor, 1)
    return groups.flatten(0, 1), torch.where(poor, 0, log_weight.view(-1, particles)).flatten()
