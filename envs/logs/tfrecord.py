"""TFRecord files: records with their lengths and masked CRC-32C checksums (RFC 3720), without TensorFlow."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from policies.spec import Array, ContractError

POLYNOMIAL = 0x82F63B78  # Castagnoli's, reflected
MASK = 0xA282EAD8  # so that a checksum of data that hold checksums is no special case
HEADER, FOOTER = 12, 4  # bytes around the data of a record
LANES, SHORT = 1024, 4096  # pieces that are summed side by side, and bytes below which that does not pay
LARGEST = 1 << 31  # bytes of a record; protocol buffers cannot be longer


class Record(NamedTuple):
    """Data of a record and where in the file they begin, in bytes."""

    position: int
    data: bytes


def records(path: Path, *, check: bool = True) -> Iterator[Record]:
    """Read the records of a file one after the other.

    Args:
        path: An uncompressed TFRecord file.
        check: Whether the data are compared with their checksums; lengths always are.

    Raises:
        ContractError: There is no such file, it ends within a record, or a checksum does not fit.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise ContractError(f"{path} cannot be read ({error.strerror}); give a TFRecord file") from error
    with file:
        position = 0
        while header := file.read(HEADER):
            if len(header) < HEADER:
                raise _cut(path, position)
            (size,), (told,) = struct.unpack("<Q", header[:8]), struct.unpack("<I", header[8:])
            if masked(header[:8]) != told:
                raise ContractError(
                    f"{path} has no record at byte {position}: the checksum of the length does not fit; it is damaged, "
                    "compressed or no TFRecord file. Copy or unpack it again"
                )
            if size > LARGEST:
                raise ContractError(f"{path} has a record of {size} bytes at byte {position}; {LARGEST} are allowed")
            body = file.read(size + FOOTER)
            if len(body) < size + FOOTER:
                raise _cut(path, position)
            if check and masked(body[:size]) != struct.unpack("<I", body[size:])[0]:
                raise ContractError(
                    f"{path} is damaged: the record at byte {position} has another checksum; copy it again"
                )
            yield Record(position + HEADER, body[:size])
            position += HEADER + size + FOOTER


def masked(data: bytes) -> int:
    """The checksum of some bytes as TFRecord files keep it."""
    total = crc32c(data)
    return ((total >> 15 | total << 17) + MASK) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """CRC-32C of some bytes.

    Long data are cut into pieces that are summed side by side: a checksum is linear, so that those of the pieces can
    be moved to their places and added.
    """
    table = _table()
    if len(data) < SHORT:
        total, steps = 0xFFFFFFFF, table.tolist()
        for byte in data:
            total = steps[(total ^ byte) & 255] ^ (total >> 8)
        return total ^ 0xFFFFFFFF
    length = -(-len(data) // LANES)
    pieces = np.zeros(LANES * length, np.uint8)
    pieces[-len(data) :] = np.frombuffer(data, np.uint8)  # leading zeros change nothing
    pieces[-len(data) :][:4] ^= 255  # the same as to begin with all ones
    # The last 32 lanes are single bits that go the length of a piece: what moving a checksum does to each of them.
    lanes = np.concatenate([np.zeros(LANES, np.uint32), 1 << np.arange(32, dtype=np.uint32)])
    columns = np.concatenate([pieces.reshape(LANES, length).T, np.zeros((length, 32), np.uint8)], 1)
    for column in columns:
        lanes = table[lanes.astype(np.uint8) ^ column] ^ (lanes >> 8)
    total, moved = 0, lanes[LANES:].tolist()
    for piece in lanes[:LANES].tolist():
        place = piece
        for bit in range(32):
            if total >> bit & 1:
                place ^= moved[bit]
        total = place
    return total ^ 0xFFFFFFFF


@cache
def _table() -> Array:
    """What one byte does to a checksum ``(256,)``."""
    table: Array = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(POLYNOMIAL), np.uint32(0))
    return table


def _cut(path: Path, position: int) -> ContractError:
    return ContractError(f"{path} ends within the record at byte {position}; copy it again")
