"""Shared memory in which an executor says what it runs, so that its death can be charged exactly.

A slot holds the tag of the running task (0 for none) and its start on the monotonic clock in
nanoseconds. The executor writes, the hub reads; both map one file descriptor.
"""

import mmap
import os
import struct
import tempfile
import time

_SLOT = struct.Struct("<QQ")


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
        _SLOT.pack_into(self._memory, index * 16, tag, time.monotonic_ns())

    def clear(self, index: int) -> None:
        """Say that the slot is free."""
        _SLOT.pack_into(self._memory, index * 16, 0, 0)

    def running(self) -> list[tuple[int, int]]:
        """Return (tag, start in monotonic nanoseconds) of every running task."""
        return [pair for pair in _SLOT.iter_unpack(self._memory) if pair[0]]

    def close(self) -> None:
        """Unmap the memory."""
        self._memory.close()
