"""Losses that turn a field, or data alone, into steps that may be long, and grids for steps that stay as they are.

A flow map is learnt as its average velocity: ``average(x, s, t)`` leads from the state at s to that at t on a straight
line, ``x + (t - s) * average(x, s, t)``, and `policies.flow.jump` makes it a step. At s = t it is the velocity of a
field. The methods differ in what they compare it with; none needs anything of a network but that it takes both times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from policies.flow.path import LINEAR, Field, expand
from policies.flow.solve import straight

Average = Callable[[Tensor, Tensor, Tensor], Tensor]
HUBER = 0.00054  # per square root of the dimension, arXiv 2405.20320
STEEP = 4.0  # of the u-shaped density, arXiv 2405.20320


def pseudo_huber(difference: Tensor) -> Tensor:
    """Mean over samples ``(B, ...)`` of a length that is smooth at zero, robust to outliers (arXiv 2405.20320)."""
    rest = HUBER * math.sqrt(difference[0].numel())
    return ((difference.flatten(1).square().sum(-1) + rest**2).sqrt() - rest).mean()


def u_shaped_times(batch: int, generator: torch.Generator) -> Tensor:
    """Draw ``(batch,)`` times in [0, 1], most of them near the ends (arXiv 2405.20320, its a = 4)."""
    share = 2 * torch.rand(batch, generator=generator, device=generator.device) - 1
    return (1 + torch.asinh(share * math.sinh(STEEP / 2)) / (STEEP / 2)) / 2


def reflow(field: Field, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
    """Loss of a field on pairs of a teacher, whose paths it makes straight (arXiv 2209.03003; loss: 2405.20320).

    Args:
        field: To train.
        noise: ``(B, H, A)`` that the teacher started from.
        data: ``(B, H, A)`` where it arrived.
        t: ``(B,)`` times, see `u_shaped_times`.
    """
    return pseudo_huber(field(LINEAR.at(data, noise, t), t).velocity - (data - noise))


def split(average: Average, x: Tensor, r: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """Loss of an average velocity that is not the mean of those of two parts of its interval (arXiv 2507.16884).

    ``(t - r) u(x, r, t) = (s - r) u(x, r, s) + (t - s) u(x_s, s, t)``, in the direction from noise to data.

    At r = t it holds for everything: train the velocity of a field or data beside it.

    Args:
        average: To train.
        x: ``(B, H, A)`` states at ``r``.
        r: ``(B,)`` begins.
        s: ``(B,)`` times between.
        t: ``(B,)`` ends.
    """
    with torch.no_grad():
        first = average(x, r, s)
        second = average(x + expand(s - r, x) * first, s, t)
        share = expand((s - r) / (t - r).clamp(min=torch.finfo(x.dtype).eps), x)
        target = torch.where(expand(t > r, x), share * first + (1 - share) * second, first)
    return (average(x, r, t) - target).square().mean()


def step_costs(field: Field, x: Tensor, grid: Sequence[float]) -> Tensor:
    """Squared errors ``(N + 1, N + 1)`` of straight steps between any two times of a fine grid (arXiv 2312.16414).

    Each step begins where fine ones lead; the mean is taken over the states ``x`` ``(B, H, A)`` at ``grid[0]``.
    """
    step, times = straight(field), x.new_tensor(grid)[:, None].expand(-1, len(x))
    states = [x]
    for s, t in pairwise(times):
        states.append(step(states[-1], s, t))
    costs = x.new_full((len(grid), len(grid)), torch.inf)
    for begin in range(len(grid) - 1):
        for end in range(begin + 1, len(grid)):
            there = step(states[begin], times[begin], times[end])
            costs[begin, end] = (there - states[end]).square().mean()
    return costs


def cheapest_grid(costs: Tensor, steps: int) -> list[int]:
    """The way from the first to the last time in so many steps whose costs are least in sum (BOSS, arXiv 2312.16414).

    Args:
        costs: ``(N + 1, N + 1)`` of steps from row to column.
        steps: At most N.

    Returns:
        Indices of the ``steps + 1`` times.

    Raises:
        ValueError: There are fewer times.
    """
    count = len(costs)
    if not 1 <= steps < count:
        raise ValueError(f"{count} times are no grid of {steps} steps; take 1 to {count - 1}")
    forward = torch.where(torch.ones_like(costs).triu(1) > 0, costs, torch.inf)
    least, chosen = forward[:, -1], []
    for _ in range(steps - 1):
        least, following = (forward + least).min(-1)
        chosen.append(following)
    way = [0]
    for following in reversed(chosen):
        way.append(int(following[way[-1]]))
    return [*way, count - 1]
