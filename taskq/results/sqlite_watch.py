"""Waiters for results in the embedded database: one thread for any number of them."""

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Final

from taskq import clock
from taskq.embedded.database import Database
from taskq.embedded.forks import tell_of_forks
from taskq.embedded.wakeup import Wakeup
from taskq.errors import TaskqError
from taskq.results.base import is_terminal

log = logging.getLogger("taskq.results.sqlite")

Callback = Callable[[bytes], None]

NEWER: Final = "SELECT seq, id, record FROM records WHERE seq > ? ORDER BY seq LIMIT 1000"
_REREAD_S: Final = 3.0
_LINGER_S: Final = 2.0
_CHUNK: Final = 500


class Watchers:
    """Calls back when records become final.

    The thread reads only what was written since it last looked (records are numbered in the order
    of their commits), so that thousands of waiters cost no more than one. It ends when nobody has
    waited for a while.

    Args:
        database: Where records are.
        fetch: Returns the records of ids: `ResultStore.fetch`.
    """

    def __init__(
        self, database: Database, fetch: Callable[[Sequence[str]], list[bytes | None]]
    ) -> None:
        self._database = database
        self._fetch = fetch
        self.after_fork_in_child()
        tell_of_forks(self)

    def before_fork(self) -> None:
        """Let no thread be in the middle of a change."""
        self._guard.acquire()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._guard.release()

    def after_fork_in_child(self) -> None:
        """Begin without watches: they are the parent's."""
        self._guard = threading.Lock()
        self._watches: dict[str, list[Callback]] = {}
        self._fresh: list[str] = []
        self._thread: threading.Thread | None = None
        self._wakeup: Wakeup | None = None
        self._closed = False

    def add(self, task_id: str, callback: Callback) -> Callable[[], None]:
        """Watch one id; returns what ends the watch."""
        with self._guard:
            self._watches.setdefault(task_id, []).append(callback)
            self._fresh.append(task_id)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="taskq-sqlite-results", daemon=True
                )
                self._thread.start()
            elif self._wakeup is not None and len(self._fresh) == 1:
                self._wakeup.poke()
        return lambda: self._remove(task_id, callback)

    def close(self) -> None:
        """End all watches and the thread."""
        with self._guard:
            self._closed = True
            self._watches.clear()
            thread = self._thread
            if self._wakeup is not None:
                self._wakeup.poke()
        if thread is not None and thread is not threading.current_thread():
            thread.join(5.0)
        with self._guard:
            self._closed = False

    def _remove(self, task_id: str, callback: Callback) -> None:
        with self._guard:
            callbacks = self._watches.get(task_id, [])
            if callback in callbacks:
                callbacks.remove(callback)
            if not callbacks:
                self._watches.pop(task_id, None)

    def _run(self) -> None:
        last, idle_since_s, read_s = -1, clock.monotonic_s(), 0.0
        while not self._may_end(idle_since_s):
            pause_s = 1.0
            try:
                if self._wakeup is None:
                    self._open()
                if last < 0:
                    last = self._last()
                self._fire(self._read(self._take_fresh()))
                last = self._follow(last)
                now_s = clock.monotonic_s()
                if now_s - read_s >= _REREAD_S:
                    read_s = now_s
                    last = min(last, self._last())
                    self._fire(self._read(list(self._watches)))
            except TaskqError as error:
                # Waiters have timeouts of their own; the store may come back before.
                log.debug("watching failed reason=%s", error)
                pause_s = 0.2
                read_s = 0.0
            # A fault in here must not leave waiters without their results.
            except Exception:
                log.exception("watching results failed; it goes on")
                read_s = 0.0
            if self._watches:
                idle_since_s = clock.monotonic_s()
            self._sleep(pause_s)

    def _open(self) -> None:
        wakeup = self._database.wakeup()
        with self._guard:
            self._wakeup = wakeup

    def _sleep(self, pause_s: float) -> None:
        with self._guard:
            wakeup = None if self._fresh else self._wakeup
        if wakeup is not None:
            wakeup.wait(pause_s)
        elif self._wakeup is None:
            threading.Event().wait(pause_s)

    def _may_end(self, idle_since_s: float) -> bool:
        """Return whether nobody waits; then the thread is already signed off."""
        with self._guard:
            lingers = clock.monotonic_s() - idle_since_s < _LINGER_S and not self._closed
            if self._watches or lingers:
                return False
            self._thread = None
            wakeup, self._wakeup = self._wakeup, None
        if wakeup is not None:
            wakeup.close()
        return True

    def _take_fresh(self) -> list[str]:
        with self._guard:
            fresh, self._fresh = self._fresh, []
        return fresh

    def _last(self) -> int:
        with self._database.reading(1.0) as connection:
            return last_number(connection)

    def _read(self, task_ids: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        for chunk in _chunks(task_ids):
            for task_id, record in zip(chunk, self._fetch(chunk), strict=True):
                if record is not None:
                    yield task_id, record

    def _follow(self, last: int) -> int:
        """Fire what was written after a number, and return the new last number."""
        while True:
            with self._database.reading(1.0) as connection:
                rows = connection.execute(NEWER, (last,)).fetchall()
            if not rows:
                return last
            last = rows[-1][0]
            self._fire((task_id, record) for _, task_id, record in rows)

    def _fire(self, records: Iterable[tuple[str, bytes]]) -> None:
        for task_id, record in records:
            if not is_terminal(record):
                continue
            with self._guard:
                callbacks = self._watches.pop(task_id, [])
            for callback in callbacks:
                try:
                    callback(record)
                # One waiter's fault is not another's.
                except Exception:
                    log.exception("a waiter's callback failed task=%s", task_id)


def last_number(connection: sqlite3.Connection) -> int:
    """Return the highest number that a record ever had."""
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'records'").fetchone()
    return int(row[0]) if row else 0


def _chunks(items: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk
