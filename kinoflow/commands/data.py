"""kinoflow data."""

from __future__ import annotations

from pathlib import Path

import tyro

from envs.episodes import describe
from kinoflow.console import show


def command(path: tyro.conf.Positional[Path], json: bool = False) -> None:
    """Verify an episode file and describe it.

    Args:
        path: Episode file (HDF5).
        json: Print JSON.
    """
    show(describe(path), json)
