"""Reads pickled logs without running them: plain containers, numbers, texts and numpy arrays, nothing else.

Arrays are read out of the inert records of `policies.pickles`. This module needs numpy only.
"""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from policies.pickles import MISREAD, Record, Unpickler, as_bytes, name_of
from policies.spec import Array, ContractError

KNOWN = re.compile(
    r"collections\.(OrderedDict|defaultdict|Counter)|_codecs\.encode"
    r"|numpy\.(ndarray|dtype|_?core\.(multiarray\.(_reconstruct|scalar)|numeric\._frombuffer))"
    r"|(builtins|__builtin__)\.(bool|bytearray|bytes|dict|float|frozenset|int|list|long|set|str)"
)
"""What numpy and the standard library write for plain data. None of it is run either."""
PLAIN = (bool, int, float, str, bytes, type(None))


class _Unpickler(Unpickler):
    known, kind = KNOWN, "log of plain data"
    remedy = "Do not use it, or convert it to plain containers where it comes from"


def read_pickle(path: Path) -> Any:
    """Read plain data from a pickle without running it.

    Args:
        path: A file of any pickle protocol.

    Returns:
        Containers, numbers, texts and numpy arrays; ordered dictionaries become ordinary ones.

    Raises:
        ContractError: There is no such file, it is damaged, or it names something that plain data do not need.
    """
    try:
        program = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise ContractError(f"{path} cannot be read ({error.strerror}); give a pickled log") from error
    root = _Unpickler(program, path).load()
    try:
        return _plain(root, {})
    except MISREAD as error:
        raise ContractError(
            f"{path} holds something that is not plain data, before byte {program.tell()}: {error!r}; convert it to "
            "lists, dictionaries and numpy arrays where it comes from"
        ) from error


def _plain(value: Any, known: dict[int, Any]) -> Any:
    """The value with records replaced by what they stand for; whatever is shared is converted once."""
    if type(value) in PLAIN:
        return value
    if id(value) not in known:
        known[id(value)] = _converted(value, known)
    return known[id(value)]


def _converted(value: Any, known: dict[int, Any]) -> Any:
    name = name_of(value)
    if name == "collections.Counter":
        return _plain(value.arguments[0], known)
    if type(value) is dict or name.startswith("collections."):
        return {_plain(key, known): _plain(item, known) for key, item in value.items()}
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(_plain(item, known) for item in value)
    if name.endswith((".set", ".frozenset")):
        return {_plain(item, known) for item in value.arguments[0]}
    if name.endswith((".bytes", ".bytearray")) or name in ("bytearray", "_codecs.encode"):
        return _bytes(value)
    if name.endswith("._reconstruct"):
        _, shape, dtype, fortran, data = value.state
        return _array(data, dtype, shape, "F" if fortran else "C", known)
    if name.endswith("._frombuffer"):
        data, dtype, shape, order = value.arguments
        return _array(data, dtype, shape, order, known)
    if name.endswith(".scalar"):
        return _array(value.arguments[1], value.arguments[0], (), "C", known)[()]
    raise TypeError(f"'{name}'")


def _array(data: Any, record: Record, shape: tuple[int, ...], order: str, known: dict[int, Any]) -> Array:
    """An array of numbers, texts, bytes or, from a list, of plain objects."""
    code = record.arguments[0]
    if re.fullmatch(r"O8?", code):
        flat = np.empty(len(data), object)
        for index, item in enumerate(data):
            flat[index] = _plain(item, known)
    elif re.fullmatch(r"[fiuc](1|2|4|8|16)|b1|[US]\d{1,6}", code) and record.state[1] in "<|=":
        content, dtype = _bytes(data), np.dtype(code)
        # Whatever is empty has no buffer to begin in.
        flat = (
            np.frombuffer(content, dtype).copy()
            if content
            else np.empty(math.prod(shape) * (not dtype.itemsize), dtype)
        )
    else:
        raise TypeError(f"numpy type '{record.state[1] if record.state else ''}{code}'")
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytearray):
        return bytes(value)
    if name_of(value).endswith((".bytes", ".bytearray")):
        return _bytes(value.arguments[0]) if value.arguments else b""
    return as_bytes(value)
