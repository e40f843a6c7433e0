"""Diffusion policy: a conditional U-Net that predicts the noise of an action chunk (arXiv 2303.04137)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from policies.flow import Estimate, clip, ddpm, from_noise, reschedule, squared_cosine_betas
from policies.head import Head
from policies.nets.unet1d import UNet1d
from policies.spec import Spec


@dataclass(frozen=True)
class Config:
    """Size of the network and of its noise table.

    Args:
        widths: Channels per level; each level after the first halves the length of the chunk.
        levels: Noise levels of the DDPM table, T.
    """

    widths: tuple[int, ...] = (64, 128, 256)
    levels: int = 100


class UNet(Head):
    """Noise predictor on the squared-cosine DDPM table; the observation history enters as one vector."""

    Config = Config

    def __init__(self, spec: Spec, config: Any) -> None:
        super().__init__(spec, config)
        condition = sum(spec.samples(feature) * math.prod(feature.shape) for feature in spec.observations)
        self.network = UNet1d(spec.action.dim, condition, tuple(config.widths))
        # Not a buffer: it follows from the configuration, and a table that is computed does not export.
        self.path = ddpm(squared_cosine_betas(config.levels))

    def encode(self, observation: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([observation[feature.name].flatten(1) for feature in self.spec.observations], 1)

    def estimate(self, x: Tensor, t: Tensor, context: Tensor) -> Estimate:
        native = from_noise(lambda x, k: self._noise(x, k, context), self.path)
        return clip(reschedule(native, self.path), -1.0, 1.0)(x, t)

    def loss(self, observation: Mapping[str, Tensor], actions: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of the noise at levels drawn uniformly (arXiv 2006.11239)."""
        noise = torch.randn(actions.shape, generator=generator)
        k = torch.randint(self.config.levels, (len(actions),), generator=generator)
        context = self.begun(self.encode(self.digest(observation)), actions, generator)
        predicted = self._noise(self.path.at(actions, noise, k), k, context)
        return (predicted - noise).square().mean()

    def grid(self, steps: int) -> tuple[float, ...]:
        """Every (T / steps)-th level of the table down to the least noisy one, then the data.

        Raises:
            ValueError: There are fewer levels than steps.
        """
        if steps > self.config.levels:
            raise ValueError(
                f"steps={steps}: the table has {self.config.levels} noise levels; take at most as many steps"
            )
        levels = torch.arange(steps - 1, -1, -1) * (self.config.levels // steps)
        return (*self.path.level(levels.double()).tolist(), 1.0)

    def _noise(self, x: Tensor, k: Tensor, condition: Tensor) -> Tensor:
        return self.network(x, k.to(x) / self.config.levels, condition)
