"""kinoflow distill."""

from __future__ import annotations

import json as json_format
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro

from benchmarks.latency import compare
from envs.episodes import EpisodeFile, read_episodes
from envs.evaluate import EvaluateConfig, compared, run_all, summary
from kinoflow.commands.export import provenance_of, trained_on
from kinoflow.console import progress_bar, show
from policies.checks import at_least
from policies.coverage import coverage, drawn, spread
from policies.distill import FINE, Distiller, DistillRecipe, Method, on_cheapest_grids
from policies.export import export
from policies.files import prepare_folder, replace_file
from policies.load import LOADER, load_trained
from policies.policy import Policy
from policies.spec import ContractError
from policies.train import LOG_EVERY
from policies.training import STATE

LOOKED_AT, FORKS = 128, 32  # observations, and those of them at which the teacher's chunks differ most
GLANCE, DRAWS = 16, 64  # chunks per observation to find these, and to compare there


def command(
    policy: tyro.conf.Positional[Path],
    out: Path,
    method: tuple[Literal[Method, "grid"], ...] = ("paths",),
    steps: tuple[int, ...] = (1, 2, 4),
    teacher_steps: int = 10,
    depth: int | None = None,
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

    The student of a method is the run OUT/METHOD and the bundle OUT/METHOD.kfb, which takes as many of the steps as
    there is time for; the bundles that are compared are OUT/METHOD@STEPS.kfb.

    Args:
        policy: Run directory of kinoflow train, or bundle; at another temperature "PATH@temperature=0.5".
        out: Directory for the students.
        method: What they are taught; of several the table says which to keep. Nothing with "grid": the times between
            which the steps of the teacher go are chosen.
        steps: Numbers of steps to compare.
        teacher_steps: Steps that the teacher's chunks are taken from, and it is compared with.
        depth: Blocks of the students' transformers, which begin as so many of the teacher's; all by default.
        data: Episodes to distil on; those the policy was trained on by default.
        updates: Optimiser steps.
        batch: Chunks per optimiser step.
        learning_rate: Its peak.
        seed: Of batches and noise.
        episodes: Seeds per driver of the table, from 0.
        resume: Continue interrupted runs exactly where they were.
        json: Print JSON.
    """
    least, gridded = min(steps, default=0), [n for n in steps if 1 < n <= FINE]
    at_least(1, steps=least, teacher_steps=teacher_steps, episodes=episodes, updates=updates, batch=batch)
    if "grid" in method and not gridded:
        raise ContractError(f"there is a choice of times for 2 to {FINE} steps; give some of them with --steps")
    drivers = {f"teacher@{n}": load_trained(f"{policy}@{n}") for n in (teacher_steps, *steps)}
    data = data or trained_on(str(policy), "--data")
    episode_file = read_episodes(data)
    prepare_folder(out)
    taught = [name for name in method if name != "grid"]
    for name in taught:
        recipe = DistillRecipe(
            data, out / name, None, steps=updates, batch=batch, learning_rate=learning_rate, seed=seed, initial=policy,
            sample_steps=least, evaluate_every=updates, rollouts=0, method=name, teacher_steps=teacher_steps,
            depth=depth,
        )  # fmt: skip
        with progress_bar(f"distilling: {name}") as progress:
            Distiller(recipe, episode_file, resume and (out / name / STATE).exists()).run(None, progress)
        drivers |= {f"{name}@{n}": load_trained(f"{out / name}@{n}") for n in steps}
        whole = load_trained(str(out / name))
        export(whole, out / f"{name}.kfb", provenance=provenance_of(str(out / name)), steps=steps)
    if "grid" in method:
        found = on_cheapest_grids(drivers[f"teacher@{teacher_steps}"], episode_file, gridded)
        drivers |= {f"grid@{n}": student for n, student in found.items()}
    sources: dict[str, Path] = {"teacher": policy, "grid": policy, **{name: out / name for name in taught}}
    rows = _compared(drivers, sources, out, episode_file, episodes)
    result = {
        "policy": str(policy),
        "updates": updates,
        "minutes": {name: _minutes(out / name) for name in taught},
        "episodes": episodes,
        "rows": rows,
    }
    _write(result, out)  # what was driven is there, should the rest be interrupted
    for driver, covered in _covered(drivers, episode_file).items():
        rows[driver] |= covered
    _write(result, out)
    show(result, json, as_text(result))


def _write(result: Mapping[str, Any], out: Path) -> None:
    replace_file(out / "distilled.json", json_format.dumps(result, indent=1).encode())


def _minutes(run: Path) -> float:
    """How long a student was taught, interruptions apart."""
    batch = json_format.loads((run / "run.json").read_text())["recipe"]["batch"]
    entries = map(json_format.loads, (run / "metrics.jsonl").read_text().splitlines())
    return sum(LOG_EVERY * batch / entry["samples_per_s"] for entry in entries if "samples_per_s" in entry) / 60


def _compared(
    drivers: Mapping[str, Policy], sources: Mapping[str, Path], out: Path, data: EpisodeFile, episodes: int
) -> dict[str, Any]:
    """Success, other metrics and latency of policies, as bundles, in the same episodes; the first is what all meet."""
    paths = {name: str(out / f"{name}.kfb") for name in drivers}
    for name, policy in drivers.items():
        export(policy, paths[name], provenance=provenance_of(str(sources[name.split("@")[0]])))
    with progress_bar("measuring") as progress:
        latency = compare([Path(path) for path in paths.values()], progress)["arms"]
    config = EvaluateConfig(data.env_id, data.env_kwargs.get("embodiment"), episodes, baselines=False)
    with progress_bar("episodes") as progress:
        rows, _ = run_all([*paths.values()], len(paths), LOADER, config, progress)
    reference = rows[next(iter(paths.values()))]
    return {
        name: {
            **summary(rows[path]),
            "difference": compared(rows[path], reference)["success"],
            "p50_ms": latency[path]["p50_ms"],
            "p99_ms": latency[path]["p99_ms"],
        }
        for name, path in paths.items()
    }


def _covered(drivers: Mapping[str, Policy], data: EpisodeFile) -> dict[str, Any]:
    """Precision and recall of the chunks of policies where those of the first one differ most."""
    teacher = next(iter(drivers.values()))
    steps = np.random.default_rng(0).choice(len(data.actions), LOOKED_AT)
    windows, _ = data.windows(steps, teacher.spec.history, teacher.spec.horizon)
    observation = {f.name: torch.from_numpy(windows[f.name]) for f in teacher.spec.observations}
    forks = spread(drawn(teacher, observation, GLANCE, 0)).topk(FORKS).indices
    observation = {name: values[forks] for name, values in observation.items()}
    references = drawn(teacher, observation, DRAWS, 1)
    return {
        name: coverage(references, drawn(policy, observation, DRAWS, 2))._asdict() for name, policy in drivers.items()
    }


def as_text(result: Mapping[str, Any]) -> str:
    """A table with a line per driver."""
    lines = [f"{'':<15} {'success':<21} {'difference':<24} {'precision':>9} {'recall':>7} {'p50 ms':>7} {'p99 ms':>7}"]
    for name, row in result["rows"].items():
        rate, apart = row["success"], row["difference"]
        success = f"{rate['mean']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]"
        difference = f"{apart['mean']:+.3f} [{_signed(apart['low'])}, {_signed(apart['high'])}]"
        numbers = f"{row['precision']:>9.3f} {row['recall']:>7.3f} {row['p50_ms']:>7.2f} {row['p99_ms']:>7.2f}"
        lines.append(f"{name:<15} {success:<21} {difference:<24} {numbers}")
    lines += [f"{method} took {minutes:.0f} minutes" for method, minutes in result["minutes"].items()]
    return "\n".join(lines)


def _signed(value: float | None) -> str:
    return "?" if value is None else f"{value:+.3f}"
