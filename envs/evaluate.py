"""Paired evaluation: every driver meets the same seeds, and rates come with intervals and trivial baselines."""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from envs.collect import drivers, processes
from envs.drive import (
    Driver,
    Episode,
    PolicyDriver,
    Row,
    Scripted,
    StandingStill,
    run_episode,
    run_realtime,
    run_together,
)
from envs.world import World, make, robot
from policies.runtime.runner import Chunking
from policies.runtime.worker import BatchWorker, InferenceWorker, InlineWorker
from policies.spec import ChunkPolicy, ContractError, stated

VALIDATION_SEED = 500_000  # first of the seeds that choices may be made on; reports start at 0, training at 1,000,000
SHARD = 10  # episodes per task of a worker process

STANDING_STILL = "standing still"


def wilson(successes: int, trials: int, z: float = 1.96) -> dict[str, float]:
    """Mean and Wilson score interval of a rate (95 % for z = 1.96)."""
    if trials == 0:
        return {"mean": math.nan, "low": 0.0, "high": 1.0}
    mean = successes / trials
    centre = (mean + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z * math.sqrt(mean * (1 - mean) / trials + z**2 / (4 * trials**2)) / (1 + z**2 / trials)
    return {"mean": mean, "low": max(0.0, centre - half), "high": min(1.0, centre + half)}


def paired_difference(mine: Sequence[float], theirs: Sequence[float]) -> dict[str, float | None]:
    """Mean of the per-seed differences ``mine - theirs`` with its 95 % normal interval; one seed has no interval."""
    difference = np.asarray(mine, float) - np.asarray(theirs, float)
    mean = float(difference.mean())
    if len(difference) < 2:
        return {"mean": mean, "low": None, "high": None}
    half = 1.96 * float(difference.std(ddof=1)) / math.sqrt(len(difference))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Success of one driver with its interval, and the means of everything else over its episodes."""
    metrics = {name: float(np.mean([row.metrics[name] for row in rows])) for name in rows[0].metrics}
    time_s = float(np.mean([row.time_s for row in rows]))
    return {"success": wilson(sum(row.success for row in rows), len(rows)), **metrics, "time_s": time_s}


def compared(mine: Sequence[Row], theirs: Sequence[Row]) -> dict[str, Any]:
    """Paired differences of success and of every metric between two drivers on the same seeds."""
    names = ("success", *mine[0].metrics)
    return {name: paired_difference([r.value(name) for r in mine], [r.value(name) for r in theirs]) for name in names}


@dataclass(frozen=True)
class EvaluateConfig:
    """What to evaluate.

    Args:
        env: Gymnasium id.
        embodiment: Robot, where the environment has several.
        episodes: Seeds per driver.
        seed: First seed; the same for every driver.
        latency_ms: Simulated time from an observation to its chunk.
        execute: Actions of a chunk to execute before the next is planned; the environment's custom by default.
        chunking: What happens while a chunk is being inferred: it continues the present one, which is executed (hold:
            real-time chunking), it knows nothing of it (naive), or the robot rests until it is there (synchronous).
        baselines: Also run standing still and the environment's scripted drivers.
        realtime: Run policies in real time, inference in its own process, one episode after the other; baselines
            stay in simulated time.
        workers: Processes for what runs in simulated time.
    """

    env: str = "kinoflow/Nav-v0"
    embodiment: str | None = None
    episodes: int = 100
    seed: int = 0
    latency_ms: float = 0.0
    execute: int | None = None
    chunking: Chunking = "hold"
    baselines: bool = True
    realtime: bool = False
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

    Raises:
        ContractError: Two drivers have the same name, or a policy does not fit the environment.
        ValueError: There is nothing to evaluate.
    """
    names = list(policies)
    if config.episodes < 1:
        raise ValueError(f"episodes is {config.episodes}, at least one is needed")
    if config.baselines:
        env = world(config)
        names += [STANDING_STILL, *(name for name in drivers(env))]
        env.close()
    if not names:
        raise ValueError("nothing to evaluate: give a policy, or leave the baselines in")
    rows, loops = run_all(names, len(policies), loader, config, progress)
    first, *others = names
    report = {"env": config.env, **robot(config.embodiment), "policy": first, "episodes": config.episodes}
    report |= {"seed": config.seed, "latency_ms": config.latency_ms, "chunking": config.chunking}
    report |= summary(rows[first])
    report["baselines"] = {
        name: summary(rows[name]) | {"difference": compared(rows[first], rows[name])} for name in others
    }
    if loops:
        report["realtime"] = loops
    report["rows"] = {name: [row.to_json() for row in rows[name]] for name in names}
    return report


def world(config: EvaluateConfig) -> Any:
    """Make the environment at the command rate."""
    return make(config.env, robot(config.embodiment), commands=True)


def run_all(
    names: Sequence[str], policies: int, loader: str, config: EvaluateConfig, progress: Callable[[int, int], None]
) -> tuple[dict[str, list[Row]], dict[str, Any]]:
    """Run drivers on the same seeds.

    Args:
        names: Policies, then baselines.
        policies: How many of the names are policies.
        loader: As in `evaluate`.
        config: What to evaluate.
        progress: Called with (episodes done, episodes in all).

    Returns:
        Rows per driver, ordered by seed, and the timing of the loops of policies in real time.

    Raises:
        ContractError: Two drivers have the same name, or a policy does not fit the environment.
    """
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise ContractError(
            f"{len(names)} drivers, but more than one is called {', '.join(repeated)}; give every policy once, and "
            "one that is called like a baseline by another path, for example ./expert"
        )
    seeds = range(config.seed, config.seed + config.episodes)
    shards = [seeds[i : i + SHARD] for i in range(0, len(seeds), SHARD)]
    rows: dict[str, list[Row]] = {name: [] for name in names}
    loops: dict[str, Any] = {}
    total = len(names) * len(seeds)
    live = names[:policies] if config.realtime else []

    def note(name: str, new: list[Row]) -> None:
        rows[name] += new
        progress(sum(map(len, rows.values())), total)

    for name in live:
        loops[name] = _run_live(name, loader, seeds, config, partial(note, name))
    with processes(config.workers) as pool:
        jobs = {
            pool.submit(_run_shard, name, loader if index < policies else "", shard, config): name
            for index, name in enumerate(names)
            for shard in shards
            if name not in live
        }
        for job in as_completed(jobs):
            note(jobs[job], job.result())
    return {name: sorted(of_name, key=lambda row: row.seed) for name, of_name in rows.items()}, loops


def _run_live(
    name: str, loader: str, seeds: range, config: EvaluateConfig, note: Callable[[list[Row]], None]
) -> dict[str, Any]:
    """Run one policy in real time; returns the timing of its loop, worst episode first."""
    env = world(config)
    spec = load(name, loader).spec
    spec.require(env.contract)
    reports = []
    with InferenceWorker(name, loader, spec) as worker:
        worker.wait_ready()
        for seed in seeds:
            env.reset(seed=seed)
            row, report = run_realtime(env, _policy_driver(worker, env, seed, config), seed)
            reports.append(report)
            note([row])
    env.close()
    worst = max(reports, key=lambda report: report.lateness_ms.p99)
    return {
        "commands": sum(report.commands for report in reports),
        "deadline_misses": sum(report.deadline_misses for report in reports),
        "worst_rate_hz": min(report.rate_hz for report in reports),
        "worst_lateness_ms": worst.lateness_ms._asdict(),
    }


def _run_shard(name: str, loader: str, seeds: range, config: EvaluateConfig) -> list[Row]:
    env = world(config)
    policy = load(name, loader) if loader else None
    if policy:
        policy.spec.require(env.contract)
    elif hasattr(env, "images"):
        env.images = False  # nobody looks at them
    if hasattr(policy, "act_batch") and not getattr(env, "alone", False):
        env.close()
        return _run_together(policy, seeds, config)
    rows = []
    for seed in seeds:
        env.reset(seed=seed)
        rows.append(run_episode(env, driver_for(name, policy, env, seed, config), seed))
    env.close()
    return rows


def _run_together(policy: Any, seeds: range, config: EvaluateConfig) -> list[Row]:
    worlds = [world(config) for _ in seeds]
    workers = [BatchWorker(policy) for _ in seeds]
    episodes = []
    for env, worker, seed in zip(worlds, workers, seeds, strict=True):
        env.reset(seed=seed)
        episodes.append(Episode(env, _policy_driver(worker, env, seed, config), seed))
    rows = run_together(episodes, workers)
    for env in worlds:
        env.close()
    return rows


def load(name: str, loader: str) -> ChunkPolicy:
    """Call a loader given as ``"package.module:function"``."""
    module, _, function = loader.partition(":")
    return getattr(importlib.import_module(module), function)(name)


def driver_for(name: str, policy: ChunkPolicy | None, env: World, seed: int, config: EvaluateConfig) -> Driver:
    """Make the driver of one episode in simulated time."""
    if policy:
        return _policy_driver(InlineWorker(policy), env, seed, config)
    return StandingStill() if name == STANDING_STILL else Scripted(drivers(env)[name](env))


def _policy_driver(
    worker: InlineWorker | BatchWorker | InferenceWorker, env: World, seed: int, config: EvaluateConfig
) -> PolicyDriver:
    if not stated(worker.spec.rate_hz):
        worker.spec = replace(worker.spec, rate_hz=env.contract.rate_hz)
    execute = min(env.execute, worker.spec.horizon) if config.execute is None else config.execute
    live = isinstance(worker, InferenceWorker)
    return PolicyDriver(
        worker, seed, config.latency_ms / 1e3, execute=execute, chunking=config.chunking, whole=not live
    )


def as_text(report: Mapping[str, Any]) -> str:
    """A table for people: one line per driver."""
    head = f"{report['episodes']} episodes from seed {report['seed']}, {report['env']} {report.get('embodiment', '')}"
    known = list(report["rows"][report["policy"]][0])[3:-1]
    metrics = [metric for metric in known if not metric.endswith("_m")]  # lengths are in the JSON, a line is short
    lines = [head.rstrip(), f"{'':<26} {'success (95 %)':<20} " + " ".join(metrics) + "  time_s"]
    for name, row in {report["policy"]: report, **report["baselines"]}.items():
        rate = row["success"]
        interval = f"{rate['mean']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]"
        figures = " ".join(f"{row[metric]:>{len(metric)}.3f}" for metric in metrics)
        lines.append(f"{name[-26:]:<26} {interval:<20} {figures} {row['time_s']:>6.1f}")
    return "\n".join(lines)
