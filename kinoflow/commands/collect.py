"""kinoflow collect."""

from __future__ import annotations

from envs.collect import CollectConfig, collect
from kinoflow.console import progress_bar, show


def command(config: CollectConfig, json: bool = False) -> None:
    """Record expert episodes; an interrupted collection continues where it stopped.

    Args:
        config: What to collect.
        json: Print JSON.
    """
    with progress_bar("episodes") as progress:
        result = collect(config, progress)
    show(result, json)
