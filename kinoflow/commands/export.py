"""kinoflow export."""

from __future__ import annotations

import json as json_format
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import tyro

from envs.episodes import read_episodes
from kinoflow.console import show
from policies.bundle import Bundle
from policies.checks import at_least
from policies.export import export
from policies.load import load_trained
from policies.spec import ContractError


def command(
    policy: tyro.conf.Positional[str],
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    rounded: bool = False,
    steps: tuple[int, ...] = (),
    int8: bool = False,
    calibrate: Path | None = None,
    json: bool = False,
) -> None:
    """Write a policy as one verified bundle; of a training run that is the best one.

    Args:
        policy: Run directory of kinoflow train or import, bundle, lerobot:DIRECTORY or composition "(0.6*A + 0.4*B)".
        out: Bundle to write (.kfb).
        rounded: Round weights to bfloat16: the file is less than half as large. Evaluate the bundle, not the run.
        steps: Numbers of steps to choose from at run time, as many as there is time for; else those of the policy.
        int8: Compute in 8 bits, if that is faster on this machine and plans stay what they were.
        calibrate: Episodes to judge that by; those the policy was trained on by default.
        json: Print JSON.
    """
    if calibrate and not int8:
        raise ContractError("--calibrate is what --int8 is judged by; add --int8")
    at_least(1, steps=min(steps, default=1))
    trained = load_trained(policy)
    out.parent.mkdir(parents=True, exist_ok=True)
    episodes = read_episodes(calibrate or trained_on(policy, "--calibrate")) if int8 else None
    report = export(trained, out, provenance=provenance_of(policy), rounded=rounded, steps=steps, calibration=episodes)
    result = {
        "bundle": str(out),
        "bytes": report.size,
        "nodes": report.nodes,
        "max_error": report.max_error,
        "p50_ms": report.latency.p50_ms,
        "p99_ms": report.latency.p99_ms,
        **({"curve": [asdict(point) for point in report.curve]} if report.curve else {}),
    }
    if report.choice:
        result |= report.choice.way._asdict()
        result["trials"] = {str(way): asdict(trial) for way, trial in report.choice.trials.items()}
    show(result, json, as_text(result))


def as_text(result: Mapping[str, Any]) -> str:
    """A line per value, and per number of steps and way to compute, where there are several."""
    plain = {name: value for name, value in result.items() if name not in ("curve", "trials")}
    rows = {f"{point['steps']} steps": point for point in result.get("curve", ())} | result.get("trials", {})
    lines = [f"{name:<27} {value}" for name, value in plain.items()]
    lines += [f"{name:<27} {row['p50_ms']:.2f} ms, deviation {row['deviation']:.4f}" for name, row in rows.items()]
    return "\n".join(lines)


def provenance_of(policy: str) -> dict[str, Any]:
    """What is known of where a policy comes from: the run's own note, or that of the bundle it is read from."""
    if os.path.isfile(policy):
        return Bundle.load(Path(policy)).manifest.provenance
    note = Path(policy) / "run.json"
    if os.path.exists(note):
        known: dict[str, Any] = json_format.loads(note.read_text())
        return known
    run, _, _ = policy.rpartition("@")  # what follows are settings
    return {**(provenance_of(run) if run else {}), "policy": policy}


def trained_on(policy: str, option: str) -> Path:
    """The episodes that a policy was trained on.

    Raises:
        ContractError: They are not there; names the option by which others are given.
    """
    data = provenance_of(policy).get("recipe", {}).get("data")
    if data is None or not Path(data).is_file():
        raise ContractError(f"the episodes {policy} was trained on are not at {data}; give others with {option} FILE")
    return Path(data)
