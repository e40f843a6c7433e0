"""Drivers and the episodes they drive, in simulated time or in real time, on the runtime that also drives robots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from policies.runtime.buffer import ChunkBuffer
from policies.runtime.guard import Guard, GuardLimits
from policies.runtime.loop import Loop, LoopReport
from policies.runtime.runner import Runner
from policies.runtime.worker import Worker
from policies.spec import Array, Observation

COMMAND_HZ = 50.0
MAX_AGE = 0.5  # s, a chunk older than this is not executed
TRACE_EVERY = 10  # ticks between two points of a recorded path


class Driver(Protocol):
    """Commands the robot of one episode at 50 Hz."""

    def command(self, observation: Observation, now: float) -> Array | None:
        """Return the ``(A,)`` command at time ``now`` in seconds, None when there is none."""
        ...


class StandingStill:
    """Baseline: never moves."""

    def command(self, observation: Observation, now: float) -> Array | None:
        return None


class Scripted:
    """An expert or baseline that looks at the simulation itself."""

    def __init__(self, script: Any) -> None:
        self._script = script

    def command(self, observation: Observation, now: float) -> Array | None:
        return self._script.command()


class PolicyDriver:
    """A policy behind the runtime that also drives robots: history, chunk hand-over, interpolation.

    Args:
        worker: Runs the policy, inline for simulated time or in its own process for real time.
        seed: Seed of the sampling noise.
        latency_s: Simulated time from an observation to its chunk.
        soft: Actions over which a new chunk is tied to the old one, see `ChunkBuffer`.
    """

    def __init__(self, worker: Worker, seed: int, latency_s: float = 0.0, soft: int = 0) -> None:
        rng = np.random.default_rng(seed)
        buffer = ChunkBuffer(worker.spec, MAX_AGE, soft)
        self.runner = Runner(worker, buffer, rng, worker.spec.rate_hz, latency_s)

    def command(self, observation: Observation, now: float) -> Array | None:
        self.runner.observe(observation, now)
        self.runner.plan(now)
        if self.runner.error:  # an episode without a policy proves nothing
            raise RuntimeError(self.runner.error)
        return self.runner.command(now)


@dataclass(frozen=True)
class Row:
    """One episode of one driver. Lengths in metres, times in seconds."""

    seed: int
    success: bool
    collision: bool
    fall: bool
    timeout: bool
    time_s: float
    travelled_m: float
    final_distance_m: float
    spl: float
    path: list[tuple[float, float]]


class Episode:
    """One episode of one driver, tick by tick. ``env`` is freshly reset with ``seed`` and steps at `COMMAND_HZ`."""

    def __init__(self, env: Any, driver: Driver, seed: int) -> None:
        self.ended = False
        self._env, self._driver, self._seed = env, driver, seed
        self._guard = Guard(GuardLimits.of(env.contract.action))
        self._observation = env.observe()
        self._path = [tuple(env.pose[:2])]

    def tick(self, now: float) -> None:
        """Command the robot at time ``now`` in seconds and let the simulation take its step."""
        command = self._guard.filter(self._driver.command(self._observation, now), now, now)
        self._observation, _, terminated, truncated, _ = self._env.step(command)
        self.ended = terminated or truncated
        if self.ended or round(self._env.time * COMMAND_HZ) % TRACE_EVERY == 0:
            self._path.append(tuple(self._env.pose[:2]))

    def row(self) -> Row:
        """What came of it."""
        return _row(self._env, self._seed, self._path)


def run_episode(env: Any, driver: Driver, seed: int, after_tick: Callable[[], None] = lambda: None) -> Row:
    """Drive one episode in simulated time."""
    episode = Episode(env, driver, seed)
    while not episode.ended:
        episode.tick(env.time)
        after_tick()
    return episode.row()


def run_realtime(env: Any, driver: Driver, seed: int) -> tuple[Row, LoopReport]:
    """Drive one episode in real time, on the loop that also drives robots."""
    episode = Episode(env, driver, seed)

    def tick(now: float) -> None:
        episode.tick(now)
        if episode.ended:
            loop.stop()

    loop = Loop(1 / COMMAND_HZ, tick)
    loop.start()
    loop.join()
    return episode.row(), loop.report()


def _row(env: Any, seed: int, path: Sequence[tuple[float, ...]]) -> Row:
    success, fall = env.success, env.body.fallen(env.data)
    shortest = env.shortest
    return Row(
        seed=seed,
        success=success,
        collision=env.collision and not fall,
        fall=fall,
        timeout=not success and not env.failed,
        time_s=round(env.time, 3),
        travelled_m=round(env.travelled, 3),
        final_distance_m=round(env.distance, 3),
        spl=round(float(success) * shortest / max(shortest, env.travelled), 4),
        path=[(round(float(x), 2), round(float(y), 2)) for x, y in path],
    )
