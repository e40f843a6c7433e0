"""Trajectories composed of overlapping pieces that are denoised together (CompDiffuser, arXiv 2503.05153).

A batch holds the K pieces of one sample after those of another. Each piece is told the noisy ends of those beside it,
the first one the start and the last one the goal; where they overlap their estimates are averaged.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from policies.flow import Estimate, Field
from policies.flow.guide import certain
from policies.spec import Array
from policies.trajectory import Ends, TrajectoryModel

SMOOTHING, FIXED = 10.0, 1e4  # weights of third differences and of the ends


class Pieces(NamedTuple):
    """How a trajectory is cut into pieces that overlap.

    Args:
        first: The first state of each ``(K,)``.
        horizon: States of each.
    """

    first: Array
    horizon: int

    @classmethod
    def cut(cls, wanted: int, longest: int, overlap: tuple[int, int]) -> Pieces:
        """As long ones and as few as possible.

        Args:
            wanted: States of the trajectory; there are more if it cannot be cut otherwise.
            longest: States of the longest piece.
            overlap: States that neighbours share, fewest and most.
        """
        least, most = overlap
        for horizon in range(longest, 7, -4):
            count = 1 if wanted <= horizon else 1 + -(-(wanted - horizon) // (horizon - least))
            shortest = count * horizon - (count - 1) * most
            if wanted >= shortest - (0 if count > 1 else 3):
                break
        total = max(wanted, shortest)
        return cls(np.rint(np.linspace(0, total - horizon, count)).astype(int), horizon)

    @property
    def total(self) -> int:
        """States of the trajectory."""
        return int(self.first[-1]) + self.horizon

    @property
    def rows(self) -> Array:
        """For each piece which states of the trajectory are its own ``(K, H)``."""
        return self.first[:, None] + np.arange(self.horizon)

    def overlaps(self) -> Array:
        """States that neighbours share ``(K - 1,)``."""
        return self.horizon - np.diff(self.first)


def composed(model: TrajectoryModel, begin: Array, goal: Array, pieces: Pieces, samples: int) -> Field:
    """Field over the pieces of all samples, ``(samples * K, H, 2)`` in normal units; each sees those beside it.

    Args:
        model: Of one piece.
        begin: The first positions ``(B, 2)`` in m.
        goal: The last position ``(2,)`` in m.
        pieces: Of a trajectory.
        samples: How many trajectories.
    """
    count, horizon = len(pieces.first), pieces.horizon
    places, given, shared = torch.zeros(count, horizon, 2), *torch.zeros(2, count, horizon, 1)
    for piece, row, known in ((0, slice(len(begin)), begin), (-1, slice(-1, None), np.asarray(goal)[None])):
        places[piece, row] = model.normal(torch.as_tensor(known, dtype=torch.float32))
        given[piece, row] = 1
    for index, overlap in enumerate(pieces.overlaps()):
        shared[index, horizon - overlap :] = shared[index + 1, :overlap] = 1
    places, given, shared = (part.repeat(samples, 1, 1) for part in (places, given, shared))

    def field(x: Tensor, t: Tensor) -> Estimate:
        return model.estimate(x, t, Ends(places, given, beside(x, pieces), shared))

    return field


def beside(x: Tensor, pieces: Pieces) -> Tensor:
    """What the pieces ``(samples * K, H, D)`` beside each one have where they overlap with it."""
    count, horizon = len(pieces.first), pieces.horizon
    own = x.reshape(-1, count, *x.shape[1:])
    other = torch.zeros_like(own)
    for index, overlap in enumerate(pieces.overlaps()):
        other[:, index, horizon - overlap :] = own[:, index + 1, :overlap]
        other[:, index + 1, :overlap] = own[:, index, horizon - overlap :]
    return other.reshape(x.shape)


def joined(x: Tensor, pieces: Pieces) -> Tensor:
    """Trajectories ``(samples, T, D)`` of pieces ``(samples * K, H, D)``; in overlaps one fades into the next."""
    own = x.reshape(-1, len(pieces.first), *x.shape[1:])
    weights = torch.ones(len(pieces.first), pieces.horizon, 1)
    for index, overlap in enumerate(pieces.overlaps()):
        rising = torch.arange(1, overlap + 1)[:, None] / (overlap + 1)
        weights[index + 1, :overlap] *= rising
        weights[index, pieces.horizon - overlap :] *= rising.flip(0)
    whole, total = torch.zeros(len(own), pieces.total, x.shape[-1]), torch.zeros(pieces.total, 1)
    for index, first in enumerate(pieces.first):
        whole[:, first : first + pieces.horizon] += weights[index] * own[:, index]
        total[first : first + pieces.horizon] += weights[index]
    return whole / total


def agreeing(field: Field, pieces: Pieces) -> Field:
    """The field whose estimates are the same wherever pieces overlap."""
    rows = torch.as_tensor(pieces.rows)

    def agreed(x: Tensor, t: Tensor) -> Estimate:
        data = joined(field(x, t).data, pieces)[:, rows].flatten(0, 1)
        return certain(data)(x, t)

    return agreed


def smoothed(places: Array) -> Array:
    """Trajectories ``(samples, T, 2)`` whose steps change evenly, with the same ends.

    A network is off by centimetres, here and there. That is nothing beside a maze, but to a robot with inertia a jump
    of them within a stride is more than it can follow. Least squared third differences, as in Whittaker's smoother.
    """
    count = places.shape[1]
    third = np.diff(np.eye(count), 3, axis=0)
    weights = np.ones(count)
    weights[[0, -1]] = FIXED
    system = np.diag(weights) + SMOOTHING * third.T @ third
    return np.linalg.solve(system, weights[:, None] * places).astype(np.float32)
