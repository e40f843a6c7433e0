"""Writing files: what is left of writes that were killed, and what is found out before the work."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from policies.files import STALE_S, prepare_file, prepare_folder, replace_file


def test_what_killed_writes_have_left_is_removed(tmp_path: Path) -> None:
    stale, fresh, other = (tmp_path / f".{name}.part" for name in ("a[1].bin.1", "a[1].bin.2", "b.bin.1"))
    for part in (stale, fresh, other):
        part.write_bytes(b"half")
    for part in (stale, other):
        os.utime(part, (0, time.time() - 2 * STALE_S))
    replace_file(tmp_path / "a[1].bin", b"whole")
    assert {*tmp_path.iterdir()} == {tmp_path / "a[1].bin", fresh, other}


def test_where_nothing_can_be_written_is_known_before(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "a" / "b")
    prepare_file(tmp_path / "c" / "d.json")
    assert not [*(tmp_path / "a" / "b").iterdir()] and not [*(tmp_path / "c").iterdir()]
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file is a file, a directory is needed"):
        prepare_folder(tmp_path / "file")
    with pytest.raises(IsADirectoryError, match="give a name in it"):
        prepare_file(tmp_path / "a")
