"""Drivers and the episodes they drive, in simulated time or in real time, on the runtime that also drives robots."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from envs.world import World
from policies.runtime.buffer import ChunkBuffer
from policies.runtime.guard import Guard, GuardLimits
from policies.runtime.loop import Loop, LoopReport
from policies.runtime.runner import Chunking, Runner
from policies.runtime.worker import BatchWorker, Worker
from policies.spec import ActionSpec, Array, Observation

SPARE = 0.4  # s, a chunk is not executed for longer than this after the next one should have come
TRACE_EVERY = 0.2  # s between two points of a recorded path


class Driver(Protocol):
    """Commands the robot of one episode, once per step."""

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
        execute: Actions of a chunk to execute before the next one is planned.
        chunking: What happens while it is being planned.
        whole: Refuse to drive while parents of a composition are left out; in real time that is part of the result.
    """

    def __init__(
        self,
        worker: Worker,
        seed: int,
        latency_s: float = 0.0,
        soft: int = 0,
        execute: int = 1,
        chunking: Chunking = "hold",
        whole: bool = True,
    ) -> None:
        spec, rng = worker.spec, np.random.default_rng(seed)
        if not 1 <= execute <= spec.horizon:
            raise ValueError(f"cannot execute {execute} actions of a chunk of {spec.horizon}; choose 1 to that")
        buffer = ChunkBuffer(spec, execute * spec.dt + latency_s + SPARE, soft)
        self.runner = Runner(worker, buffer, rng, spec.rate_hz / execute, latency_s, chunking)
        self._seen, self._whole = [feature.name for feature in spec.observations], whole

    def look(self, observation: Observation, now: float) -> None:
        """Take note of an observation and ask for a chunk where one is due."""
        self.runner.observe({name: observation[name] for name in self._seen}, now)
        self.runner.plan(now)

    def command(self, observation: Observation, now: float) -> Array | None:
        self.look(observation, now)
        failure = self.runner.error or (self.runner.warning if self._whole else "")
        if failure:  # an episode without a policy, or with a part of it, proves nothing
            raise RuntimeError(failure)
        return self.runner.command(now)


def jerk(commands: Sequence[Array], action: ActionSpec, dt: float) -> dict[str, float]:
    """How far from smooth executed commands are: the root mean square of their jerk over time.

    Jerk is a finite difference of the commands: the first of accelerations, the second of velocities, the third of
    whatever else there is, which is taken for positions.

    Args:
        commands: ``(A,)`` each.
        action: What they mean.
        dt: Seconds between two of them.

    Returns:
        ``jerk`` of all components that do not turn, in m/s^3 or in the unit of the positions per s^3, and
        ``turn_jerk`` of those that do, in rad/s^3. Fewer commands than a difference needs have none.
    """
    squares: dict[str, float] = {}
    for values, unit in zip(np.transpose(commands).astype(float), action.units, strict=True):
        order = 1 if unit.endswith("/s^2") else 2 if unit.endswith("/s") else 3
        found = np.diff(values, order) / dt**order
        name = "turn_jerk" if unit.startswith("rad") else "jerk"
        squares[name] = squares.get(name, 0.0) + float(np.square(found).sum()) / max(1, len(found))
    return {name: round(math.sqrt(value), 3) for name, value in squares.items()}


@dataclass(frozen=True)
class Row:
    """One episode of one driver: what came of it after ``time_s`` seconds, and where it went.

    Its metrics are those of the environment and `jerk`.
    """

    seed: int
    success: bool
    time_s: float
    metrics: dict[str, float]
    path: list[tuple[float, float]]

    def to_json(self) -> dict[str, Any]:
        """Return plain containers, the metrics beside the rest."""
        rest = {"seed": self.seed, "success": self.success, "time_s": self.time_s}
        return {**rest, **self.metrics, "path": self.path}

    def value(self, name: str) -> float:
        """Success or one of the metrics as a number."""
        return float(self.success if name == "success" else self.metrics[name])


class Episode:
    """One episode of one driver, tick by tick; ``world`` is freshly reset with ``seed``."""

    def __init__(self, world: World, driver: Driver, seed: int) -> None:
        self.ended = False
        self._world: Any = world
        self._driver, self._seed = driver, seed
        velocities = all(unit.endswith("/s") for unit in world.contract.action.units)
        underway = getattr(world, "underway", None)
        self._guard = Guard(GuardLimits.of(world.contract.action), underway) if velocities else None
        self._observation = world.observe()
        self._path = [tuple(world.pose[:2])]
        self._commands: list[Array] = []

    @property
    def time(self) -> float:
        """Simulated time in seconds."""
        return self._world.time

    def tick(self, now: float) -> None:
        """Command the robot at time ``now`` in seconds and let the simulation take its step."""
        command = self._driver.command(self._observation, now)
        if self._guard is not None:
            command = self._guard.filter(command, now, now)
        elif command is None:
            command = self._world.rest
        self._commands.append(command)
        self._observation, _, terminated, truncated, _ = self._world.step(command)
        self.ended = terminated or truncated
        if self.ended or self._world.time >= len(self._path) * TRACE_EVERY - 1e-9:
            self._path.append(tuple(self._world.pose[:2]))

    def look(self) -> None:
        """Let a policy ask for its next chunk ahead of the tick, so that chunks can be planned together."""
        if isinstance(self._driver, PolicyDriver):
            self._driver.look(self._observation, self._world.time)

    def row(self) -> Row:
        """What came of it."""
        path = [(round(float(x), 2), round(float(y), 2)) for x, y in self._path]
        world = self._world
        metrics = {**world.metrics, **jerk(self._commands, world.contract.action, world.step_dt)}
        return Row(self._seed, bool(world.success), round(world.time, 3), metrics, path)


def run_episode(env: World, driver: Driver, seed: int, after_tick: Callable[[], None] = lambda: None) -> Row:
    """Drive one episode in simulated time."""
    episode = Episode(env, driver, seed)
    while not episode.ended:
        episode.tick(env.time)
        after_tick()
    return episode.row()


def run_together(episodes: Sequence[Episode], workers: Sequence[BatchWorker]) -> list[Row]:
    """Drive episodes of one policy in simulated time, step by step together.

    Args:
        episodes: One per world, each with its own driver.
        workers: Of these drivers.
    """
    while running := [episode for episode in episodes if not episode.ended]:
        for episode in running:
            episode.look()
        BatchWorker.answer(workers)
        for episode in running:
            episode.tick(episode.time)
    return [episode.row() for episode in episodes]


def run_realtime(env: World, driver: Driver, seed: int) -> tuple[Row, LoopReport]:
    """Drive one episode in real time, on the loop that also drives robots."""
    episode = Episode(env, driver, seed)

    def tick(now: float) -> None:
        episode.tick(now)
        if episode.ended:
            loop.stop()

    loop = Loop(env.step_dt, tick)
    loop.start()
    loop.join()
    return episode.row(), loop.report()
