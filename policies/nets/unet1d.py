"""Conditional U-Net over the time axis of a chunk, the usual network of diffusion policies (arXiv 2303.04137).

Every level has two residual blocks on the way down and two on the way up; the noise level and the observation enter
each of them as a scale and a shift per channel (FiLM, arXiv 1709.07871).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from policies.nets.dit import sinusoidal

KERNEL = 5
GROUPS = 8


class ConvBlock(nn.Sequential):
    """Convolution, group normalisation and Mish over ``(B, channels, H)``; keeps the length."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv1d(inputs, outputs, KERNEL, padding=KERNEL // 2), nn.GroupNorm(GROUPS, outputs), nn.Mish()
        )


class ResidualBlock(nn.Module):
    """Two convolutions around a scale and shift that depend on the condition ``(B, condition_dim)``."""

    def __init__(self, inputs: int, outputs: int, condition_dim: int) -> None:
        super().__init__()
        self.first, self.second = ConvBlock(inputs, outputs), ConvBlock(outputs, outputs)
        self.modulation = nn.Sequential(nn.Mish(), nn.Linear(condition_dim, 2 * outputs))
        self.shortcut = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulation(condition)[..., None].chunk(2, 1)
        return self.shortcut(x) + self.second(self.first(x) * (1 + scale) + shift)


class Level(nn.Module):
    """Two residual blocks, the first of which changes the number of channels."""

    def __init__(self, inputs: int, outputs: int, condition_dim: int) -> None:
        super().__init__()
        self.first = ResidualBlock(inputs, outputs, condition_dim)
        self.second = ResidualBlock(outputs, outputs, condition_dim)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.second(self.first(x, condition), condition)


class UNet1d(nn.Module):
    """Maps a noisy chunk, its time and a condition vector to an output shaped like the chunk.

    Args:
        action_dim: Action dimension A.
        condition_dim: Size C of the condition, for example the flattened observation history.
        widths: Channels per level, multiples of 8; each level after the first halves the length of the chunk.
    """

    def __init__(self, action_dim: int, condition_dim: int, widths: tuple[int, ...] = (256, 512, 1024)) -> None:
        super().__init__()
        self.widths, self.step_width = widths, widths[0]
        total = self.step_width + condition_dim
        self.step = nn.Sequential(
            nn.Linear(self.step_width, 4 * self.step_width), nn.Mish(), nn.Linear(4 * self.step_width, self.step_width)
        )
        self.down = nn.ModuleList(Level(a, b, total) for a, b in pairwise((action_dim, *widths)))
        self.shrink = nn.ModuleList(nn.Conv1d(width, width, 3, stride=2, padding=1) for width in widths[:-1])
        self.middle = Level(widths[-1], widths[-1], total)
        # The finest level has no skip connection, as published: its resolution returns by the last up-sampling.
        self.up = nn.ModuleList(Level(2 * b, a, total) for a, b in reversed(list(pairwise(widths))))
        self.grow = nn.ModuleList(nn.ConvTranspose1d(a, a, 4, stride=2, padding=1) for a in reversed(widths[:-1]))
        self.outlet = nn.Sequential(ConvBlock(widths[0], widths[0]), nn.Conv1d(widths[0], action_dim, 1))

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Return ``(B, H, A)`` for the chunk ``x`` (B, H, A) at times ``t`` (B,) in [0, 1] given ``condition`` (B, C).

        Raises:
            ValueError: The horizon cannot be halved at every level.
        """
        factor = 2 ** len(self.shrink)
        if x.shape[1] % factor:
            raise ValueError(
                f"horizon {x.shape[1]} is no multiple of {factor}, which widths {self.widths} need; pad it"
            )
        condition = torch.cat([self.step(sinusoidal(t, self.step_width)), condition], -1)
        x = self.down[0](x.transpose(1, 2), condition)
        skips = []
        for shrink, level in zip(self.shrink, self.down[1:], strict=True):
            x = level(shrink(x), condition)
            skips.append(x)
        x = self.middle(x, condition)
        for level, grow in zip(self.up, self.grow, strict=True):
            x = grow(level(torch.cat([x, skips.pop()], 1), condition))
        return self.outlet(x).transpose(1, 2)
