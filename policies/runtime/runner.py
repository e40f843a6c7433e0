"""From observations to timed commands: when to plan, what to ask the policy, when its chunk takes over. numpy only."""

from __future__ import annotations

import math
import threading
from collections import Counter
from typing import Literal

import numpy as np

from policies.chunk import Chunk
from policies.runtime.buffer import ChunkBuffer
from policies.runtime.history import History
from policies.runtime.stop import StopLatch
from policies.runtime.worker import Request, Result, Worker
from policies.spec import Array, Observation

Chunking = Literal["hold", "naive", "synchronous"]
"""What happens while the next chunk is being inferred.

With ``hold`` the present one is executed and the next one continues it, real-time chunking (arXiv 2506.07339). With
``naive`` it is executed as well, but the next one knows nothing of it. With ``synchronous`` the robot waits: commanded
velocities are zero, nothing else is commanded, until the next one arrives, and its first action is due then.
"""

_EARLY = 0.1  # fraction of the planning period a tick may come early without waiting for the next one
_ROUNDING_S = 1e-9


class Runner:
    """Drives a policy through a worker; one object serves simulated time, real time and the nodes.

    Each control tick calls `plan` and then `command`; `observe` is called whenever there is an observation. All times
    are on one clock, that of the observation stamps. `command` never waits and may run in another thread.

    A chunk is due one planning period after its request, so that the next one can be asked for in time. One that is not
    ready by then is a miss; it takes over all the same.

    One request is in flight at a time, so every request carries the newest observation. All chunks towards one goal
    start from the same noise, which keeps successive chunks in the same mode.

    Once the policy is sure that the robot is where it shall stop, see `StopLatch`, chunks of zeros take over until
    `clear`, and planning goes on. Zeros are rest for velocities only: nothing else that is commanded is replaced.

    Args:
        worker: Runs the policy.
        buffer: Holds the executing chunk.
        rng: Source of the noise.
        rate_hz: Planning rate in Hz.
        latency_s: A chunk takes over no earlier than this after its observation: the latency to simulate, in seconds.
        chunking: What happens while a chunk is being inferred.
    """

    def __init__(
        self,
        worker: Worker,
        buffer: ChunkBuffer,
        rng: np.random.Generator,
        rate_hz: float = 10.0,
        latency_s: float = 0.0,
        chunking: Chunking = "hold",
    ) -> None:
        self.error = ""
        """Why there is no newer chunk, in words; empty while all is well."""
        self.inference_s = 0.0
        """Time the policy took for the newest chunk, in seconds."""
        self.disagreement = 0.0
        """Between the parents of a composition at the newest chunk, in normal units; 0 for other policies."""
        self.warning = ""
        """Which parents of a composition are left out, since when and why; empty while all is well."""
        self.arrival = 0.0
        """Probability at the newest chunk that the robot is where it shall stop; 0 for policies that do not say."""
        self.taken: Counter[int] = Counter()
        """Chunks so far, by the number of their denoising steps; 0 for policies that do not say."""
        self.misses = 0
        """How many of these chunks were not ready when they were due."""
        self._stoppable = all(unit.endswith("/s") for unit in worker.spec.action.units)
        self._latch = StopLatch()
        self._worker, self._buffer, self._rng = worker, buffer, rng
        self._period_s, self._latency_s, self._chunking = 1.0 / rate_hz, latency_s, chunking
        self._history = History(worker.spec)
        self._lock = threading.Lock()
        self._reset()

    @property
    def delay_s(self) -> float:
        """Time from the observation to the hand-over of the newest chunk, in seconds."""
        return self._buffer.delay_s

    @property
    def arrived(self) -> bool:
        """Whether the robot rests because it is where it shall stop, until `clear`."""
        return self._latch.held

    def age(self, now: float) -> float:
        """Return the seconds since the newest observation behind the executing chunk; infinite without a chunk."""
        return self._buffer.age(now)

    def observe(self, observation: Observation, stamp: float) -> bool:
        """Add one observation, arrays without history; see `History.add`."""
        with self._lock:
            return self._history.add(observation, stamp)

    def plan(self, now: float) -> None:
        """Hand over to a chunk that has arrived and ask for the next one when it is due. Never waits for inference."""
        with self._lock:
            self._accept(now)
            stamp = self._history.newest
            if stamp is not None and self._due(stamp, now):
                self._request(stamp, now)
                self._accept(now)

    def command(self, now: float) -> Array | None:
        """Return the ``(A,)`` command to send now, None when there is no chunk that is fresh enough."""
        if self._chunking == "synchronous" and self._in_flight is not None:
            return np.zeros(self._worker.spec.action.dim, np.float32) if self._stoppable else None
        return self._buffer.command(now)

    def clear(self) -> None:
        """Start a new goal or episode: drop the chunk, the one in flight, noise, observations and arrival."""
        with self._lock:
            self._reset()

    def _reset(self) -> None:
        self.error, self.arrival = "", 0.0
        self._latch.clear()
        self._buffer.clear()
        self._history.clear()
        self._noise: Array | None = None
        self._in_flight: int | None = None
        self._waiting: Result | None = None
        self._planned = self._next = -math.inf

    def _due(self, stamp: float, now: float) -> bool:
        if not self._worker.alive:
            self.error = "the inference process has ended; start a new worker"
            return False
        idle = self._in_flight is None and stamp > self._planned
        return idle and now >= self._next - _EARLY * self._period_s

    def _request(self, stamp: float, now: float) -> None:
        spec = self._worker.spec
        if self._noise is None:
            self._noise = self._rng.standard_normal(spec.noise_shape, dtype=np.float32)
        committed, hold = self._buffer.committed(stamp)
        if self._chunking == "naive":
            hold = np.zeros_like(hold)
        request = Request(stamp, self._history.window(), self._noise, committed, hold, self._period_s)
        self._in_flight = self._worker.submit(request)
        self._planned = stamp
        on_grid = self._next + self._period_s
        self._next = on_grid if on_grid > now else now + self._period_s

    def _accept(self, now: float) -> None:
        result = self._waiting or self._worker.latest()
        if result is None or result.sequence != self._in_flight:
            return
        self._waiting = result
        if now >= result.stamp + self._latency_s - _ROUNDING_S:
            self._waiting = self._in_flight = None
            self._hand_over(result, now)

    def _hand_over(self, result: Result, now: float) -> None:
        self.error, self.inference_s = result.error, result.seconds
        self.disagreement, self.warning = result.disagreement, result.warning
        if not self.error and not np.isfinite(result.actions).all():
            self.error = "the policy returned actions that are not finite; check its normalisation and its checkpoint"
        if not self.error:
            self.arrival = result.arrival
            self.taken[result.steps] += 1
            self.misses += result.missed
            if self._stoppable:
                self._latch.update(result.arrival)
            actions = np.zeros_like(result.actions) if self.arrived else result.actions
            start = result.stamp
            if self._chunking == "synchronous":
                start, self._next = now, self._next + now - result.stamp
            self._buffer.put(Chunk(actions, start, self._worker.spec.dt), now)
