"""A model of short pieces of trajectories, from which long ones are composed (CompDiffuser, arXiv 2503.05153).

The network predicts the data (never the noise) of a piece of positions, given what is known of its ends: where the
robot is or shall be, or the noisy ends of the pieces beside it, which overlap with it and are denoised at the same
time. Unlike the published one it is told noise and data in the preconditioned form of EDM (arXiv 2206.00364), and where
in the plane it is by waves whose amplitude falls as the noise grows: walls are far smaller than a maze.

There are no velocities in it: how far apart positions are says the same. A network that is to find both decides on
velocities while positions are still wide open, and they do not fit together in the end.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from policies.flow import Estimate, Field
from policies.nets.unet1d import UNet1d

SPREAD = 0.5  # standard deviation of normal states
NOISIEST, CLEANEST = 4.0, 0.002  # standard deviations of the noise, in normal units, that the network is trained for
CURVE = 4.0  # of the grid: the larger, the more steps at little noise
WITH_NOTHING, WITH_PLACE = 0.2, 0.4  # shares of ends of which nothing is known, and a place; else a neighbour is


@dataclass(frozen=True)
class TrajectoryConfig:
    """Shape of the model.

    Args:
        centre: What is subtracted of positions ``(2,)``, in m.
        scale: What they are divided by, in m.
        horizon: Positions of the longest piece.
        overlap: Positions that neighbours share, fewest and most.
        widths: Channels per level of the U-Net.
        waves: Lengths of the waves by which positions are seen, in m.
    """

    centre: tuple[float, float]
    scale: float
    horizon: int = 20
    overlap: tuple[int, int] = (4, 10)
    widths: tuple[int, ...] = (64, 128, 128)
    waves: tuple[float, ...] = (64.0, 32.0, 16.0, 8.0, 4.0)


class Ends(NamedTuple):
    """What is known of pieces.

    Args:
        places: Normal positions that are known ``(B, H, 2)``, anything where they are not.
        given: 1 where they are, else 0, ``(B, H, 1)``.
        beside: Overlaps with the noisy pieces beside, ``(B, H, 2)``, anything where there is none.
        shared: 1 where there is one, else 0, ``(B, H, 1)``.
    """

    places: Tensor
    given: Tensor
    beside: Tensor
    shared: Tensor


class TrajectoryModel(nn.Module):
    """Field over pieces of trajectories in normal units, ``(B, H, 2)`` with H a multiple of 4."""

    _centre: Tensor
    _rates: Tensor

    def __init__(self, config: TrajectoryConfig) -> None:
        super().__init__()
        self.config = config
        self.network = UNet1d(8 + 4 * len(config.waves), 0, config.widths)
        self.register_buffer("_centre", torch.tensor(config.centre), persistent=False)
        self.register_buffer("_rates", 2 * math.pi * config.scale / torch.tensor(config.waves), persistent=False)

    def normal(self, places: Tensor) -> Tensor:
        """Positions in m to normal ones."""
        return (places - self._centre) / self.config.scale

    def restore(self, places: Tensor) -> Tensor:
        """Normal positions to m."""
        return places * self.config.scale + self._centre

    def estimate(self, x: Tensor, t: Tensor, ends: Ends) -> Estimate:
        """Estimate data and noise of noisy pieces ``x`` (B, H, 2) at times ``t`` (B,) on the linear path."""
        time = t[:, None, None].clamp(1 / (1 + NOISIEST), 1 / (1 + CLEANEST))
        sigma = (1 - time) / time
        size = (SPREAD**2 + sigma**2).sqrt()
        noisy, beside = x / time / size, ends.beside / time / size * ends.shared
        seen = [noisy, beside, ends.places * ends.given, ends.given, ends.shared, self._waves(x / time, sigma)]
        level = torch.log(sigma[:, 0, 0] / CLEANEST) / math.log(NOISIEST / CLEANEST)
        found = self.network(torch.cat(seen, -1), level, x.new_empty(len(x), 0))[..., :2]
        data = SPREAD**2 / size**2 * (x / time) + SPREAD * sigma / size * found
        data = torch.where(ends.given > 0, ends.places, data)
        ratio = t[:, None, None]
        return Estimate(data, (x - ratio * data) / (1 - ratio).clamp(min=1e-6))

    def _waves(self, places: Tensor, sigma: Tensor) -> Tensor:
        """Sines and cosines ``(B, H, ...)`` of positions, as they are expected to be under the noise."""
        angles = places[..., None] * self._rates
        kept = torch.exp(-((sigma[..., None] * self._rates) ** 2) / 2)
        return torch.cat([angles.sin() * kept, angles.cos() * kept], -1).flatten(2)

    def bind(self, ends: Ends) -> Field:
        """Fix what is known and return the field over pieces."""
        return lambda x, t: self.estimate(x, t, ends)

    def grid(self, steps: int) -> tuple[float, ...]:
        """The ``steps + 1`` increasing times on the linear path at which sampling looks at the field; the last is 1."""
        first, last = NOISIEST ** (1 / CURVE), CLEANEST ** (1 / CURVE)
        sigmas = [(first + k / max(1, steps - 1) * (last - first)) ** CURVE for k in range(steps)]
        return (*(1 / (1 + sigma) for sigma in sigmas), 1.0)

    def loss(self, pieces: Tensor, generator: torch.Generator) -> Tensor:
        """Scalar training loss for normal pieces ``(B, H, 2)``: error of the data, relative to how uncertain they are.

        How much is known of either end, and how long the overlap with a neighbour is, is drawn for each piece.
        """

        def draw(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator)

        sigma = CLEANEST * (NOISIEST / CLEANEST) ** draw(len(pieces), 1, 1)
        t = 1 / (1 + sigma)
        noise, other = (torch.randn(pieces.shape, generator=generator) for _ in range(2))
        ends = self._ends(pieces, t * pieces + (1 - t) * other, draw(len(pieces), 4))
        data = self.estimate(t * pieces + (1 - t) * noise, t[:, 0, 0], ends).data
        uncertain = (SPREAD * sigma) ** 2 / (SPREAD**2 + sigma**2)
        return ((data - pieces) ** 2 / uncertain).mean()  # what is given has no error

    def _ends(self, pieces: Tensor, beside: Tensor, drawn: Tensor) -> Ends:
        """What a training piece is told: by side nothing, where it ends, or a neighbour; ``drawn`` (B, 4) in [0, 1).

        At its begin also the position before, every second time: it says how fast the robot is.
        """
        horizon, (least, most) = pieces.shape[1], self.config.overlap
        place = torch.arange(horizon)
        given, shared = torch.zeros(2, len(pieces), horizon, 1)
        for side, distance in ((0, place), (1, place.flip(0))):
            kind, share = drawn[:, side, None], drawn[:, 2 + side, None]
            count = 1 + (share < 0.5) * (side == 0)
            known = (kind >= WITH_NOTHING) & (kind < WITH_NOTHING + WITH_PLACE) & (distance < count)
            overlap = (kind >= WITH_NOTHING + WITH_PLACE) & (distance < least + share * (most - least + 1) - 1e-6)
            given = torch.maximum(given, known[..., None].float())
            shared = torch.maximum(shared, overlap[..., None].float())
        return Ends(pieces, given, beside, shared)

    @property
    def settings(self) -> dict[str, object]:
        """The configuration as plain JSON values."""
        return dataclasses.asdict(self.config)


def config_of(settings: dict[str, object]) -> TrajectoryConfig:
    """The configuration that `TrajectoryModel.settings` wrote.

    Raises:
        TypeError: Something is missing or unknown.
    """
    return TrajectoryConfig(**{name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()})  # type: ignore[arg-type]
