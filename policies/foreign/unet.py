"""The conditional U-Net that diffusion_policy, robomimic and LeRobot share (arXiv 2303.04137), tensor for tensor.

`policies.nets.unet1d` is our own variant of it; this one keeps the published arithmetic and LeRobot's tensor names.
The other two projects name some tensors differently; see `renamed`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from policies.spec import ContractError

GROUPS = 8


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of a U-Net of diffusion_policy or robomimic the names of `ConditionalUNet1d`.

    Args:
        weights: Tensors of the network alone, without a prefix; names that already fit are kept.
    """
    # Theirs: a list of two convolution blocks, and up- and down-sampling wrapped in a module of its own.
    table = {".blocks.0.": ".conv1.", ".blocks.1.": ".conv2.", ".2.conv.": ".2."}
    names = {name: name for name in weights}
    for theirs, ours in table.items():
        names = {name: new.replace(theirs, ours) for name, new in names.items()}
    return {new: weights[name] for name, new in names.items()}


class LevelEmbedding(nn.Module):
    """Sines, then cosines, of noise levels ``(B,)``, counted from 0, as ``(B, width)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, level: Tensor) -> Tensor:
        half = self.width // 2
        rates = torch.exp(-math.log(10000) / (half - 1) * torch.arange(half, device=level.device))
        angles = level[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], -1)


class ConvBlock(nn.Module):
    """Convolution, group normalisation and Mish over ``(B, channels, H)``; keeps the length."""

    def __init__(self, inputs: int, outputs: int, kernel: int, groups: int) -> None:
        super().__init__()
        convolution = nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2)
        self.block = nn.Sequential(convolution, nn.GroupNorm(groups, outputs), nn.Mish())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class ResidualBlock(nn.Module):
    """Two convolutions, between them a shift and, if ``scaled``, a scale per channel from the condition."""

    def __init__(self, inputs: int, outputs: int, condition: int, kernel: int, groups: int, scaled: bool) -> None:
        super().__init__()
        self.scaled = scaled
        self.conv1 = ConvBlock(inputs, outputs, kernel, groups)
        self.conv2 = ConvBlock(outputs, outputs, kernel, groups)
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(condition, outputs * (2 if scaled else 1)))
        self.residual_conv = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        hidden, modulation = self.conv1(x), self.cond_encoder(condition)[..., None]
        if self.scaled:
            scale, shift = modulation.chunk(2, 1)
            hidden = scale * hidden + shift
        else:
            hidden = hidden + modulation
        return self.conv2(hidden) + self.residual_conv(x)


class Level(nn.ModuleList):
    """Two residual blocks and what changes the resolution after them."""

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features at this resolution and at the next."""
        first, second, resample = self
        x = second(first(x, condition), condition)
        return x, resample(x)


class ConditionalUNet1d(nn.Module):
    """Maps a noisy chunk, its noise level and a condition to an output shaped like the chunk.

    Args:
        action_dim: Action dimension A.
        condition_dim: Size C of the condition.
        widths: Channels per level of the U-Net (``down_dims``); each level after the first halves the chunk.
        step_width: Size of the embedding of the noise level (``diffusion_step_embed_dim``).
        kernel: Length of the convolutions (``kernel_size``).
        groups: Groups of the normalisation (``n_groups``).
        scaled: Whether the condition scales as well as shifts (``use_film_scale_modulation`` in LeRobot,
            ``cond_predict_scale`` in diffusion_policy, always true in robomimic).
    """

    def __init__(
        self,
        action_dim: int,
        condition_dim: int,
        widths: tuple[int, ...],
        step_width: int,
        kernel: int = 5,
        groups: int = GROUPS,
        scaled: bool = True,
    ) -> None:
        super().__init__()
        self.widths = tuple(widths)

        def residual(inputs: int, outputs: int) -> ResidualBlock:
            return ResidualBlock(inputs, outputs, step_width + condition_dim, kernel, groups, scaled)

        def level(inputs: int, outputs: int, resample: nn.Module) -> Level:
            return Level([residual(inputs, outputs), residual(outputs, outputs), resample])

        first, last = self.widths[0], self.widths[-1]
        shrink = [nn.Conv1d(width, width, 3, stride=2, padding=1) for width in self.widths[:-1]]
        self.diffusion_step_encoder = nn.Sequential(
            LevelEmbedding(step_width),
            nn.Linear(step_width, 4 * step_width),
            nn.Mish(),
            nn.Linear(4 * step_width, step_width),
        )
        self.down_modules = nn.ModuleList(
            level(*pair, resample)
            for pair, resample in zip(pairwise((action_dim, *self.widths)), [*shrink, nn.Identity()], strict=True)
        )
        self.mid_modules = nn.ModuleList([residual(last, last), residual(last, last)])
        self.up_modules = nn.ModuleList(
            level(2 * wide, narrow, nn.ConvTranspose1d(narrow, narrow, 4, stride=2, padding=1))
            for narrow, wide in reversed(list(pairwise(self.widths)))
        )
        self.final_conv = nn.Sequential(ConvBlock(first, first, kernel, GROUPS), nn.Conv1d(first, action_dim, 1))

    def forward(self, x: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        """Return ``(B, H, A)`` for the chunk ``x`` (B, H, A) at noise levels ``(B,)`` given ``condition`` (B, C).

        Raises:
            ContractError: The horizon cannot be halved as often as the U-Net does.
        """
        factor = 2 ** len(self.up_modules)
        if x.shape[1] % factor:
            raise ContractError(
                f"horizon {x.shape[1]} is no multiple of {factor}, which a U-Net of widths {self.widths} needs; "
                "use the horizon the checkpoint was trained with"
            )
        condition = torch.cat([self.diffusion_step_encoder(level), condition], -1)
        x, skips = x.transpose(1, 2), []
        for down in self.down_modules:
            skip, x = down(x, condition)
            skips.append(skip)
        for block in self.mid_modules:
            x = block(x, condition)
        for up in self.up_modules:
            _, x = up(torch.cat([x, skips.pop()], 1), condition)
        return self.final_conv(x).transpose(1, 2)
