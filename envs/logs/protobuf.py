"""The wire format of protocol buffers: just enough to read fields by number and to write a few."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from policies.spec import Array

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # kinds of fields
SIZES = {FIXED64: 8, FIXED32: 4}
LONGEST = 10  # bytes of a number


class WireError(ValueError):
    """Bytes are no message; the position is that in the data that were given."""

    def __init__(self, what: str, position: int) -> None:
        super().__init__(what)
        self.position = position


class Field(NamedTuple):
    """One field of a message.

    Args:
        number: Which field.
        kind: One of `VARINT`, `FIXED64`, `BYTES`, `FIXED32`.
        value: The number of a `VARINT`, 0 of others.
        begin: Where its bytes begin.
        end: Where they end.
    """

    number: int
    kind: int
    value: int
    begin: int
    end: int


def fields(data: bytes, begin: int = 0, end: int | None = None) -> Iterator[Field]:
    """The fields of a message in the order of the file; unknown ones are for the caller to leave out.

    Args:
        data: Bytes with the message.
        begin: Where it begins in them.
        end: Where it ends; with the data by default.

    Raises:
        WireError: The bytes are no message.
    """
    end = len(data) if end is None else end
    while begin < end:
        tag, start = _varint(data, begin, end)
        number, kind = tag >> 3, tag & 7
        value, stop = 0, start
        if kind == VARINT:
            value, stop = _varint(data, start, end)
        elif kind == BYTES:
            size, start = _varint(data, start, end)
            stop = start + size
        elif kind in SIZES:
            stop = start + SIZES[kind]
        else:
            raise WireError(f"there is no kind {kind} of fields", begin)
        if not number or stop > end:
            raise WireError(f"field {number} does not fit into its message", begin)
        yield Field(number, kind, value, start, stop)
        begin = stop


def _varint(data: bytes, begin: int, end: int) -> tuple[int, int]:
    """A number, and where it ends."""
    value = 0
    for index in range(min(LONGEST, end - begin)):
        byte = data[begin + index]
        value |= (byte & 127) << 7 * index
        if byte < 128:
            return value & 0xFFFFFFFFFFFFFFFF, begin + index + 1
    raise WireError("a number does not end", begin)


def require(field: Field, *kinds: int) -> None:
    """Require that a field is of a kind.

    Raises:
        WireError: It is not.
    """
    if field.kind not in kinds:
        raise WireError(f"field {field.number} is of kind {field.kind}, needed is {kinds}", field.begin)


def read_text(data: bytes, field: Field) -> str:
    """The text of a field."""
    require(field, BYTES)
    try:
        return data[field.begin : field.end].decode()
    except UnicodeDecodeError as error:
        raise WireError(f"field {field.number} is no text", field.begin) from error


def read_floats(data: bytes, field: Field) -> Array:
    """Numbers ``(N,)`` float32 of a field that holds one or, packed, several of them."""
    require(field, BYTES, FIXED32)
    if (field.end - field.begin) % 4:
        raise WireError(f"field {field.number} holds no whole numbers of 4 bytes", field.begin)
    return np.frombuffer(data, "<f4", (field.end - field.begin) // 4, field.begin).astype(np.float32)


def number(field: int, value: int) -> bytes:
    """Encode a field with a number that is not negative."""
    return _encoded(field << 3 | VARINT) + _encoded(value)


def blob(field: int, value: bytes | str) -> bytes:
    """Encode a field with bytes, a text or another message."""
    value = value.encode() if isinstance(value, str) else value
    return _encoded(field << 3 | BYTES) + _encoded(len(value)) + value


def packed(field: int, values: Array) -> bytes:
    """Encode a field with packed numbers ``(N,)`` float32."""
    return blob(field, struct.pack(f"<{len(values)}f", *values))


def _encoded(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
