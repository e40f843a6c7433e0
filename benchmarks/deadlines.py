"""What does it help to take as many steps as there is time for, on cores that others keep busy?

Run: python -m benchmarks.deadlines FIXED.kfb ANY.kfb --json docs/results/deadlines.json

A head with a fixed number of steps and one that may choose drive the same episodes, in turn, in real time: commands
leave at the rate of the environment, 50 Hz in Nav-v0, and inference is a process of its own. Busy processes of the same
priority are pinned evenly to all cores. The heads of Nav-v0 are small, so chunks are asked for at a higher rate than
its scanner's, as if the heads were larger; a chunk has one period. One that is not ready by then is a miss; it is
executed all the same, and the next one is asked for later.
"""

from __future__ import annotations

import contextlib
import json as json_format
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.progress import track

from benchmarks.entry import check, run
from envs.drive import PolicyDriver, run_realtime
from envs.evaluate import EvaluateConfig, paired_difference, wilson, world
from policies.bundle import Bundle, cpu_name
from policies.files import replace_file
from policies.load import LOADER
from policies.runtime.buffer import ChunkBuffer
from policies.runtime.loop import Percentiles
from policies.runtime.runner import Runner
from policies.runtime.worker import InferenceWorker, end_with_parent
from policies.spec import Array, Observation

MAX_CHUNK_AGE_S = 0.5
WARM_UP = 20

Row = dict[str, Any]


class Planning(PolicyDriver):
    """Asks for chunks at a rate of its own, and notes how old those are that it executes.

    Args:
        worker: Runs the policy.
        seed: Seed of the sampling noise.
        rate_hz: Chunks per second.
    """

    def __init__(self, worker: InferenceWorker, seed: int, rate_hz: float) -> None:
        super().__init__(worker, seed, whole=False)
        buffer = ChunkBuffer(worker.spec, MAX_CHUNK_AGE_S)
        self.runner = Runner(worker, buffer, np.random.default_rng(seed), rate_hz)
        self.ages_ms: list[float] = []

    def command(self, observation: Observation, now: float) -> Array | None:
        command = super().command(observation, now)
        if command is not None:
            self.ages_ms.append(1e3 * self.runner.age(now))
        return command


def main(
    fixed: tyro.conf.Positional[Path],
    any_step: tyro.conf.Positional[Path],
    json: Path,
    episodes: int = 30,
    seed: int = 0,
    burners: int = 2,
    plan_hz: int = 50,
    env_id: str = "kinoflow/Nav-v0",
) -> None:
    """Drive the same episodes with both heads beside busy processes.

    Args:
        fixed: Bundle with one number of steps.
        any_step: Bundle with several.
        json: Result to write.
        episodes: Seeds per head.
        seed: The first one.
        burners: Busy processes per core.
        plan_hz: Chunks per second, up to 50.
        env_id: Environment, with its first robot.
    """
    check(json, seed, episodes=episodes, plan_hz=plan_hz)
    paths = {"fixed": fixed, "any-step": any_step}
    rows: dict[str, list[Row]] = {name: [] for name in paths}
    env, spec = world(EvaluateConfig(env_id)), Bundle.load(fixed).spec
    spec.require(env.contract)
    with contextlib.ExitStack() as stack:
        workers = {
            name: stack.enter_context(InferenceWorker(str(path), LOADER, spec, WARM_UP)) for name, path in paths.items()
        }
        for worker in workers.values():
            worker.wait_ready()
        stack.enter_context(busy(burners))
        for episode in track(range(seed, seed + episodes), "episodes"):
            for name in (*paths,)[:: 1 if episode % 2 else -1]:  # neither is always the first
                env.reset(seed=episode)
                rows[name].append(drive(env, workers[name], episode, plan_hz))
    env.close()
    result = {
        **{"env": env_id, "episodes": episodes, "seed": seed, "burners_per_core": burners},
        **{"cores": len(os.sched_getaffinity(0)), "cpu": cpu_name(), "plan_hz": plan_hz, "load": os.getloadavg()[0]},
        "heads": {name: {"bundle": paths[name].name, **summary(of_head)} for name, of_head in rows.items()},
        "difference": paired_difference(*([row["success"] for row in rows[name]] for name in ("any-step", "fixed"))),
        "rows": rows,
    }
    replace_file(json, json_format.dumps(result, indent=1).encode())
    print(as_text(result))


@contextlib.contextmanager
def busy(per_core: int) -> Iterator[None]:
    """Keep every core busy with so many processes of this priority."""
    context = multiprocessing.get_context("spawn")
    cores = [core for core in os.sched_getaffinity(0) for _ in range(per_core)]
    burners = [context.Process(target=_burn, args=(core,), daemon=True) for core in cores]
    for burner in burners:
        burner.start()
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.join()


def _burn(core: int) -> None:
    os.sched_setaffinity(0, {core})
    threading.Thread(target=end_with_parent, daemon=True).start()
    while True:
        pass


def drive(env: Any, worker: InferenceWorker, seed: int, plan_hz: float) -> Row:
    """Drive one episode in real time."""
    driver = Planning(worker, seed, plan_hz)
    row, loop = run_realtime(env, driver, seed)
    return {
        **{"seed": seed, "success": row.success, "time_s": row.time_s, **row.metrics},
        **{"rate_hz": loop.rate_hz, "commands": loop.commands, "command_misses": loop.deadline_misses},
        **{"chunks": sum(driver.runner.taken.values()), "chunk_misses": driver.runner.misses},
        "steps": {str(steps): count for steps, count in sorted(driver.runner.taken.items())},
        "chunk_age_ms": Percentiles.of(np.array(driver.ages_ms))._asdict(),
    }


def summary(rows: Sequence[Row]) -> Row:
    """What all episodes of one head come to."""
    total = {name: sum(row[name] for row in rows) for name in ("commands", "command_misses", "chunks", "chunk_misses")}
    steps: Counter[str] = sum((Counter(row["steps"]) for row in rows), Counter())
    seconds = sum(row["commands"] / row["rate_hz"] for row in rows)
    return {
        "success": wilson(sum(row["success"] for row in rows), len(rows)),
        "time_s": float(np.mean([row["time_s"] for row in rows])),
        "command_hz": total["commands"] / seconds,
        "worst_command_hz": min(row["rate_hz"] for row in rows),
        **total,
        "chunk_hz": total["chunks"] / seconds,
        "chunk_miss_rate": wilson(total["chunk_misses"], total["chunks"]),
        "steps": dict(steps),
        "chunk_age_ms": {key: float(np.mean([row["chunk_age_ms"][key] for row in rows])) for key in ("p50", "p99")},
    }


def as_text(result: Row) -> str:
    """A table with a line per head, and how much the second succeeds more often."""
    beside = f"{result['burners_per_core']} busy processes per core, {result['plan_hz']:g} chunks/s wanted"
    text = [f"{result['episodes']} episodes, {beside}"]
    text += [f"{'':<10} {'success (95 %)':<21} commands/s  missed  chunks/s  missed    age p50 / p99 ms  steps"]
    for name, row in result["heads"].items():
        rate, age = row["success"], row["chunk_age_ms"]
        success = f"{rate['mean']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]"
        steps = ", ".join(f"{steps}: {count / row['chunks']:.1%}" for steps, count in row["steps"].items())
        text.append(
            f"{name:<10} {success} {row['command_hz']:>10.2f} {row['command_misses'] / row['commands']:>7.2%} "
            f"{row['chunk_hz']:>9.2f} {row['chunk_miss_rate']['mean']:>7.2%} {age['p50']:>9.1f} / {age['p99']:>5.1f}"
            f"     {steps}"
        )
    apart = result["difference"]
    around = "" if apart["low"] is None else f" [{apart['low']:+.3f}, {apart['high']:+.3f}]"
    text.append(f"success of any-step less that of fixed, paired: {apart['mean']:+.3f}{around}")
    return "\n".join(text)


if __name__ == "__main__":
    run(main)
