"""A record in shared memory that is never read half written. numpy only."""

from __future__ import annotations

import ctypes
import zlib

import numpy as np

Memory = ctypes.Array  # of bytes, shared between processes
HEADER_BYTES = 16


class Slot:
    """One record in shared memory with one writer and one reader; the newest wins and neither waits.

    The sequence number is odd while the record is being written; the reader compares it before and after its copy. The
    checksum covers processors that reorder writes, as ARM does.

    Args:
        memory: Shared bytes, 16 more than the record.
        kind: Layout of the record.
    """

    def __init__(self, memory: Memory, kind: np.dtype) -> None:
        self._header = np.frombuffer(memoryview(memory), np.int64, count=2)  # sequence, checksum
        self._shared = np.frombuffer(memoryview(memory), np.uint8, offset=HEADER_BYTES)
        self._local = np.zeros(kind.itemsize, np.uint8)
        self._seen = 0
        self.record: np.void = self._local.view(kind)[0]
        """This process's copy: fill it before `publish`, use it after `refresh`."""

    @property
    def sequence(self) -> int:
        """Sequence number of the record that `refresh` copied."""
        return self._seen

    def publish(self) -> int:
        """Show the record to the other side and return its sequence number: 2, 4, ..."""
        self._header[0] += 1
        self._shared[:] = self._local
        self._header[1] = zlib.crc32(self._local.data)
        self._header[0] += 1
        return int(self._header[0])

    def refresh(self) -> bool:
        """Copy a new record from the other side; return whether there is a whole one."""
        sequence = int(self._header[0])
        if sequence % 2 or sequence == self._seen:
            return False
        self._local[:] = self._shared
        checksum = int(self._header[1])
        if int(self._header[0]) != sequence or checksum != zlib.crc32(self._local.data):
            return False
        self._seen = sequence
        return True
