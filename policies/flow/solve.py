"""Steps along the linear path and the loop that chains them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from policies.flow.path import Field, expand, positive

Step = Callable[[Tensor, Tensor, Tensor], Tensor]
Draw = torch.Generator | Callable[[Tensor], Tensor]


def straight(field: Field) -> Step:
    """Go straight along the estimated pair: Euler's method, and DDIM with eta = 0 (arXiv 2010.02502)."""

    def step(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        data, noise = field(x, s)
        return expand(t, x) * data + (1 - expand(t, x)) * noise

    return step


def heun(field: Field) -> Step:
    """Second-order step with two evaluations: the straight step, corrected by half the change of velocity.

    A field need not be defined at the data, so the step that ends there stays straight (arXiv 2206.00364); it looks
    at its begin twice instead, and the method keeps its order.
    """

    def step(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        first = field(x, s)
        begin, end = expand(s, x), expand(t, x)
        ahead = end * first.data + (1 - end) * first.noise
        second = field(torch.where(end < 1, ahead, x), torch.where(t < 1, t, s))
        return ahead + (end - begin) / 2 * (second.velocity - first.velocity)

    return step


def normal(x: Tensor, draw: Draw) -> Tensor:
    """Standard normal noise shaped like ``x``, from a generator or from a function that is given ``x``."""
    if isinstance(draw, torch.Generator):
        return torch.randn(x.shape, generator=draw, dtype=x.dtype, device=x.device)
    return draw(x)


def sde(field: Field, draw: Draw, eta: float = 1.0) -> Step:
    """Stochastic step with the same marginals as the straight one in the limit of small steps.

    Args:
        field: Field on the linear path.
        draw: Generator of the fresh noise, or a function that returns standard normal noise shaped like its argument
            (for export, where the noise is an input of the graph).
        eta: 0 is the straight step, 1 replaces as much noise as DDPM's ancestral sampler (arXiv 2010.02502, eq. 16).
    """

    def step(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        data, noise = field(x, s)
        begin, end = expand(s, x), expand(t, x)
        kept = (1 - end) * begin / positive(end * (1 - begin))
        added = eta * (1 - kept**2).clamp(min=0).sqrt()
        return end * data + (1 - end) * ((1 - added**2).sqrt() * noise + added * normal(x, draw))

    return step


def jump(average: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Step:
    """Step of a flow map that predicts the average velocity ``average(x, s, t)`` from s to t (arXiv 2505.13447)."""

    def step(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return x + expand(t - s, x) * average(x, s, t)

    return step


def solve(step: Step, x: Tensor, grid: Sequence[float] | Tensor) -> Tensor:
    """Take one step per pair of neighbouring grid times.

    Args:
        step: Any step.
        x: State at ``grid[0]``, ``(B, H, A)``; standard normal noise if that is 0.
        grid: Increasing times on the linear path; a tensor may require gradients.

    Returns:
        State at ``grid[-1]``, ``(B, H, A)``.
    """
    times = [torch.as_tensor(time, dtype=x.dtype, device=x.device).expand(x.shape[0]) for time in grid]
    for s, t in pairwise(times):
        x = step(x, s, t)
    return x


def uniform(n: int) -> tuple[float, ...]:
    """Return the n + 1 times of n equal steps from noise to data."""
    return tuple(k / n for k in range(n + 1))
