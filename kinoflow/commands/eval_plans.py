"""kinoflow eval xdiffuser."""

from __future__ import annotations

from pathlib import Path

import tyro

from kinoflow import planning
from kinoflow.commands.eval import show_report, write
from kinoflow.console import progress_bar
from policies.files import prepare_folder


def command(
    planner: tyro.conf.Positional[str],
    config: planning.PlanEvaluation,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Drive along plans of XDiffuser, and of what is simpler, on paired seeds.

    Args:
        planner: xdiffuser.
        config: What to evaluate.
        out: Directory for report.json with the per-episode rows, and for plots.
        json: Print JSON.
    """
    if out:
        prepare_folder(out)
    with progress_bar("episodes") as progress:
        report = planning.evaluate(config, progress)
    write(report, out)
    show_report(report, json)
