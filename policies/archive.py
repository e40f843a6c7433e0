"""Small zip files that carry a few known parts: equal content gives equal bytes, and reading trusts nothing."""

from __future__ import annotations

import io
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from policies.spec import ContractError

PLANNER = "planner.json"  # part that planners have and bundles do not, see `planners.planner_file`
LIMIT = 4 << 30  # bytes of all members together
LARGE = 1 << 20  # bytes
SAVED = 2 / 3  # of its bytes at most are left of what is worth deflating; weights at full precision are not
INFLATED = 256 << 20  # bytes of those that are compressed, which may be far more than the file


class BundleError(ContractError):
    """A bundle is damaged, edited, unsafe or does not fit its contract; the message names the part and the remedy."""


def pack(members: Mapping[str, bytes]) -> bytes:
    """Return a zip file that depends on names and contents only; large members are deflated where it saves a third."""
    file = io.BytesIO()
    small = sum(map(len, members.values())) <= INFLATED
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o644 << 16  # the same bytes on every system
            deflate = small and len(content) > LARGE and len(zlib.compress(content)) < SAVED * len(content)
            archive.writestr(info, content, zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED)
    return file.getvalue()


def unpack(file: Path | BinaryIO, expected: Callable[[Callable[[str], bytes]], Collection[str]]) -> dict[str, bytes]:
    """Read exactly the expected members of a zip file.

    Args:
        file: The zip file.
        expected: Given a function that reads one member, names all of them.

    Raises:
        BundleError: Not a zip, damaged, a part is missing, or a member is unknown, duplicate, too large or unsafe.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            _check_safety(members)
            _check_names(members, {*expected(lambda name: _read(archive, name))})
            return {member.filename: archive.read(member) for member in members}
    except BundleError:
        raise
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise BundleError(f"not a readable zip: {error}; copy the bundle again") from error


def holds(path: Path, name: str) -> bool:
    """Whether a file is a zip with a member of this name."""
    try:
        with zipfile.ZipFile(path) as archive:
            return name in archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def _read(archive: zipfile.ZipFile, name: str) -> bytes:
    if name not in archive.namelist():
        raise BundleError(f"part '{name}' is missing; copy the bundle again")
    return archive.read(name)


def _check_safety(members: Sequence[zipfile.ZipInfo]) -> None:
    names = [member.orig_filename for member in members]
    for name, member in zip(names, members, strict=True):
        if "\\" in name or ".." in name.split("/") or re.match(r"/|[A-Za-z]:", name):
            raise BundleError(f"member {name!r} points outside the bundle; do not use this file")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise BundleError(f"member {name!r} is a symbolic link; do not use this file")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BundleError(f"member {name!r} uses compression {member.compress_type}; store or deflate it")
    if len({*names}) != len(names):
        raise BundleError(f"duplicate members in {sorted(names)}; do not use this file")
    inflated = sum(member.file_size for member in members if member.compress_type != zipfile.ZIP_STORED)
    total = sum(member.file_size for member in members)
    for found, limit, which in ((inflated, INFLATED, "compressed members"), (total, LIMIT, "members")):
        if found > limit:
            raise BundleError(f"the {which} have {found} bytes together, the limit is {limit}; do not load it")


def _check_names(members: Sequence[zipfile.ZipInfo], expected: set[str]) -> None:
    names = {member.orig_filename for member in members}
    if names - expected:
        raise BundleError(f"unknown member {min(names - expected)!r}; a bundle holds {sorted(expected)} only")
    if expected - names:
        raise BundleError(f"part '{min(expected - names)}' is missing; copy the bundle again")
