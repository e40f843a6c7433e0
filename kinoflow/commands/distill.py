"""kinoflow distill."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Any

import tyro

from envs.episodes import EpisodeFile, read_episodes
from envs.evaluate import EvaluateConfig, compared, run_all, summary
from kinoflow.commands.export import provenance_of
from kinoflow.console import progress_bar, show
from policies.checks import at_least
from policies.distill import Distiller, DistillRecipe, Method
from policies.export import export
from policies.files import replace_file
from policies.load import LOADER, load_trained
from policies.policy import Policy
from policies.spec import ContractError


def command(
    policy: tyro.conf.Positional[Path],
    out: Path,
    method: Method = "paths",
    steps: tuple[int, ...] = (1, 2, 4),
    teacher_steps: int = 10,
    data: Path | None = None,
    updates: int = 2000,
    batch: int = 128,
    learning_rate: float = 5e-4,
    seed: int = 0,
    episodes: int = 200,
    resume: bool = False,
    json: bool = False,
) -> None:
    """Train a policy once more so that fewer steps do; then a table of both in paired episodes, with their latency.

    Args:
        policy: Run directory of kinoflow train, or bundle.
        out: Run directory of the student; the bundles that are compared are written there, too.
        method: What the student is taught.
        steps: Numbers of steps to compare.
        teacher_steps: Steps that the teacher's chunks are taken from, and it is compared with.
        data: Episodes to distil on; those the policy was trained on by default.
        updates: Optimiser steps.
        batch: Chunks per optimiser step.
        learning_rate: Its peak.
        seed: Of batches and noise.
        episodes: Seeds per driver of the table, from 0.
        resume: Continue an interrupted run exactly where it was.
        json: Print JSON.
    """
    least = min(steps, default=0)
    at_least(1, steps=least, teacher_steps=teacher_steps, episodes=episodes, updates=updates, batch=batch)
    drivers = {f"teacher@{n}": load_trained(f"{policy}@{n}") for n in (teacher_steps, *steps)}
    data = data or _trained_on(policy)
    episode_file = read_episodes(data)
    recipe = DistillRecipe(
        data, out, None, steps=updates, batch=batch, learning_rate=learning_rate, seed=seed, initial=policy,
        sample_steps=least, evaluate_every=updates, rollouts=0, method=method, teacher_steps=teacher_steps,
    )  # fmt: skip
    with progress_bar("distilling") as progress:
        Distiller(recipe, episode_file, resume).run(None, progress)
    drivers |= {f"student@{n}": load_trained(f"{out}@{n}") for n in steps}
    rows = _compared(drivers, out, episode_file, episodes)
    result = {"policy": str(policy), "method": method, "updates": updates, "episodes": episodes, "rows": rows}
    replace_file(out / "distilled.json", json_format.dumps(result, indent=1).encode())
    show(result, json, as_text(rows))


def _trained_on(policy: Path) -> Path:
    data = provenance_of(str(policy)).get("recipe", {}).get("data")
    if data is None or not Path(data).is_file():
        raise ContractError(f"the episodes {policy} was trained on are not at {data}; give others with --data FILE")
    return Path(data)


def _compared(drivers: dict[str, Policy], out: Path, data: EpisodeFile, episodes: int) -> dict[str, Any]:
    """Success, other metrics and latency of policies, as bundles, in the same episodes; the first is what all meet."""
    paths, latency = {}, {}
    for name, policy in drivers.items():
        paths[name] = str(out / f"{name}.kfb")
        latency[name] = export(policy, paths[name], provenance=provenance_of(str(out))).latency
    config = EvaluateConfig(data.env_id, data.env_kwargs.get("embodiment"), episodes, baselines=False)
    with progress_bar("episodes") as progress:
        rows, _ = run_all([*paths.values()], len(paths), LOADER, config, progress)
    reference = rows[next(iter(paths.values()))]
    return {
        name: {
            **summary(rows[path]),
            "difference": compared(rows[path], reference)["success"],
            "p50_ms": latency[name].p50_ms,
            "p99_ms": latency[name].p99_ms,
        }
        for name, path in paths.items()
    }


def as_text(rows: dict[str, Any]) -> str:
    """A table with a line per driver."""
    lines = [f"{'':<20} {'success':<21} {'difference':<24} {'p50 ms':>7} {'p99 ms':>7}"]
    for name, row in rows.items():
        rate, apart = row["success"], row["difference"]
        success = f"{rate['mean']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]"
        difference = f"{apart['mean']:+.3f} [{_signed(apart['low'])}, {_signed(apart['high'])}]"
        lines.append(f"{name:<20} {success:<21} {difference:<24} {row['p50_ms']:>7.2f} {row['p99_ms']:>7.2f}")
    return "\n".join(lines)


def _signed(value: float | None) -> str:
    return "?" if value is None else f"{value:+.3f}"
