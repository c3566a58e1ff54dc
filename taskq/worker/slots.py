"""Shared memory in which an executor says what it runs, so that its death can be charged exactly.

A slot holds the tag of the running task (0 for none), and on the monotonic clock in nanoseconds its
start and its last heartbeat. The executor writes, the hub reads; both map one file descriptor.
"""

import mmap
import os
import struct
import tempfile
import time

_SLOT = struct.Struct("<QQQ")
_BEAT = struct.Struct("<Q")
_BEAT_AT = 16


def open_memory(slots: int) -> int:
    """Return a file descriptor of zeroed memory for so many slots; the caller closes it."""
    size_bytes = _SLOT.size * slots
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("taskq-slots", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size_bytes)
    return fd


class Slots:
    """The slots of one executor, mapped into this process."""

    def __init__(self, fd: int, count: int) -> None:
        """Map the memory; `fd` may be closed afterwards."""
        self.count = count
        self._memory = mmap.mmap(fd, _SLOT.size * count)

    def start(self, index: int, tag: int) -> None:
        """Say that a task starts now."""
        now_ns = time.monotonic_ns()
        _SLOT.pack_into(self._memory, index * _SLOT.size, tag, now_ns, now_ns)

    def beat(self, index: int) -> None:
        """Say that the running task makes progress."""
        _BEAT.pack_into(self._memory, index * _SLOT.size + _BEAT_AT, time.monotonic_ns())

    def clear(self, index: int) -> None:
        """Say that the slot is free."""
        _SLOT.pack_into(self._memory, index * _SLOT.size, 0, 0, 0)

    def running(self) -> list[tuple[int, int]]:
        """Return (tag, start in monotonic nanoseconds) of every running task."""
        return [(tag, start) for tag, start, _ in _SLOT.iter_unpack(self._memory) if tag]

    def progress(self) -> list[tuple[int, int, int]]:
        """Return (tag, start, last heartbeat in monotonic nanoseconds) of every running task."""
        return [(tag, start, beat) for tag, start, beat in _SLOT.iter_unpack(self._memory) if tag]

    def close(self) -> None:
        """Unmap the memory."""
        self._memory.close()
