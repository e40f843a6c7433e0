"""A chunk of timed actions. numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policies.spec import Array


@dataclass(frozen=True)
class Chunk:
    """Actions on a regular time grid.

    Args:
        actions: ``(H, A)`` float32, SI units.
        start: Time of action 0 in seconds: the stamp of the newest observation the chunk was planned from.
        dt: Seconds between two actions.
    """

    actions: Array
    start: float
    dt: float

    @property
    def end(self) -> float:
        """Time of the last action, in seconds."""
        return self.start + (len(self.actions) - 1) * self.dt

    def at(self, time: float) -> Array:
        """Return the ``(A,)`` action at ``time`` by linear interpolation; beyond the ends the end action is kept."""
        position = min(max((time - self.start) / self.dt, 0.0), len(self.actions) - 1.0)
        left = min(int(position), len(self.actions) - 2)
        weight = np.float32(position - left)
        return self.actions[left] * (1 - weight) + self.actions[left + 1] * weight

    def shifted(self, start: float) -> Array:
        """Return ``(H, A)`` actions of this chunk on the grid of a chunk that begins at ``start``."""
        return np.stack([self.at(start + k * self.dt) for k in range(len(self.actions))])


def hold_weights(horizon: int, frozen: int, soft: int) -> Array:
    """Weights that tie the begin of a new chunk to the previous one, as in real-time chunking (arXiv 2506.07339).

    Args:
        horizon: Number of actions in the chunk.
        frozen: Leading actions that are executed before the new chunk can arrive; weight 1.
        soft: Further actions over which the weight decays linearly to 0.

    Returns:
        ``(horizon,)`` float32 weights in [0, 1].
    """
    steps = np.arange(horizon)
    return np.clip(1 - (steps - frozen + 1) / (soft + 1), 0, 1).astype(np.float32)
