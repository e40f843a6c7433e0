"""FlowDiT: a diffusion transformer over velocity commands, trained by flow matching (after arXiv 2605.01477)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from policies.checks import at_least
from policies.flow import Estimate, Field, from_velocity, pin
from policies.head import Head
from policies.nets.dit import Context, DiT, EncoderBlock
from policies.nets.text import TextEncoder
from policies.nets.vision import TinyEncoder
from policies.spec import Feature, Spec

REGIONS = 3  # per side of a picture that are told apart


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
        ends: Know at what time a step ends, as distillation needs it: steps may then be long.
        given: Most actions at the begin of a chunk that are given in training, as real-time chunking gives those that
            are executed while a chunk is inferred (arXiv 2512.05964); 0 leaves them to guidance.
    """

    width: int = 128
    depth: int = 4
    heads: int = 4
    encoder_depth: int = 2
    patch: int = 6
    octaves: int = 4
    ends: bool = False
    given: int = 0


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
        history = history.flatten(2)
        batch, steps, size = history.shape
        patches = history.reshape(batch, steps, size // self.patch, self.patch).transpose(1, 2).flatten(2)
        return self.mlp(fourier(patches, self.octaves)) + self.position


class PictureTokens(nn.Module):
    """Turns pictures ``(B, T_obs, ..., 3, S, S)`` uint8, or videos, into one token each, ``(B, N, width)``."""

    def __init__(self, shape: tuple[int, ...], history: int, width: int) -> None:
        super().__init__()
        self.encoder = TinyEncoder(shape[-1])
        side = shape[-1] // 16
        self.pool = nn.AdaptiveAvgPool2d(REGIONS) if side % REGIONS else nn.AvgPool2d(side // REGIONS)
        self.side, self.project = side, nn.Linear(self.encoder.width * REGIONS**2, width)
        self.position = nn.Parameter(0.02 * torch.randn(1, history * math.prod(shape[:-3]), width))

    def forward(self, pictures: Tensor) -> Tensor:
        features = self.encoder(pictures.flatten(0, -4)).mT.unflatten(2, (self.side, self.side))
        tokens = self.project(self.pool(features).flatten(1))
        return tokens.reshape(len(pictures), -1, tokens.shape[-1]) + self.position


class TextTokens(nn.Module):
    """Turns a sentence ``(B, 1, length)`` uint8 into tokens ``(B, length / 4, width)``."""

    def __init__(self, length: int, width: int, heads: int) -> None:
        super().__init__()
        self.encoder = TextEncoder(length, width, heads=heads)

    def forward(self, text: Tensor) -> Tensor:
        return self.encoder(text[:, 0])


class DiTHead(Head):
    """A head whose field is that of a transformer, with contexts of which among what `encode` returns."""

    dit: DiT

    def transformer(self, weights: bool = False) -> DiT:
        """Make it, to know weights of guidance or not.

        Raises:
            ContractError: Fewer actions than none are to be given.
        """
        config = self.config
        at_least(0, given=config.given)
        size = config.width, config.depth, config.heads
        return DiT(*self.spec.noise_shape, *size, config.ends, config.given > 0, weights)

    def as_student(self, ends: bool) -> Any:
        """Settings of the head that distillation makes of this one, which knows where steps end or does not."""
        return dataclasses.replace(self.config, ends=ends)

    def until(self, context: Any, t: Tensor) -> Any:
        return self.dit.until(context, t) if self.config.ends else context

    def given(self, context: Any, actions: Tensor, known: Tensor) -> Any:
        return self.dit.given(context, actions, known) if self.config.given else context

    def begins(self, actions: Tensor, generator: torch.Generator) -> Tensor:
        if not self.config.given:
            return super().begins(actions, generator)
        count = torch.randint(self.config.given + 1, (len(actions), 1), generator=generator)
        place = torch.arange(actions.shape[1]) - self.spec.past
        return (place >= 0) & (place < count)

    def velocities(self, context: Context) -> Field:
        """The field of a context of the transformer; what is known stays as it is."""
        field = from_velocity(lambda x, t: self.dit(x, t, context))
        return pin(field, *context.given) if context.given else field


class FlowDiT(DiTHead):
    """Velocity field over chunks, conditioned on one token per small feature and one per patch of a long one."""

    Config = Config

    def __init__(self, spec: Spec, config: Any) -> None:
        super().__init__(spec, config)
        self.tokens = nn.ModuleDict({feature.name: tokens_of(feature, spec, config) for feature in spec.observations})
        self.encoder = nn.Sequential(*(EncoderBlock(config.width, config.heads) for _ in range(config.encoder_depth)))
        self.norm = nn.LayerNorm(config.width)
        self.dit = self.transformer()

    def digest(self, observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Replace constant features by their tokens ``(n, N, width)``."""
        constant = {feature.name for feature in self.spec.observations if feature.constant}
        return {name: self.tokens[name](values) if name in constant else values for name, values in observation.items()}

    def encode(self, observation: Mapping[str, Tensor]) -> Any:
        return self.dit.context(self.scene(observation))

    def scene(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Tokens ``(B, N, width)`` of everything that is observed."""
        batch = max(len(values) for values in observation.values())
        # what is constant may be given once for several rows in a row
        tokens = [
            repeated(observation[f.name] if f.constant else self.tokens[f.name](observation[f.name]), batch)
            for f in self.spec.observations
        ]
        return self.norm(self.encoder(torch.cat(tokens, 1)))

    def estimate(self, x: Tensor, t: Tensor, context: Any) -> Estimate:
        return self.velocities(context)(x, t)


def tokens_of(feature: Feature, spec: Spec, config: Config) -> nn.Module:
    """Make the module that turns a feature into tokens."""
    if feature.dtype == "float32":
        size, samples = math.prod(feature.shape), spec.samples(feature)
        patch = feature.shape[-1] if len(feature.shape) > 1 else config.patch  # a table has a token per row
        return VectorTokens(size, samples, config.width, patch, config.octaves)
    if len(feature.shape) == 1:
        return TextTokens(feature.shape[0], config.width, config.heads)
    return PictureTokens(feature.shape, spec.samples(feature), config.width)


def repeated(tokens: Tensor, batch: int) -> Tensor:
    """Repeat ``(n, ...)`` rows so that there are ``batch``, each as often as the others."""
    return tokens if len(tokens) == batch else tokens.repeat_interleave(batch // len(tokens), 0)
