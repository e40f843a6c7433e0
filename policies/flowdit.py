"""FlowDiT: a diffusion transformer over velocity commands, trained by flow matching (after arXiv 2605.01477)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from policies.flow import Estimate, from_velocity
from policies.head import Head
from policies.nets.dit import Context, DiT, EncoderBlock
from policies.spec import Spec


@dataclass(frozen=True)
class Config:
    """Size of the transformer.

    Args:
        width: Token width.
        depth: Blocks over the action tokens.
        heads: Attention heads.
        encoder_depth: Blocks over the condition tokens.
        patch: Elements of a long vector, such as a range scan, that share one condition token.
        octaves: Sines and cosines beside each raw value, so that small differences stay visible; few of them
            generalise better from few episodes.
    """

    width: int = 128
    depth: int = 4
    heads: int = 4
    encoder_depth: int = 2
    patch: int = 6
    octaves: int = 4


def fourier(values: Tensor, octaves: int) -> Tensor:
    """Append sines and cosines of ``(..., n)`` values in [-1, 1]; returns ``(..., n * (1 + 2 * octaves))``."""
    angles = values[..., None] * math.pi * 2.0 ** torch.arange(octaves, device=values.device)
    return torch.cat([values[..., None], angles.sin(), angles.cos()], -1).flatten(-2)


class VectorTokens(nn.Module):
    """Turns a feature history ``(B, T_obs, n)`` into tokens ``(B, N, width)``; long vectors are cut into patches."""

    def __init__(self, size: int, history: int, width: int, patch: int, octaves: int) -> None:
        super().__init__()
        self.octaves = octaves
        self.patch = patch if size > 4 * patch else size
        if size % self.patch:
            raise ValueError(f"a vector of {size} elements cannot be cut into patches of {patch}")
        inputs = history * self.patch * (1 + 2 * octaves)
        self.mlp = nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, size // self.patch, width))

    def forward(self, history: Tensor) -> Tensor:
        batch, steps, size = history.shape
        patches = history.reshape(batch, steps, size // self.patch, self.patch).transpose(1, 2).flatten(2)
        return self.mlp(fourier(patches, self.octaves)) + self.position


class FlowDiT(Head):
    """Velocity field over chunks, conditioned on one token per small feature and one per patch of a long one."""

    Config = Config

    def __init__(self, spec: Spec, config: Any) -> None:
        super().__init__(spec, config)
        self.tokens = nn.ModuleDict(
            {
                feature.name: VectorTokens(
                    math.prod(feature.shape), spec.history, config.width, config.patch, config.octaves
                )
                for feature in spec.observations
            }
        )
        self.encoder = nn.Sequential(*(EncoderBlock(config.width, config.heads) for _ in range(config.encoder_depth)))
        self.norm = nn.LayerNorm(config.width)
        self.dit = DiT(*spec.noise_shape, config.width, config.depth, config.heads)

    def encode(self, observation: Mapping[str, Tensor]) -> Context:
        tokens = [embed(observation[name].flatten(2)) for name, embed in self.tokens.items()]
        return self.dit.context(self.norm(self.encoder(torch.cat(tokens, 1))))

    def estimate(self, x: Tensor, t: Tensor, context: Context) -> Estimate:
        return from_velocity(lambda x, t: self.dit(x, t, context))(x, t)
