"""Events in the embedded file: a log of batches, read by any number of readers.

A named reader keeps its place in the file, and holds a lease so that one process at a time reads
under a name. The tables are made with the first event.
"""

import contextlib
import os
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Final

from taskq import clock
from taskq.brokers.base import Outgoing
from taskq.embedded.database import Database
from taskq.embedded.faults import Trouble
from taskq.errors import BrokerUnavailable
from taskq.events.feed import EventFeed

KEEP_MS: Final = 7 * 86_400_000
"""How long batches are kept, in milliseconds."""
KEEP_ROWS: Final = 100_000
"""How many batches are kept at most; beyond it the oldest go, read or not."""
LEASE_MS: Final = 10_000
"""How long a named reader is trusted after its last sign of life, in milliseconds."""
_PRUNE_EVERY: Final = 256
_ROWS: Final = 200

_TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS events (seq INTEGER PRIMARY KEY AUTOINCREMENT, "
    "prefix TEXT NOT NULL, at_ms INTEGER NOT NULL, body BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS event_readers (prefix TEXT NOT NULL, name TEXT NOT NULL, "
    "seq INTEGER NOT NULL, owner TEXT NOT NULL, until_ms INTEGER NOT NULL, "
    "PRIMARY KEY (prefix, name)) WITHOUT ROWID",
)
_INSERT: Final = "INSERT INTO events (prefix, at_ms, body) VALUES (?, ?, ?)"


def make_tables(connection: sqlite3.Connection) -> None:
    """Make the tables, in the transaction that is open."""
    for statement in _TABLES:
        connection.execute(statement)


def store(
    connection: sqlite3.Connection, prefix: str, items: Sequence[Outgoing], now_ms: int
) -> None:
    """Add batches to the log, in the transaction that is open.

    Args:
        connection: Inside a write transaction.
        prefix: The broker's.
        items: Whose bodies are batches.
        now_ms: The time, as epoch milliseconds.
    """
    for item in items:
        values = (prefix, now_ms, item.message.body)
        try:
            row = connection.execute(_INSERT, values).lastrowid
        except sqlite3.OperationalError as error:
            if "no such table" not in str(error):
                raise
            make_tables(connection)
            row = connection.execute(_INSERT, values).lastrowid
        if row and row % _PRUNE_EVERY == 0:
            prune(connection, row, now_ms)


def prune(connection: sqlite3.Connection, last: int, now_ms: int) -> None:
    """Remove batches that are too old or too many; `last` is the newest."""
    connection.execute(
        "DELETE FROM events WHERE seq <= ? OR (seq < ? AND at_ms < ?)",
        (last - KEEP_ROWS, last, now_ms - KEEP_MS),
    )


class SqliteFeed(EventFeed):
    """Reads the log; see `EventFeed`."""

    def __init__(self, database: Database, prefix: str, name: str, timeout_s: float) -> None:
        """Prepare.

        Args:
            database: Where the log is.
            prefix: The broker's.
            name: Under which the place is kept; empty: from now on, and nothing is kept.
            timeout_s: How long to wait for other writers, in seconds.
        """
        self.trouble = ""
        self.active = not name
        self._database = database
        self._prefix = prefix
        self._name = name
        self._owner = f"{os.getpid()}-{uuid.uuid4().hex}"
        self._timeout_s = timeout_s
        self._renew_ms = 0
        self._place = 0
        self._wakeup = database.wakeup()
        with self._translated(), database.writing(timeout_s, durable=False) as connection:
            make_tables(connection)
            if not name:
                self._place = _newest(connection)

    def get(self, timeout_s: float) -> list[tuple[Any, bytes]]:
        """See `EventFeed`."""
        deadline = clock.monotonic_s() + timeout_s
        while True:
            rows = self._read()
            left_s = deadline - clock.monotonic_s()
            if rows or left_s <= 0:
                return rows
            self._wakeup.wait(left_s)

    def ack(self, receipt: Any) -> None:
        """See `EventFeed`."""
        if not self._name:
            return
        with self._translated(), self._database.writing(self._timeout_s) as connection:
            connection.execute(
                "UPDATE event_readers SET seq = max(seq, ?) "
                "WHERE prefix = ? AND name = ? AND owner = ?",
                (receipt, self._prefix, self._name, self._owner),
            )

    def close(self) -> None:
        """See `EventFeed`."""
        self._wakeup.close()
        if not self._name:
            return
        with (
            contextlib.suppress(BrokerUnavailable),
            self._translated(),
            self._database.writing(self._timeout_s, durable=False) as connection,
        ):
            connection.execute(
                "UPDATE event_readers SET until_ms = 0 WHERE prefix = ? AND name = ? AND owner = ?",
                (self._prefix, self._name, self._owner),
            )

    def _read(self) -> list[tuple[Any, bytes]]:
        with self._translated():
            if self._name and not self._hold():
                return []
            with self._database.reading(self._timeout_s) as connection:
                rows = connection.execute(
                    "SELECT seq, body FROM events WHERE seq > ? AND prefix = ? "
                    "ORDER BY seq LIMIT ?",
                    (self._place, self._prefix, _ROWS),
                ).fetchall()
        if rows:
            self._place = rows[-1][0]
        return rows

    def _hold(self) -> bool:
        """Take or renew the lease; return whether this reader has it."""
        now_ms = clock.now_ms()
        if self.active and now_ms < self._renew_ms:
            return True
        with self._database.writing(self._timeout_s, durable=False) as connection:
            key = (self._prefix, self._name)
            row = connection.execute(
                "SELECT seq, owner, until_ms FROM event_readers WHERE prefix = ? AND name = ?", key
            ).fetchone()
            mine = row is not None and row[1] == self._owner
            free = row is None or mine or row[2] <= now_ms
            if free:
                place = row[0] if row is not None else 0
                connection.execute(
                    "INSERT OR REPLACE INTO event_readers VALUES (?, ?, ?, ?, ?)",
                    (*key, place, self._owner, now_ms + LEASE_MS),
                )
                self._renew_ms = now_ms + LEASE_MS // 4
                if not (mine and self.active):
                    self._place = place
            self.active = free
            self.trouble = "" if free else f"another process reads as {self._name}"
        return free

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except Trouble as trouble:
            raise BrokerUnavailable(trouble.detail) from trouble


def _newest(connection: sqlite3.Connection) -> int:
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'events'").fetchone()
    return int(row[0]) if row else 0
