"""Diffusion transformer over a sequence of action tokens (Peebles & Xie, arXiv 2212.09748) with cross-attention.

Time and condition modulate every block additively, ``modulation = time(t) + condition(c)``. On a fixed time grid the
first part is a constant and the second is computed once per chunk, as are the keys and values of the condition tokens:
one denoising step then costs the action tokens only, and an exported graph holds the time part as constants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

HEAVIEST = 10.0  # weight of guidance that is told apart from others as well as the times 0 and 1 are


class Context(NamedTuple):
    """What the denoising steps of one chunk share.

    Args:
        keys: ``(L, B, heads, N, width / heads)`` keys of the N condition tokens, one set per block.
        values: Like ``keys``.
        modulation: ``(B, 1 or L + 1, 9, width)`` share of the condition in the modulations, of all blocks or each.
        given: Where some actions are known: ``(B, H, A)`` with these, and which they are, ``(B, H, 1)`` boolean.
    """

    keys: Tensor
    values: Tensor
    modulation: Tensor
    given: tuple[Tensor, ...] = ()


def sinusoidal(values: Tensor, width: int) -> Tensor:
    """Embed ``(B,)`` scalars in [0, 1] as ``(B, width)`` sines and cosines."""
    frequencies = torch.exp(-math.log(1e4) * torch.arange(width // 2, device=values.device) / (width // 2))
    angles = 1000.0 * values[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """Reshape ``(B, N, width)`` to ``(B, heads, N, width / heads)``."""
    batch, count, width = tokens.shape
    return tokens.reshape(batch, count, heads, width // heads).transpose(1, 2)


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Multi-head attention over ``(B, heads, N, width / heads)``; returns ``(B, N, width)``."""
    mixed = functional.scaled_dot_product_attention(queries, keys, values)
    return mixed.transpose(1, 2).flatten(2)


def qkv_heads(qkv: Tensor, heads: int) -> tuple[Tensor, ...]:
    """Queries, keys and values ``(B, heads, N, width / heads)`` of ``(B, N, 3 * width)``."""
    return split_heads(qkv, 3 * heads).chunk(3, 1)


def modulated(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer-normalise ``(B, N, width)`` tokens, then scale and shift them by modulations, see `parts`."""
    size = tokens.shape[-1:]
    if scale.dim() == 1:
        return functional.layer_norm(tokens, size, scale, shift)
    return functional.layer_norm(tokens, size) * scale + shift


def parts(modulation: Tensor) -> Sequence[Tensor]:
    """Take modulations ``(B, M, width)`` apart: M times ``(B, 1, width)``, or ``(width,)`` where B is 1.

    A normalisation with those is one kernel instead of three, which counts in a control loop.
    """
    return modulation.flatten().split(modulation.shape[-1]) if len(modulation) == 1 else modulation.split(1, 1)


class EncoderBlock(nn.Module):
    """Pre-norm self-attention block for condition tokens ``(B, N, width)``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        queries, keys, values = qkv_heads(self.qkv(self.norm_attention(tokens)), self.heads)
        tokens = tokens + self.out(attend(queries, keys, values))
        return tokens + self.mlp(self.norm_mlp(tokens))


class CrossBlock(nn.Module):
    """Pre-norm block of queries ``(B, K, width)`` that look at tokens ``(B, N, width)``, not at each other."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        looking = split_heads(self.query(self.norm_attention(queries)), self.heads)
        keys, values = (split_heads(part, self.heads) for part in self.key_value(tokens).chunk(2, -1))
        queries = queries + self.out(attend(looking, keys, values))
        return queries + self.mlp(self.norm_mlp(queries))


class Block(nn.Module):
    """adaLN-Zero block: self-attention, cross-attention to cached keys and values, MLP; every branch is gated."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.cross_query, self.cross_out = nn.Linear(width, width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor, keys: Tensor, values: Tensor, m: Sequence[Tensor]) -> Tensor:
        queries, own_keys, own_values = qkv_heads(self.qkv(modulated(tokens, m[0], m[1])), self.heads)
        tokens = tokens + m[2] * self.out(attend(queries, own_keys, own_values))
        queries = split_heads(self.cross_query(modulated(tokens, m[3], m[4])), self.heads)
        tokens = tokens + m[5] * self.cross_out(attend(queries, keys, values))
        return tokens + m[8] * self.mlp(modulated(tokens, m[6], m[7]))


class DiT(nn.Module):
    """Maps a noisy chunk and its time to a velocity.

    Args:
        horizon: Number of actions H.
        action_dim: Action dimension A.
        width: Token width; a multiple of ``2 * heads``.
        depth: Number of blocks L.
        heads: Attention heads.
        ends: Also know at what time a step ends, see `until`.
        begins: Also know that actions are given, see `given`.
        weights: Also know how much to be guided, see `guided`.
    """

    def __init__(
        self,
        horizon: int,
        action_dim: int,
        width: int,
        depth: int,
        heads: int,
        ends: bool = False,
        begins: bool = False,
        weights: bool = False,
    ) -> None:
        super().__init__()
        self.width, self.depth, self.heads = width, depth, heads
        self.identity: Tensor
        self.inlet, self.outlet = nn.Linear(action_dim, width), nn.Linear(width, action_dim)
        self.position = nn.Parameter(0.02 * torch.randn(1, horizon, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.time_modulation = nn.Linear(width, (depth + 1) * 9 * width)
        self.condition_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 9 * width, bias=False))
        self.cross = nn.Linear(width, depth * 2 * width)
        silent: list[nn.Module] = [self.time_modulation, self.condition_modulation[1], self.outlet]
        if ends:
            self.end_modulation = nn.Linear(width, (depth + 1) * 9 * width)
            silent.append(self.end_modulation)
        if weights:
            self.weight_modulation = nn.Linear(width, (depth + 1) * 9 * width)
            silent.append(self.weight_modulation)
        if begins:
            self.is_known = nn.Parameter(torch.zeros(width))
        identity = torch.zeros(9, width)
        identity[1::3] = 1  # of the scales
        self.register_buffer("identity", identity, persistent=False)
        for layer in silent:
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)  # every block starts as the identity

    def context(self, tokens: Tensor) -> Context:
        """Prepare condition tokens ``(B, N, width)`` once per chunk."""
        batch, count, _ = tokens.shape
        size = (batch, count, self.depth, 2, self.heads, self.width // self.heads)
        keys, values = self.cross(tokens).reshape(size).permute(3, 2, 0, 4, 1, 5).unbind(0)
        modulation = self.condition_modulation(tokens.mean(1, keepdim=True)).unflatten(-1, (9, self.width))
        return Context(keys, values, modulation)

    def until(self, context: Any, t: Tensor) -> Any:
        """The context of steps that end at times ``t`` (B,), or a tuple with such: velocities become their mean."""
        share = self._modulation(self.end_modulation, t)
        return _each(context, lambda part: part._replace(modulation=part.modulation + share))

    def given(self, context: Any, actions: Tensor, known: Tensor) -> Any:
        """The context, or a tuple with such, of chunks ``(B, H, A)`` of which some actions ``(B, H)`` are known."""
        return _each(context, lambda part: part._replace(given=(actions, known[..., None])))

    def guided(self, context: Context, weight: Tensor) -> Context:
        """The context of chunks that are guided by weights ``(B,)``, without another evaluation."""
        share = self._modulation(self.weight_modulation, weight / HEAVIEST)
        return context._replace(modulation=context.modulation + share)

    def shallower(self, depth: int) -> dict[str, Tensor]:
        """Weights of a transformer of fewer blocks, which are evenly chosen from the first to the last of these."""
        kept = torch.linspace(0, self.depth - 1, depth).round().int().tolist()
        weights = {}
        for name, weight in self.state_dict().items():
            layer, _, rest = name.partition(".")
            if layer == "blocks":
                index, _, rest = rest.partition(".")
                if int(index) in kept:
                    weights[f"blocks.{kept.index(int(index))}.{rest}"] = weight
            elif layer == "cross":
                weights[name] = weight.unflatten(0, (self.depth, -1))[kept].flatten(0, 1)
            elif layer in ("time_modulation", "end_modulation", "weight_modulation"):
                weights[name] = weight.unflatten(0, (self.depth + 1, -1))[[*kept, self.depth]].flatten(0, 1)
            else:
                weights[name] = weight
        return weights

    def _modulation(self, layer: nn.Module, t: Tensor) -> Tensor:
        """Share of a time, or of another number in [0, 1], in the modulations ``(B, L + 1, 9, width)``."""
        return layer(self.time(sinusoidal(t, self.width))).reshape(-1, self.depth + 1, 9, self.width)

    def forward(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        """Return the velocity ``(B, H, A)`` of the chunk ``x`` (B, H, A) at times ``t`` (B,)."""
        modulation = (self._modulation(self.time_modulation, t) + self.identity) + context.modulation
        m = parts(modulation.flatten(1, 2))
        position: Tensor = self.position
        if context.given:
            actions, known = context.given
            x, position = torch.where(known, actions, x), position + known * self.is_known
        tokens = self.inlet(x) + position
        for index, block in enumerate(self.blocks):
            tokens = block(tokens, context.keys[index], context.values[index], m[9 * index : 9 * index + 9])
        return self.outlet(modulated(tokens, *m[9 * self.depth :][:2]))


def _each(context: Any, change: Callable[[Context], Context]) -> Any:
    """A context, or a tuple with such, after a change."""
    if isinstance(context, Context):
        return change(context)
    parts = {name: part for name, part in context._asdict().items() if isinstance(part, Context)}
    return context._replace(**{name: change(part) for name, part in parts.items()})
