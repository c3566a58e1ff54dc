"""How a waiting thread learns that the database changed, without asking all the time.

A commit becomes visible to others after its bytes were written, without a further write to the
file. So a writer touches the file's times after each commit, and on Linux waiting threads sleep on
exactly that event (inotify's IN_ATTRIB). Elsewhere they ask SQLite's change counter every few
milliseconds. A wake-up is only ever a hint to read again: it may come for nothing, several may come
as one, and the waiter reads again after `RECHECK_S` in any case.
"""

import contextlib
import ctypes
import os
import select
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

RECHECK_S: Final = 1.0
"""Longest sleep without reading again, in seconds: a killed writer may commit and not tell."""

_POLL_S: Final = 0.005
_IN_ATTRIB: Final = 0x4


class Wakeup(ABC):
    """Wakes one waiting thread; a change between two waits ends the second one at once."""

    @abstractmethod
    def wait(self, timeout_s: float) -> None:
        """Sleep until the database changed, `poke`, `close`, or the timeout (at most 1 s)."""

    @abstractmethod
    def poke(self) -> None:
        """End the wait, or the next one; from any thread."""

    @abstractmethod
    def close(self) -> None:
        """End the wait for good; from any thread, may be called twice."""


class MemoryWakeup(Wakeup):
    """Wakes on commits of a database in memory: all of them happen in this process.

    Args:
        changed: Notified after each commit.
        count: Returns how many commits there were.
    """

    def __init__(self, changed: threading.Condition, count: Callable[[], int]) -> None:
        self._changed = changed
        self._count = count
        self._seen = count()
        self._poked = False
        self._closed = False

    def wait(self, timeout_s: float) -> None:
        """Sleep; see `Wakeup`."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._poked or self._closed or self._count() != self._seen,
                max(0.0, min(timeout_s, RECHECK_S)),
            )
            self._poked = False
            self._seen = self._count()

    def poke(self) -> None:
        """End the wait; see `Wakeup`."""
        with self._changed:
            self._poked = True
            self._changed.notify_all()

    def close(self) -> None:
        """End the wait for good; see `Wakeup`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class FileWakeup(Wakeup):
    """Wakes on commits of any process to a file.

    Args:
        path: The database file.
        version: Returns a value that differs after each commit; asked where inotify is missing.
        use_inotify: False forces asking.
    """

    def __init__(
        self, path: str, version: Callable[[], object], *, use_inotify: bool = True
    ) -> None:
        self._path = path
        self._version = version
        self._seen = version()
        self._guard = threading.Lock()
        self._waiting = False
        self._closed = False
        self._poke_out, self._poke_in = os.pipe()
        os.set_blocking(self._poke_out, False)
        os.set_blocking(self._poke_in, False)
        self._inotify = _open_inotify() if use_inotify else -1
        self._poller = select.poll()
        self._poller.register(self._poke_out, select.POLLIN)
        if self._inotify >= 0:
            self._poller.register(self._inotify, select.POLLIN)
            self._watch()

    def wait(self, timeout_s: float) -> None:
        """Sleep; see `Wakeup`."""
        with self._guard:
            if self._closed:
                return
            self._waiting = True
        try:
            timeout_s = max(0.0, min(timeout_s, RECHECK_S))
            if self._watch():
                self._sleep(timeout_s)
            else:
                self._ask(timeout_s)
        finally:
            with self._guard:
                self._waiting = False
                if self._closed:
                    self._release()

    def _sleep(self, timeout_s: float) -> None:
        # Rounded up: poll() of 0 ms for the last fraction would spin.
        if not self._poller.poll(int(timeout_s * 1000 + 0.999)):
            return
        _drain(self._poke_out)
        _drain(self._inotify)

    def _ask(self, timeout_s: float) -> None:
        steps = max(1, int(timeout_s / _POLL_S))
        for _ in range(steps):
            version = self._version()
            if version != self._seen:
                self._seen = version
                return
            if self._poller.poll(int(_POLL_S * 1000)):
                _drain(self._poke_out)
                return

    def _watch(self) -> bool:
        """Watch the file that is at the path now: it may be another one than at the last wait."""
        return self._inotify >= 0 and _add_watch(self._inotify, self._path)

    def poke(self) -> None:
        """End the wait; see `Wakeup`."""
        with self._guard:
            if not self._closed:
                # A full pipe means that a poke is under way already.
                with contextlib.suppress(BlockingIOError):
                    os.write(self._poke_in, b"!")

    def close(self) -> None:
        """End the wait for good; see `Wakeup`."""
        with self._guard:
            if self._closed:
                return
            self._closed = True
            # Closed by the waiter itself: a descriptor closed under poll() could be another
            # file by the time it looks.
            if self._waiting:
                with contextlib.suppress(BlockingIOError):
                    os.write(self._poke_in, b"!")
            else:
                self._release()

    def _release(self) -> None:
        for number in (self._poke_out, self._poke_in, self._inotify):
            if number >= 0:
                os.close(number)
        self._poke_out = self._poke_in = self._inotify = -1


def announce(path: str) -> None:
    """Wake every thread of every process that waits for a change of this file."""
    # By path: opening and closing the file would drop SQLite's locks of this whole process.
    with contextlib.suppress(OSError):
        os.utime(path)


def _load_libc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    return libc if hasattr(libc, "inotify_init1") else None


_libc = _load_libc()


def _open_inotify() -> int:
    """Return a descriptor, or -1 where there is none (other systems, the user's limit is spent)."""
    return -1 if _libc is None else int(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))


def _add_watch(inotify: int, path: str) -> bool:
    if _libc is None:
        return False
    return int(_libc.inotify_add_watch(inotify, os.fsencode(path), _IN_ATTRIB)) >= 0


def _drain(number: int) -> bytes:
    taken = b""
    with contextlib.suppress(BlockingIOError):
        while chunk := os.read(number, 65536):
            taken += chunk
            if len(chunk) < 65536:
                break
    return taken
