"""kinoflow export."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

import tyro

from kinoflow.console import show
from policies.export import export
from policies.policy import Policy


def command(
    run: tyro.conf.Positional[Path], out: Annotated[Path, tyro.conf.arg(aliases=["-o"])], json: bool = False
) -> None:
    """Write the best policy of a training run as one verified bundle.

    Args:
        run: Run directory of kinoflow train.
        out: Bundle to write (.kfb).
        json: Print JSON.
    """
    policy = Policy.load(run)
    report = export(policy, out, provenance=json_format.loads((run / "run.json").read_text()))
    result = {
        "bundle": str(out),
        "bytes": report.size,
        "nodes": report.nodes,
        "max_error": report.max_error,
        "p50_ms": report.latency.p50_ms,
        "p99_ms": report.latency.p99_ms,
    }
    show(result, json)
