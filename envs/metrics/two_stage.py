"""Scores of two stages (NAVSIM 2, arXiv 2506.04218): what a plan is worth where others go on after it."""

from __future__ import annotations

import numpy as np

from envs.metrics.scene import checked
from policies.spec import Array, ContractError

SPREAD = 0.2  # m^2, of the kernel by which scenes of the second stage count


def two_stage_score(first: Array, second: Array, apart: Array) -> Array:
    """First-stage scores times the mean of second-stage scores, of which those count that begin near where a plan ends.

    Args:
        first: ``(P,)`` totals in [0, 1] of plans, version 2.
        second: ``(P, N)`` totals of N scenes that begin around the ends of these plans.
        apart: ``(P, N)`` m from the end of each plan to where the scenes begin; not one needs to be near.

    Returns:
        ``(P,)`` in [0, 1].

    Raises:
        ContractError: Shapes or values do not fit.
    """
    first, second = checked("first", first, (None,), 1.0), checked("second", second, (len(first), None), 1.0)
    apart = checked("apart", apart, second.shape)
    if not second.shape[1]:
        raise ContractError("second has no scenes; without a second stage the first one's scores are the result")
    if min(first.min(initial=0), second.min(initial=0), apart.min(initial=0)) < 0:
        raise ContractError("scores and distances must not be negative")
    near = (apart.min(1, keepdims=True) ** 2 - apart**2) / SPREAD  # the nearest one counts 1, however far it is
    weights = np.exp(near)
    return first * (weights * second).sum(1) / weights.sum(1)
