"""kinoflow bench."""

from __future__ import annotations

from pathlib import Path

import tyro

from benchmarks.latency import as_text, measure
from kinoflow.console import progress_bar, show


def command(bundle: tyro.conf.Positional[Path], json: bool = False) -> None:
    """Measure a bundle's chunk latency beside the same head in torch and a diffusion UNet, in one run.

    Args:
        bundle: Bundle to measure (.kfb).
        json: Print JSON.
    """
    with progress_bar("measuring") as progress:
        result = measure(bundle, progress)
    show(result, json, as_text(result))
