"""How a script is started: what is wrong with its options is said in one line, before the work."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import tyro

from policies.checks import at_least, check_seed
from policies.files import prepare_file
from policies.spec import ContractError


def run(main: Callable[..., None]) -> None:
    """Call a function with the options of the command line."""
    try:
        tyro.cli(main)
    except (ContractError, OSError, ImportError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")


def check(json: Path | None, seed: int = 0, **sizes: int) -> None:
    """Refuse what could only fail after the work.

    Args:
        json: File to write at the end, whose directory is created.
        seed: The first one.
        sizes: By name what there has to be at least one of.

    Raises:
        ContractError: A size is not positive, or there is no such seed.
        OSError: The file cannot be written.
    """
    at_least(1, **sizes)
    check_seed(seed)
    if json:
        prepare_file(json)
