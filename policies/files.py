"""Writing files so that an interruption leaves either the old content or the new one."""

from __future__ import annotations

import glob
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

STALE_S = 3600.0  # since the last byte, after which whoever wrote it has surely been killed


def prepare_folder(folder: Path) -> None:
    """Create a directory and see that files can be written to it, before the work that is to be kept there.

    Raises:
        OSError: It is a file, or cannot be created or written to.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, a directory is needed; choose another one")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def prepare_file(path: Path) -> None:
    """See that a file can be written, and create the directory for it.

    Raises:
        OSError: It is a directory, or cannot be written.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory, a file is to be written; give a name in it")
    prepare_folder(path.parent)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file in one step: whatever fails, ``path`` holds either its old content or the new one.

    What a write of the same file that was killed has left beside it is removed.

    Raises:
        OSError: The file cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE_S:
                left.unlink()
