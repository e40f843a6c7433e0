"""kinoflow bench."""

from __future__ import annotations

from pathlib import Path

import tyro

from benchmarks import latency
from kinoflow.console import progress_bar, show


def command(
    bundles: tyro.conf.Positional[tuple[Path, ...]],
    peers: bool = False,
    lerobot: Path | None = None,
    json: bool = False,
) -> None:
    """Measure a bundle's chunk latency beside the same head in torch and a diffusion UNet, or bundles, in one run.

    Args:
        bundles: Bundle to measure (.kfb), or several, which then take turns with each other alone.
        peers: Also beside LeRobot's default policy, CleanDiffuser's transformer and the limits of the core; 5 minutes.
        lerobot: With --peers also beside the real LeRobot: Python of its environment, see tests/parity/lerobot.sh.
        json: Print JSON.

    Raises:
        ValueError: There is no bundle, there are several beside the peers, or there is a LeRobot but no peers.
    """
    if not bundles or (peers and len(bundles) > 1):
        raise ValueError(f"{len(bundles)} bundles{' --peers' * peers}; give one, or several without --peers")
    if lerobot is not None and not peers:
        raise ValueError("--lerobot takes part with --peers only; add --peers")
    with progress_bar("measuring") as progress:
        if peers:
            from benchmarks.peers import as_text, measure

            result = measure(bundles[0], progress, lerobot)
            text = as_text(result)
        elif len(bundles) > 1:
            result = latency.compare(bundles, progress)
            text = latency.as_text(result)
        else:
            result = latency.measure(bundles[0], progress)
            text = latency.as_text(result)
    show(result, json, text)
