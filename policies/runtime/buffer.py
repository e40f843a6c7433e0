"""The chunk that is being executed, and how the next one is tied to it. numpy only."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from policies.chunk import Chunk, hold_weights
from policies.spec import Array, Spec

_DELIVERIES = 20  # over which the largest delay is taken: 2 s at 10 Hz


class ChunkBuffer:
    """Holds the executing chunk and hands over to its successor, as in real-time chunking (arXiv 2506.07339).

    One thread may call `command` while another hands over: a hand-over is one reference assignment.

    Args:
        spec: Contract of the policy.
        max_age_s: Age from which a chunk is no longer executed, in seconds since its newest observation.
        soft: Actions beyond the frozen ones over which the tie to the previous chunk fades.
    """

    def __init__(self, spec: Spec, max_age_s: float, soft: int = 0) -> None:
        self.delay_s = 0.0
        """Time from an observation to the hand-over of its chunk, in seconds; newest measurement."""
        self._spec, self._max_age_s, self._soft = spec, max_age_s, soft
        self._chunk: Chunk | None = None
        self._last_command = -math.inf
        self._consumed: deque[float] = deque(maxlen=_DELIVERIES)

    def put(self, chunk: Chunk, now: float) -> bool:
        """Hand over to a chunk and take note of its delay.

        Args:
            chunk: The new chunk.
            now: Time of the hand-over in seconds.

        Returns:
            False when the chunk starts before the current one and was refused.
        """
        self.delay_s = now - chunk.start
        self._consumed.append(self._last_command - chunk.start)
        current = self._chunk
        if current is not None and chunk.start < current.start:
            return False
        self._chunk = chunk
        return True

    def clear(self) -> None:
        """Drop the chunk, for a new goal or episode. Measured delays are kept: they belong to the machine."""
        self._chunk = None

    def age(self, time: float) -> float:
        """Return the seconds since the newest observation behind the chunk; infinite without a chunk."""
        chunk = self._chunk
        return math.inf if chunk is None else time - chunk.start

    def command(self, time: float) -> Array | None:
        """Return the ``(A,)`` command to send at ``time``, None when there is no chunk or it is too old."""
        self._last_command = time
        chunk = self._fresh(time)
        return None if chunk is None else chunk.at(time)

    def committed(self, start: float) -> tuple[Array, Array]:
        """Return what a chunk that begins at ``start`` seconds has to respect.

        Returns:
            The ``(H, A)`` actions of the executing chunk on the new grid and the ``(H,)`` weights that hold them:
            1 until the new chunk can arrive, then fading. All zero when nothing is being executed.
        """
        horizon, dim = self._spec.horizon, self._spec.action.dim
        chunk = self._fresh(start)
        if chunk is None:
            return np.zeros((horizon, dim), np.float32), np.zeros(horizon, np.float32)
        return chunk.shifted(start), self._weights(chunk, start)

    def _fresh(self, time: float) -> Chunk | None:
        chunk = self._chunk
        return chunk if chunk is not None and time - chunk.start <= self._max_age_s else None

    def _weights(self, chunk: Chunk, start: float) -> Array:
        # Actions beyond the end of the old chunk are never held, or a slow policy would repeat it for ever.
        known = max(0, math.floor((chunk.end - start) / chunk.dt + 1e-6) + 1)
        frozen = min(self._frozen(chunk.dt), known)
        return hold_weights(self._spec.horizon, frozen, min(self._soft, known - frozen))

    def _frozen(self, dt: float) -> int:
        """Actions of a new chunk that the old one will have executed by the hand-over: a running upper estimate.

        Commands are interpolated, so the last old command uses both its neighbours on the grid, hence the + 1. With one
        command per action this is ceil(delay / dt).
        """
        consumed = max(self._consumed)
        return math.ceil(consumed / dt - 1e-6) + 1 if consumed >= 0 else 0
