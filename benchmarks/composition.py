"""What composing costs: one chunk of two parents together beside one chunk of each alone, on one core and on all.

Run: python -m benchmarks.composition FIRST SECOND --json

The arms take turns in one loop, so a machine that slows down slows all of them. On a busy machine a longer chunk is
interrupted more often than two short ones, and every change of thread has to queue: the ratio of the processor times
and that of the quickest tenth are free of most of that.
"""

from __future__ import annotations

import json as json_format
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import onnxruntime
import tyro

from benchmarks.latency import pinned
from policies.bundle import Bundle, cpu_name
from policies.composition import compose
from policies.export import export
from policies.policy import Policy
from policies.spec import Array

ROUNDS, CALLS = 40, 10
TOGETHER = ("one core", "all cores")


@dataclass(frozen=True)
class Arm:
    """One bundle and the cores it runs on."""

    bundle: Bundle
    cores: frozenset[int]


def measure(
    first: Path, second: Path, progress: Callable[[int, int], None] = lambda *_: None, rounds: int = ROUNDS
) -> dict[str, Any]:
    """Measure two parents and their composition, one thread per parent.

    Args:
        first: Bundle of one parent; of the other one only its denoising steps may differ, they become the same.
        second: Bundle of the other.
        progress: Called with rounds done and rounds in all.
        rounds: Turns of every arm.

    Returns:
        Plain JSON values: ``arms`` with milliseconds per chunk, and the ratio of the composition to the sum of its
        parents: ``ratios`` of the medians, ``quiet_ratios`` of the quickest tenth and ``cpu_ratios`` of processor time.

    Raises:
        ContractError: A bundle is damaged, or they cannot be composed.
    """
    with tempfile.TemporaryDirectory() as folder:
        arms, steps = make_arms(first, second, Path(folder))
    wall, cpu = race(arms, rounds, progress)
    middle = {name: float(np.median(seconds)) for name, seconds in wall.items()}
    quick = {name: float(np.quantile(seconds, 0.1)) for name, seconds in wall.items()}
    worked = {name: float(np.median(seconds)) for name, seconds in cpu.items()}
    return {
        "parents": [str(first), str(second)],
        "steps": steps,
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "versions": {"onnxruntime": onnxruntime.__version__},
        "rounds": rounds,
        "arms": {
            name: {"p10_ms": 1e3 * quick[name], "p50_ms": 1e3 * middle[name], "cpu_ms": 1e3 * worked[name]}
            for name in arms
        },
        "ratios": _over_parents(middle),
        "quiet_ratios": _over_parents(quick),
        "cpu_ratios": _over_parents(worked),
    }


def as_text(result: Mapping[str, Any]) -> str:
    """Render the result of `measure` as a table."""
    lines = [
        f"one chunk, {result['steps']} steps, on {result['cpu']}, {result['rounds']} rounds, load {result['load']:.1f}",
        f"  {'':<12}{'p10 ms':>9}{'p50 ms':>9}{'processor ms':>14}",
    ]
    for name, arm in result["arms"].items():
        lines.append(f"  {name:<12}{arm['p10_ms']:9.2f}{arm['p50_ms']:9.2f}{arm['cpu_ms']:14.2f}")
    for name, ratio in result["ratios"].items():
        quiet, cpu = result["quiet_ratios"][name], result["cpu_ratios"][name]
        lines.append(f"  {name} over the sum of the parents: {ratio:.2f} (p10 {quiet:.2f}, processor time {cpu:.2f})")
    return "\n".join(lines)


def make_arms(first: Path, second: Path, folder: Path) -> tuple[dict[str, Arm], int]:
    """Export the composition, and parents with other steps again; return the arms and the number of steps."""
    parents = [Policy.load(path) for path in (first, second)]
    both = compose(parents, [0.5, 0.5])
    export(both, folder / "both.kfb", provenance={})
    paths = [
        _with_steps(policy, both.steps, path, folder) for policy, path in zip(parents, (first, second), strict=True)
    ]
    every = frozenset(os.sched_getaffinity(0))
    one = frozenset({min(every)})
    files = {"first": paths[0], "second": paths[1], "one core": folder / "both.kfb", "all cores": folder / "both.kfb"}
    arms = {}
    for name, path in files.items():
        cores = every if name == "all cores" else one
        with pinned(cores):  # the threads of a bundle stay on the cores on which it was loaded
            arms[name] = Arm(Bundle.load(path), cores)
    return arms, both.steps


def race(
    arms: Mapping[str, Arm], rounds: int, progress: Callable[[int, int], None]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Let the arms take turns; returns wall seconds ``(rounds, calls)`` and processor seconds ``(rounds,)`` per chunk.

    One round more is run and forgotten: it pays for the first allocations.
    """
    wall = {name: np.zeros((rounds + 1, CALLS)) for name in arms}
    cpu = {name: np.zeros(rounds + 1) for name in arms}
    for turn in range(rounds + 1):
        for name, arm in arms.items():
            with pinned(arm.cores):
                begin = process_time()
                wall[name][turn] = arm.bundle.latency(CALLS)
                cpu[name][turn] = (process_time() - begin) / CALLS
        progress(turn, rounds)
    return {name: value[1:] for name, value in wall.items()}, {name: value[1:] for name, value in cpu.items()}


def _with_steps(policy: Policy, steps: int, path: Path, folder: Path) -> Path:
    if policy.steps == steps:
        return path
    again = folder / f"{steps}_{path.name}"
    export(Policy(policy.head, policy.normaliser, steps, policy.temperature).eval(), again, provenance={})
    return again


def _over_parents(times: Mapping[str, float]) -> dict[str, float]:
    return {name: times[name] / (times["first"] + times["second"]) for name in TOGETHER}


def main(first: tyro.conf.Positional[Path], second: tyro.conf.Positional[Path], json: bool = False) -> None:
    """Measure the composition of two bundles beside the bundles themselves.

    Args:
        first: Bundle of one parent (.kfb).
        second: Bundle of the other; the same bundle twice is two parents of one kind.
        json: Print JSON.
    """
    result = measure(first, second)
    print(json_format.dumps(result) if json else as_text(result))


if __name__ == "__main__":
    tyro.cli(main)
