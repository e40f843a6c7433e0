"""Paired evaluation: every driver meets the same seeds, and rates come with intervals and trivial baselines."""

from __future__ import annotations

import importlib
import math
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np

from envs.collect import drivers
from policies.runtime.buffer import ChunkBuffer
from policies.runtime.guard import Guard, GuardLimits
from policies.runtime.runner import Runner
from policies.runtime.worker import InlineWorker, Worker
from policies.spec import Array, ChunkPolicy, Observation

COMMAND_HZ = 50.0
VALIDATION_SEED = 500_000  # first of the seeds that choices may be made on; reports start at 0, training at 1,000,000
MAX_AGE = 0.5  # s, a chunk older than this is not executed
SHARD = 10  # episodes per task of a worker process
TRACE_EVERY = 10  # ticks between two points of a recorded path

STANDING_STILL = "standing still"


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
    """

    def __init__(self, worker: Worker, seed: int, latency_s: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        buffer = ChunkBuffer(worker.spec, MAX_AGE)
        self.runner = Runner(worker, buffer, rng, worker.spec.rate_hz, latency_s)

    def command(self, observation: Observation, now: float) -> Array | None:
        self.runner.observe(observation, now)
        self.runner.plan(now)
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


def run_episode(env: Any, driver: Driver, seed: int) -> Row:
    """Drive one episode in simulated time. ``env`` is freshly reset with ``seed`` and steps at `COMMAND_HZ`."""
    guard = Guard(GuardLimits.of(env.contract.action))
    observation = env.observe()
    path, ended = [tuple(env.pose[:2])], False
    while not ended:
        now = env.time
        command = guard.filter(driver.command(observation, now), now, now)
        observation, _, terminated, truncated, _ = env.step(command)
        ended = terminated or truncated
        if ended or round(env.time * COMMAND_HZ) % TRACE_EVERY == 0:
            path.append(tuple(env.pose[:2]))
    return _row(env, seed, path)


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


def wilson(successes: int, trials: int, z: float = 1.96) -> dict[str, float]:
    """Mean and Wilson score interval of a rate (95 % for z = 1.96)."""
    if trials == 0:
        return {"mean": math.nan, "low": 0.0, "high": 1.0}
    mean = successes / trials
    centre = (mean + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z * math.sqrt(mean * (1 - mean) / trials + z**2 / (4 * trials**2)) / (1 + z**2 / trials)
    return {"mean": mean, "low": max(0.0, centre - half), "high": min(1.0, centre + half)}


def paired_difference(mine: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Mean of the per-seed differences ``mine - theirs`` with its 95 % normal interval."""
    difference = np.asarray(mine, float) - np.asarray(theirs, float)
    half = 1.96 * float(difference.std(ddof=1)) / math.sqrt(len(difference)) if len(difference) > 1 else math.inf
    mean = float(difference.mean())
    return {"mean": mean, "low": mean - half, "high": mean + half}


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Rates of one driver over its episodes."""
    return {
        "success": wilson(sum(row.success for row in rows), len(rows)),
        "collision": sum(row.collision for row in rows) / len(rows),
        "timeout": sum(row.timeout for row in rows) / len(rows),
        "fall": sum(row.fall for row in rows) / len(rows),
        "spl": float(np.mean([row.spl for row in rows])),
        "time_s": float(np.mean([row.time_s for row in rows])),
    }


@dataclass(frozen=True)
class EvaluateConfig:
    """What to evaluate.

    Args:
        env: Gymnasium id.
        embodiment: Robot.
        episodes: Seeds per driver.
        seed: First seed; the same for every driver.
        latency_ms: Simulated time from an observation to its chunk.
        baselines: Also run standing still and the environment's scripted drivers.
        workers: Processes.
    """

    env: str = "kinoflow/Nav-v0"
    embodiment: str = "wheeled"
    episodes: int = 100
    seed: int = 0
    latency_ms: float = 0.0
    baselines: bool = True
    workers: int = 2


def evaluate(
    policies: Sequence[str],
    loader: str,
    config: EvaluateConfig,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Evaluate policies and baselines on the same seeds.

    Args:
        policies: Whatever ``loader`` takes, for example bundle paths. The first is reported on, the rest compared.
        loader: ``"package.module:function"`` that loads a `ChunkPolicy`; called in worker processes.
        config: What to evaluate.
        progress: Called with (episodes done, episodes in all).

    Returns:
        A report for ``json.dump``: the first policy's rates, those of everything else under ``baselines`` with the
        paired difference of success, and the per-episode rows.
    """
    names = list(policies)
    if config.baselines:
        env = make(config)
        names += [STANDING_STILL, *(name for name in drivers(env))]
        env.close()
    rows = _run_all(names, len(policies), loader, config, progress)
    first, *others = names
    report = {"env": config.env, "embodiment": config.embodiment, "policy": first, "episodes": config.episodes}
    report |= {"seed": config.seed, "latency_ms": config.latency_ms, **summary(rows[first])}
    success = {name: [float(row.success) for row in rows[name]] for name in names}
    report["baselines"] = {
        name: summary(rows[name]) | {"difference": paired_difference(success[first], success[name])} for name in others
    }
    report["rows"] = {name: [asdict(row) for row in rows[name]] for name in names}
    return report


def make(config: EvaluateConfig) -> Any:
    """Make the environment at the command rate."""
    return gymnasium.make(config.env, embodiment=config.embodiment, step_hz=COMMAND_HZ, disable_env_checker=True)


def _run_all(
    names: Sequence[str], policies: int, loader: str, config: EvaluateConfig, progress: Callable[[int, int], None]
) -> dict[str, list[Row]]:
    seeds = range(config.seed, config.seed + config.episodes)
    shards = [seeds[i : i + SHARD] for i in range(0, len(seeds), SHARD)]
    rows: dict[str, list[Row]] = {name: [] for name in names}
    done, total = 0, len(names) * len(seeds)
    progress(done, total)
    with ProcessPoolExecutor(config.workers, multiprocessing.get_context("spawn")) as pool:
        jobs = {
            pool.submit(_run_shard, name, loader if index < policies else "", shard, config): name
            for index, name in enumerate(names)
            for shard in shards
        }
        for job in as_completed(jobs):
            rows[jobs[job]] += job.result()
            done += len(job.result())
            progress(done, total)
    return {name: sorted(of_name, key=lambda row: row.seed) for name, of_name in rows.items()}


def _run_shard(name: str, loader: str, seeds: range, config: EvaluateConfig) -> list[Row]:
    env = make(config)
    world = env.unwrapped
    policy = load(name, loader) if loader else None
    if policy:
        policy.spec.require(world.contract)
    rows = []
    for seed in seeds:
        world.reset(seed=seed)
        rows.append(run_episode(world, _driver(name, policy, world, seed, config), seed))
    env.close()
    return rows


def load(name: str, loader: str) -> ChunkPolicy:
    """Call a loader given as ``"package.module:function"``."""
    module, _, function = loader.partition(":")
    return getattr(importlib.import_module(module), function)(name)


def _driver(name: str, policy: ChunkPolicy | None, world: Any, seed: int, config: EvaluateConfig) -> Driver:
    if policy:
        return PolicyDriver(InlineWorker(policy), seed, config.latency_ms / 1e3)
    return StandingStill() if name == STANDING_STILL else Scripted(drivers(world)[name](world))


def as_text(report: dict[str, Any]) -> str:
    """A table for people: one line per driver."""
    head = f"{report['episodes']} episodes from seed {report['seed']}, {report['env']}, {report['embodiment']}"
    lines = [head, f"{'':<34} success (95 %)        collision  timeout  fall   SPL   time"]
    for name, row in {report["policy"]: report, **report["baselines"]}.items():
        rate = row["success"]
        interval = f"{rate['mean']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]"
        rates = f"{row['collision']:>9.3f} {row['timeout']:>8.3f} {row['fall']:>5.3f} {row['spl']:>5.3f}"
        lines.append(f"{name[-34:]:<34} {interval:<20} {rates} {row['time_s']:>5.1f} s")
    return "\n".join(lines)
