"""Collect demonstrations: a scripted expert drives, noise pushes it off course, its recovery is recorded."""

from __future__ import annotations

import hashlib
import importlib
import multiprocessing
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from envs.episodes import Episode, read_demos, write_episodes
from envs.goals import goal_contract, record_goals
from envs.world import make, robot
from policies.checks import at_least
from policies.runtime.worker import end_with_parent, one_numeric_thread
from policies.spec import Array, ContractError, Spec

NOISE_CORRELATION = 0.8  # per step of 0.1 s: pushes last about half a second
SETTLE_STEPS = 10  # recorded after success, so that a policy learns to stay
SHARD = 20  # episodes; an interrupted collection loses at most one shard per process


@dataclass(frozen=True)
class CollectConfig:
    """What to collect.

    Args:
        out: Episode file to write (HDF5).
        env: Gymnasium id; the expert lives in the file of the same name under ``envs/experts``.
        embodiment: Robot, where the environment has several.
        episodes: Number of seeds to try; failed episodes are left out.
        seed: First seed.
        noise: Largest standard deviation of the injected noise, as a share of the command range; the environment's
            custom by default. Each episode draws its own between 0 and this.
        workers: Processes.
        demonstrator: Who drives: ``expert``, or one of ``DEMONSTRATORS`` in the file of the environment's expert.
        goals: Record no demonstrations but what they start from: each room's goal video and all its sentences with
            the frame where they say to stop.
    """

    out: Path
    env: str = "kinoflow/Nav-v0"
    embodiment: str | None = None
    episodes: int = 400
    seed: int = 1_000_000
    noise: float | None = None
    workers: int = 2
    demonstrator: str = "expert"
    goals: bool = False


def drivers(env: Any) -> dict[str, Any]:
    """Expert and baselines of an environment: ``DRIVERS`` in the file of the same name under `envs.experts`."""
    return _experts(env).DRIVERS


def demonstrators(env: Any) -> dict[str, Any]:
    """Who can be recorded in an environment: its expert, and who drives for the record only, ``DEMONSTRATORS``."""
    return {"expert": drivers(env)["expert"], **getattr(_experts(env), "DEMONSTRATORS", {})}


def _experts(env: Any) -> Any:
    return importlib.import_module(f"envs.experts.{type(env).__module__.rsplit('.', 1)[1]}")


def record(world: Any, seed: int, noise: float | None = None, demonstrator: str = "expert") -> Episode | None:
    """Record one episode; returns None when the expert fails.

    An environment with a ``lead_in`` is pushed during up to that many steps before the record begins, and not after:
    what is recorded, ``longest`` steps at most, is then what the expert plans. All others are pushed all along. After
    success the record goes on for ``settle`` steps. Where the record begins, a demonstrator with a method ``choose`` is
    asked to do something else.

    Args:
        world: Environment with an expert.
        seed: Seed of the environment and of the noise.
        noise: Largest standard deviation of the noise, as a share of the command range; the environment's own if None.
        demonstrator: Who drives, see `demonstrators`.
    """
    rng = np.random.default_rng(seed)
    observation, _ = world.reset(seed=seed)
    known = demonstrators(world)
    if demonstrator not in known:
        raise ContractError(f"nobody here is called {demonstrator}; choose from {sorted(known)}")
    expert = known[demonstrator](world)
    action = world.contract.action
    scale = rng.uniform(0, world.noise if noise is None else noise) * (np.array(action.high) - np.array(action.low)) / 2
    push = np.zeros(action.dim)
    rows: list[tuple[dict[str, Array], Array, Array, float, Array]] = []
    constants = {feature.name for feature in world.contract.observations if feature.constant}
    longest = getattr(expert, "longest", getattr(world, "longest", sys.maxsize))
    lead_in = getattr(world, "lead_in", None)
    lead = int(rng.integers(lead_in)) if lead_in else 0
    remaining = settle = getattr(world, "settle", SETTLE_STEPS)
    while remaining and len(rows) < longest:
        if lead == 0 and hasattr(expert, "choose"):
            expert.choose()
        command = expert.command()
        push = NOISE_CORRELATION * push + np.sqrt(1 - NOISE_CORRELATION**2) * rng.normal(0, 1, action.dim) * scale
        settling = world.success or remaining < settle
        quiet = settling or (lead_in is not None and lead <= 0)
        executed = action.clip(command + (0 if quiet else push)).astype(np.float32)
        state = world.state
        following, reward, _, truncated, _ = world.step(executed)
        if lead <= 0 or settling:
            seen = {n: value for n, value in observation.items() if not (rows and n in constants)}
            rows.append((seen, command, executed, float(reward), state))
        observation = following
        if world.failed or (truncated and not settling):
            return None
        lead, remaining = lead - 1, remaining - int(settling)
    return _episode(seed, rows, world)


def _episode(seed: int, rows: list[tuple[dict[str, Array], Array, Array, float, Array]], world: Any) -> Episode:
    observations, commands, executed, rewards, states = zip(*rows, strict=True)
    seen = {f.name: observations[:1] if f.constant else observations for f in world.contract.observations}
    labels = {name: value[None] for name, value in getattr(world, "labels", {}).items()}
    return Episode(
        seed=seed,
        observations={name: np.stack([row[name] for row in part]) for name, part in seen.items()} | labels,
        actions=np.stack(commands),
        executed=np.stack(executed),
        rewards=np.array(rewards, np.float32),
        states=np.stack(states).astype(np.float32),
    )


def recorded_contract(env: Any) -> Spec:
    """The contract of recorded episodes: that of the environment, and its labels, which are constant."""
    return replace(env.contract, observations=(*env.contract.observations, *getattr(env, "LABELS", ())))


def collect(config: CollectConfig, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Collect episodes into one file; an interrupted collection continues where it stopped.

    Args:
        config: What to collect.
        progress: Called with (seeds done, seeds in all).

    Returns:
        Counts of seeds tried, episodes kept and steps, and the path.
    """
    same = f"{config.env}|{config.embodiment}|{config.noise}|{config.seed}|{config.demonstrator}|{config.goals}"
    folder = config.out.with_name(f"{config.out.name}.{hashlib.sha256(same.encode()).hexdigest()[:8]}.parts")
    seeds = range(config.seed, config.seed + config.episodes)
    shards = {
        folder / f"{part[0]}-{part[-1]}.hdf5": part
        for i in range(0, len(seeds), SHARD)
        if (part := seeds[i : i + SHARD])
    }
    done = sum(len(part) for shard, part in shards.items() if shard.exists())
    progress(done, len(seeds))
    with processes(config.workers) as pool:
        jobs = [pool.submit(_record_shard, config, shard, part) for shard, part in shards.items() if not shard.exists()]
        for job in as_completed(jobs):
            done += job.result()
            progress(done, len(seeds))
    episodes = [episode for shard in shards for episode in read_demos(shard)]
    if not episodes:
        raise RuntimeError(f"the expert failed on all {len(seeds)} seeds from {config.seed}; nothing was written")
    env = make(config.env, robot(config.embodiment))
    _write(config, config.out, episodes, env)
    env.close()
    shutil.rmtree(folder)
    return {"out": str(config.out), "tried": len(seeds), "kept": len(episodes), "steps": sum(map(len, episodes))}


@contextmanager
def processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes with one numeric thread each, which end with this one, however that ends.

    An exception or Ctrl-C drops what has not begun.

    Raises:
        ContractError: The count is not positive.
    """
    at_least(1, workers=count)
    with one_numeric_thread():
        pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _watch_parent)
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _watch_parent() -> None:
    """Runs first in every process of a pool."""
    threading.Thread(target=end_with_parent, daemon=True).start()


def _record_shard(config: CollectConfig, shard: Path, seeds: range) -> int:
    env = make(config.env, robot(config.embodiment))
    recorded = (
        record_goals(env, seed) if config.goals else record(env, seed, config.noise, config.demonstrator)
        for seed in seeds
    )
    episodes = [episode for episode in recorded if episode]
    _write(config, shard, episodes, env)
    env.close()
    return len(seeds)


def _write(config: CollectConfig, path: Path, episodes: list[Episode], env: Any) -> None:
    known = getattr(env, "robomimic", None)  # of simulators that robomimic plays back
    contract = goal_contract(env) if config.goals else recorded_contract(env)
    write_episodes(path, episodes, config.env, robot(config.embodiment), contract, known)
