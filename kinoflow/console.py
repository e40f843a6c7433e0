"""What every command shows: progress while it works and a result for people or for machines."""

from __future__ import annotations

import contextlib
import json as json_format
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr; yields a function of (done, total, text)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[text]}"), console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, text="")
        yield lambda done, total, text="": bar.update(task, completed=done, total=total, text=text)


def show(result: dict[str, Any], json: bool, text: str | None = None) -> None:
    """Print a result: JSON for machines, otherwise ``text`` or one line per entry."""
    if json:
        print(json_format.dumps(result))
    else:
        print(text if text is not None else "\n".join(f"{key:<16} {value}" for key, value in result.items()))
