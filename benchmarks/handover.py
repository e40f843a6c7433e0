"""How tightly should a new chunk be tied to the one it replaces? Success against the soft weights of the hand-over.

Run: python -m benchmarks.handover BUNDLE --json docs/results/handover.json
"""

from __future__ import annotations

import json as json_format
from functools import partial
from pathlib import Path
from typing import Any

import tyro

from benchmarks.entry import check, run
from envs.collect import processes
from envs.drive import PolicyDriver, Row, run_episode
from envs.evaluate import SHARD, VALIDATION_SEED, EvaluateConfig, summary, world
from policies.files import replace_file
from policies.load import load_policy
from policies.runtime.worker import InlineWorker

SOFT = (0, 2, 4, 8)  # actions over which the tie fades, at 10 Hz


def main(bundle: tyro.conf.Positional[Path], json: Path, episodes: int = 100) -> None:
    """Drive the same validation episodes with each setting.

    Args:
        bundle: Policy bundle (.kfb).
        json: Result to write.
        episodes: Episodes per setting.
    """
    check(json, episodes=episodes)
    shards = [range(first, first + SHARD) for first in range(VALIDATION_SEED, VALIDATION_SEED + episodes, SHARD)]
    result: dict[str, Any] = {"bundle": bundle.name, "episodes": episodes, "seed": VALIDATION_SEED, "soft": {}}
    with processes(2) as pool:
        for soft in SOFT:
            rows = [row for part in pool.map(partial(_drive, bundle, soft), shards) for row in part]
            result["soft"][soft] = summary(rows)
            print(f"soft {soft}: success {result['soft'][soft]['success']['mean']:.3f}")
    replace_file(json, (json_format.dumps(result, indent=1)).encode())


def _drive(bundle: Path, soft: int, seeds: range) -> list[Row]:
    env, worker = world(EvaluateConfig()), InlineWorker(load_policy(str(bundle)))
    rows = []
    for seed in seeds:
        env.reset(seed=seed)
        rows.append(run_episode(env, PolicyDriver(worker, seed, soft=soft), seed))
    return rows


if __name__ == "__main__":
    run(main)
