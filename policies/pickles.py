"""Loads pickles without running them.

A pickle is a program. Here nothing it names is ever imported or called: every class and function becomes an inert
`Record` of its name, arguments and state, and a name outside a short list is refused. The list, and how values are read
off the records, are in `policies.foreign.pickles` for checkpoints and in `envs.logs.pickles` for logs.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import IO, Any, ClassVar

from policies.spec import ContractError

MISREAD = (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError)
"""What reading a record of an unexpected form raises."""


class Record(dict[Any, Any]):
    """Stands for an object of a pickle: the name of its class, its arguments, its items and its state."""

    name: ClassVar[str] = ""
    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        super().__init__()
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Unpickler(pickle.Unpickler):
    """Loads containers, numbers, texts and records; ``source`` is the file, for errors.

    Raises:
        ContractError: From ``load``: the program is damaged, or a name in it is not one that ``known`` matches in full.
    """

    known: ClassVar[re.Pattern[str]]
    kind: ClassVar[str]  # what is read, for errors
    remedy: ClassVar[str]  # what to do about a file with another name in it

    def __init__(self, program: IO[bytes], source: Path | str) -> None:
        super().__init__(program)
        self._program, self._source = program, source
        self._classes: dict[str, type[Record]] = {}

    def load(self) -> Any:
        try:
            return super().load()
        except ContractError:
            raise
        except Exception as error:  # a damaged pickle can fail in any way
            raise ContractError(
                f"{self._source} is damaged or no pickle, near byte {self._program.tell()}: {error!r}; copy it again"
            ) from error

    def find_class(self, module: str, name: str, /) -> type[Record]:
        full = f"{module}.{name}"
        if not self.known.fullmatch(full):
            raise ContractError(
                f"{self._source} wants to run '{full}' before byte {self._program.tell()}, which no {self.kind} needs; "
                f"nothing was run. {self.remedy}"
            )
        return self._classes.setdefault(full, type("Record", (Record,), {"name": full}))


def name_of(value: Any) -> str:
    """What a record stands for, ``"module.name"``; of anything else its type, which has no dot."""
    return value.name if isinstance(value, Record) else type(value).__name__


def as_bytes(value: Any) -> bytes:
    """Bytes, or what protocol 2, which has none, writes in their place; anything else is a ``TypeError``."""
    if isinstance(value, bytes):
        return value
    if name_of(value) == "_codecs.encode" and value.arguments[1:] == ("latin1",):
        return value.arguments[0].encode("latin1")
    raise TypeError(f"'{name_of(value)}' in place of bytes")
