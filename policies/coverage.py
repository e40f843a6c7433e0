"""Whether one policy plans what another does, and everything of it: precision and recall of its chunks.

A student that is right on average may have lost a mode, or lead between two. Success need not show it, samples do:
where a teacher says more than one thing, the student's chunks have to lie among the teacher's, and these among the
student's (improved precision and recall, arXiv 1904.06991).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from policies.norm import ACTION
from policies.policy import Policy

NEIGHBOURS = 3


class Coverage(NamedTuple):
    """How two sets of chunks lie to each other.

    Args:
        precision: Share of the samples that are as near to a reference as the references are to each other.
        recall: Share of the references that are as near to a sample as the samples are to each other.
    """

    precision: float
    recall: float


def coverage(references: Tensor, samples: Tensor) -> Coverage:
    """Compare chunks per observation; two sets of the same policy set the standard, which is less than 1.

    Args:
        references: ``(B, N, D)``, normal units.
        samples: ``(B, M, D)``.
    """
    return Coverage(_within(samples, references), _within(references, samples))


def _within(points: Tensor, others: Tensor) -> float:
    """Share of points that lie in a ball around one of the others that holds that one's nearest neighbours."""
    radius = torch.cdist(others, others).kthvalue(NEIGHBOURS + 1).values  # the first of them is itself
    return float((torch.cdist(points, others) <= radius[:, None]).any(-1).float().mean())


@torch.inference_mode()
def drawn(policy: Policy, observation: Mapping[str, Tensor], count: int, seed: int) -> Tensor:
    """Draw chunks ``(B, count, H * A)`` in normal units for observations ``{name: (B, T_obs, *shape)}``."""
    spec, generator = policy.spec, torch.Generator().manual_seed(seed)
    batch = len(next(iter(observation.values())))
    nothing = torch.zeros(batch, spec.horizon, spec.action.dim)
    chunks = []
    for _ in range(count):
        noise = torch.randn(batch, *spec.noise_shape, generator=generator)
        plan = policy.plan(observation, noise, nothing, nothing[..., 0])
        chunks.append(policy.normaliser.normalise(ACTION, plan.actions).flatten(1))
    return torch.stack(chunks, 1)


def spread(chunks: Tensor) -> Tensor:
    """How much the chunks ``(B, N, D)`` for each observation differ, ``(B,)``: the root of their summed variances."""
    return chunks.var(1).sum(-1).sqrt()
