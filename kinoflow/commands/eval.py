"""kinoflow eval."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tyro

from envs.evaluate import EvaluateConfig, as_text, evaluate
from kinoflow.console import progress_bar, show
from policies.load import LOADER

PLANNER = "xdiffuser"


def for_arguments(arguments: list[str]) -> Callable[..., None]:
    """The command for policies, or that for planners if one is named first."""
    if arguments[:1] != [PLANNER]:
        return command
    from kinoflow.commands import eval_plans  # imports torch, which bundles need not wait for

    return eval_plans.command


def command(
    policies: tyro.conf.Positional[tuple[str, ...]],
    config: EvaluateConfig,
    out: Path | None = None,
    video: int = 0,
    json: bool = False,
) -> None:
    """Evaluate policies on paired seeds beside the baselines.

    Args:
        policies: Bundles or run directories; the first is reported on, the rest are compared with it. Without any,
            the baselines alone.
        config: What to evaluate.
        out: Directory for report.json with the per-episode rows, for plots and videos.
        video: Episodes to film, from the first seed on; needs --out and an OpenGL library.
        json: Print JSON.
    """
    if video and not (out and policies):
        raise ValueError("--video needs --out DIRECTORY and a policy")
    with progress_bar("episodes") as progress:
        report = evaluate(list(policies), LOADER, config, progress)
    write(report, out)
    if out and video:
        from kinoflow.film import film

        for seed in range(config.seed, config.seed + video):
            film(policies[0], config, seed, out / f"episode_{seed}.mp4")
    show_report(report, json)


def write(report: Mapping[str, Any], out: Path | None) -> None:
    """Write a report with its pictures, if there is a directory for it."""
    if out:
        from kinoflow.figures import write_evaluation

        write_evaluation(report, out)


def show_report(report: Mapping[str, Any], json: bool) -> None:
    """Print a report without its rows."""
    text = as_text(report) + (f"\nplanning {report['planning']}" if "planning" in report else "")
    show({key: value for key, value in report.items() if key != "rows"}, json, text)
