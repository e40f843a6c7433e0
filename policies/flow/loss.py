"""Training objective of a field and the times it is trained at."""

from __future__ import annotations

import torch
from torch import Tensor

from policies.flow.path import LINEAR, Field


def matching_loss(field: Field, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Flow matching on the linear path (arXiv 2210.02747): mean squared error of the velocity.

    Args:
        field: Field to train.
        data: ``(B, H, A)`` normalised actions.
        noise: ``(B, H, A)`` standard normal sample, or the partner of ``data`` in a coupling.
        t: ``(B,)`` times in [0, 1].

    Returns:
        Scalar loss.
    """
    estimate = field(LINEAR.at(data, noise, t), t)
    return (estimate.velocity - (data - noise)).square().mean()


def uniform_times(batch: int, generator: torch.Generator) -> Tensor:
    """Draw ``(batch,)`` times uniformly from [0, 1), on the generator's device."""
    return torch.rand(batch, generator=generator, device=generator.device)


def logit_normal_times(batch: int, generator: torch.Generator, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Draw ``(batch,)`` times whose logit is normal (arXiv 2403.03206), on the generator's device.

    Args:
        batch: Number of times.
        generator: Source of randomness.
        mean: Mean of the logit; positive values favour the data end.
        std: Standard deviation of the logit.
    """
    return torch.sigmoid(mean + std * torch.randn(batch, generator=generator, device=generator.device))
