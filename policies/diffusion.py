"""Diffusion policy on FlowDiT's transformer: it predicts the noise of an action chunk (arXiv 2303.04137)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from policies import flowdit
from policies.flow import ddpm, squared_cosine_betas
from policies.flowdit import FlowDiT
from policies.spec import Spec
from policies.unet import UNet


@dataclass(frozen=True)
class Config(flowdit.Config):
    """Size of the transformer and of its noise table.

    Args:
        levels: Noise levels of the DDPM table, T.
    """

    levels: int = 100


class Diffusion(FlowDiT):
    """Noise predictor on the squared-cosine DDPM table, to compare flows of the same size with."""

    Config = Config

    def __init__(self, spec: Spec, config: Any) -> None:
        super().__init__(spec, config)
        # Not a buffer: it follows from the configuration, and a table that is computed does not export.
        self.path = ddpm(squared_cosine_betas(config.levels))

    estimate, loss, grid = UNet.estimate, UNet.loss, UNet.grid

    def _noise(self, x: Tensor, k: Tensor, context: Any) -> Tensor:
        return self.dit(x, k.to(x.dtype) / self.config.levels, context)
