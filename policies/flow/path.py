"""Paths between noise and data, what a network says about them, and the exact change from one path to another.

A path is ``x = signal * data + noise_scale * noise``. Everything in the project works on the linear path, where t = 0
is noise and t = 1 is data; a network trained on any other path becomes a field on the linear one in one line::

    field = reschedule(from_noise(network, path), path)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

Scale = Callable[[Tensor], Tensor]
Network = Callable[[Tensor, Tensor], Tensor]


class Estimate(NamedTuple):
    """What a field believes about a point: the data and the noise it is mixed from, both ``(B, H, A)``.

    The pair normally reproduces the point, ``x = t * data + (1 - t) * noise``. A parent that clips its data keeps the
    raw noise, and its own sampler can only be reproduced because both travel together.
    """

    data: Tensor
    noise: Tensor

    @property
    def velocity(self) -> Tensor:
        """dx/dt on the linear path, ``(B, H, A)``."""
        return self.data - self.noise

    def mix(self, other: Estimate, weight: Tensor | float) -> Estimate:
        """Return ``(1 - weight) * self + weight * other``; weights 0 and 1 return either one bit for bit."""
        return Estimate(*((1 - weight) * mine + weight * theirs for mine, theirs in zip(self, other, strict=True)))


Field = Callable[[Tensor, Tensor], Estimate]


def expand(t: Tensor, x: Tensor) -> Tensor:
    """View times ``(B,)`` so that they broadcast against ``x`` ``(B, ...)``."""
    return t.reshape(-1, *[1] * (x.dim() - 1))


def positive(scale: Tensor) -> Tensor:
    """Keep a divisor that vanishes at one end of the path away from zero, so that the result stays finite there."""
    return scale.clamp(min=torch.finfo(scale.dtype).eps)


def _same(time: Tensor) -> Tensor:
    return time


@dataclass(frozen=True)
class Path:
    """A family of noise levels ``x = signal(time) * data + noise(time) * noise`` in a native time.

    Args:
        signal: Scale of the data at native times ``(B,)``.
        noise: Scale of the noise at native times.
        signal_rate: Share of the data in the native velocity a network on this path predicts.
        noise_rate: Share of the noise in that velocity.
        time: Native time of linear-path times t; the inverse of `level`.
        label: What the network is given as its time argument; discrete paths round here.
    """

    signal: Scale
    noise: Scale
    signal_rate: Scale
    noise_rate: Scale
    time: Scale
    label: Scale = _same

    def level(self, time: Tensor) -> Tensor:
        """Return the linear-path time with the same signal-to-noise ratio."""
        return self.signal(time) / self.total(time)

    def total(self, time: Tensor) -> Tensor:
        """Return ``signal + noise``: native state divided by linear-path state."""
        return self.signal(time) + self.noise(time)

    def at(self, data: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return the native state ``(B, H, A)`` that mixes ``data`` and ``noise`` at native times ``(B,)``."""
        return expand(self.signal(time), data) * data + expand(self.noise(time), data) * noise


LINEAR = Path(
    signal=_same,
    noise=lambda t: 1 - t,
    signal_rate=torch.ones_like,
    noise_rate=lambda t: -torch.ones_like(t),
    time=_same,
)
"""Rectified flow (arXiv 2209.03003): velocity = data - noise."""

COSINE = Path(
    signal=lambda t: torch.sin(math.pi / 2 * t),
    noise=lambda t: torch.cos(math.pi / 2 * t),
    signal_rate=lambda t: -torch.cos(math.pi / 2 * t),
    noise_rate=lambda t: torch.sin(math.pi / 2 * t),
    time=lambda t: 2 / math.pi * torch.atan2(t, 1 - t),
)
"""Variance-preserving quarter circle. Velocity: v-prediction (arXiv 2202.00512): a * noise - s * data."""


def ddpm(betas: Tensor) -> Path:
    """Path of a DDPM variance table (arXiv 2006.11239); native time k counts noise levels, 0 is the least noisy.

    Between two levels the linear-path time is interpolated, so the path is continuous and exactly invertible; k = -1 is
    data, k = T is noise. Only the label given to the network is rounded to a trained level. The velocity is
    v-prediction, as in `COSINE`.

    Args:
        betas: ``(T,)`` variances added per level.
    """
    count = len(betas)
    kept = torch.cumprod(1 - betas.double(), 0)
    inner = kept.sqrt() / (kept.sqrt() + (1 - kept).sqrt())
    levels = torch.cat([inner.new_ones(1), inner, inner.new_zeros(1)])

    def level(k: Tensor) -> Tensor:
        k = k if k.is_floating_point() else k.to(torch.get_default_dtype())
        position = (k + 1).clamp(0, count + 1)
        left = position.floor().clamp(max=count)
        index = left.long()
        table = levels.to(k)
        return torch.lerp(table[index], table[index + 1], position - left)

    def time(t: Tensor) -> Tensor:
        table = levels.to(t)
        left = ((table > t[..., None]).sum(-1) - 1).clamp(0, count)
        high, low = table[left], table[left + 1]
        return left - 1 + (high - t) / positive(high - low)

    def signal(k: Tensor) -> Tensor:
        t = level(k)
        return t * torch.rsqrt(t**2 + (1 - t) ** 2)

    def noise(k: Tensor) -> Tensor:
        t = level(k)
        return (1 - t) * torch.rsqrt(t**2 + (1 - t) ** 2)

    return Path(signal, noise, lambda k: -noise(k), signal, time, lambda k: k.round().clamp(0, count - 1).long())


def squared_cosine_betas(count: int, cap: float = 0.999) -> Tensor:
    """Variances ``(count,)`` of the squared-cosine table (arXiv 2102.09672), the usual one of diffusion policies."""
    edges = torch.linspace(0, 1, count + 1, dtype=torch.float64)
    kept = torch.cos((edges + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - kept[1:] / kept[:-1]).clamp(max=cap)


def from_velocity(network: Network, path: Path = LINEAR) -> Field:
    """Field on ``path`` of a network that predicts ``signal_rate * data + noise_rate * noise``."""

    def field(x: Tensor, time: Tensor) -> Estimate:
        velocity = network(x, path.label(time))
        signal, noise = expand(path.signal(time), x), expand(path.noise(time), x)
        signal_rate, noise_rate = expand(path.signal_rate(time), x), expand(path.noise_rate(time), x)
        determinant = signal * noise_rate - noise * signal_rate
        data = (noise_rate * x - noise * velocity) / determinant
        return Estimate(data, (signal * velocity - signal_rate * x) / determinant)

    return field


def from_noise(network: Network, path: Path = LINEAR) -> Field:
    """Field on ``path`` of a network that predicts the noise (epsilon).

    The data is undefined where the path is pure noise: begin the grid at the level of the noisiest trained time.
    """

    def field(x: Tensor, time: Tensor) -> Estimate:
        noise = network(x, path.label(time))
        data = (x - expand(path.noise(time), x) * noise) / positive(expand(path.signal(time), x))
        return Estimate(data, noise)

    return field


def from_data(network: Network, path: Path = LINEAR) -> Field:
    """Field on ``path`` of a network that predicts the data (sample prediction); the noise is undefined at the data."""

    def field(x: Tensor, time: Tensor) -> Estimate:
        data = network(x, path.label(time))
        noise = (x - expand(path.signal(time), x) * data) / positive(expand(path.noise(time), x))
        return Estimate(data, noise)

    return field


def from_score(network: Network, path: Path = LINEAR) -> Field:
    """Field on ``path`` of a network that predicts the gradient of the log density of the native state."""

    def noise(x: Tensor, time: Tensor) -> Tensor:
        return -expand(path.noise(time), x) * network(x, path.label(time))

    return from_noise(noise, replace(path, label=_same))


def reschedule(field: Field, src: Path, dst: Path = LINEAR) -> Field:
    """Move a field from path ``src`` to path ``dst``.

    Two paths meet where their signal-to-noise ratios agree: there the states differ by a factor and the pair is the
    same, so this is exact. Start noise has to be scaled likewise: at time s of ``dst`` it is
    ``noise * dst.total(s) / src.total(src.time(dst.level(s)))``.
    """

    def rescheduled(x: Tensor, time: Tensor) -> Estimate:
        native = src.time(dst.level(time))
        return field(x * expand(src.total(native) / dst.total(time), x), native)

    return rescheduled
