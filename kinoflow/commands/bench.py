"""kinoflow bench."""

from __future__ import annotations

from pathlib import Path

import tyro

from benchmarks import latency
from kinoflow.console import progress_bar, show


def command(
    bundle: tyro.conf.Positional[Path], peers: bool = False, lerobot: Path | None = None, json: bool = False
) -> None:
    """Measure a bundle's chunk latency beside the same head in torch and a diffusion UNet, in one run.

    Args:
        bundle: Bundle to measure (.kfb).
        peers: Also beside LeRobot's default policy, CleanDiffuser's transformer and the limits of the core; 5 minutes.
        lerobot: With --peers also beside the real LeRobot: Python of its environment, see tests/parity/lerobot.sh.
        json: Print JSON.

    Raises:
        ValueError: There is a LeRobot but no peers.
    """
    if lerobot is not None and not peers:
        raise ValueError("--lerobot takes part with --peers only; add --peers")
    with progress_bar("measuring") as progress:
        if peers:
            from benchmarks.peers import as_text, measure

            result = measure(bundle, progress, lerobot)
            text = as_text(result)
        else:
            result = latency.measure(bundle, progress)
            text = latency.as_text(result)
    show(result, json, text)
