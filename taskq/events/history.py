"""The history: events in an SQLite file of their own, found by task, pruned by age and number.

Events that come twice are recognised by their source's watermark, which is kept in the same
transaction; so a recorder that was killed goes on without duplicates.
"""

import contextlib
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgpack

from taskq.errors import ConfigError, DecodeError
from taskq.events.feed import EventFeed
from taskq.events.schema import Event, read_batch

MAX_AGE_S: Final = 30 * 86_400.0
MAX_EVENTS: Final = 10_000_000
_BUSY_S: Final = 10.0
_PRUNE_EVERY: Final = 20_000
_PRUNE_ROWS: Final = 20_000
_QUIET_S: Final = 0.2

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS sources (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, last INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY, source INTEGER NOT NULL, number INTEGER NOT NULL, type TEXT NOT NULL,
    time_us INTEGER NOT NULL, task_id TEXT, root_id TEXT, data BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS events_task ON events (task_id) WHERE task_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS events_root ON events (root_id) WHERE root_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS events_time ON events (time_us);
"""
_SELECT: Final = (
    "SELECT name, number, type, time_us, data FROM events JOIN sources ON sources.id = source"
)


class History:
    """Events in a file; one process writes, any number read.

    Attributes:
        path: The file.
        unreadable: Batches that were no events; they are left out.
    """

    def __init__(
        self, path: str, *, max_age_s: float = MAX_AGE_S, max_events: int = MAX_EVENTS
    ) -> None:
        """Open the file, or make it.

        Args:
            path: Where.
            max_age_s: Older events are removed, in seconds.
            max_events: Beyond this the oldest are removed.

        Raises:
            ConfigError: If it cannot be used.
        """
        self.path = path
        self.unreadable = 0
        self._max_age_s = max_age_s
        self._max_events = max_events
        self._added = 0
        try:
            self._connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.executescript(_TABLES)
        except sqlite3.Error as error:
            raise ConfigError(f"the history {path} cannot be used: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def add(self, events: Iterable[Event]) -> int:
        """Store events, but those that are here already; return how many were new."""
        with self._transaction() as connection:
            rows = [
                (source, e.sequence, e.type, e.time_us, *_ids(e), msgpack.packb(dict(e.data)))
                for source, e in self._fresh(connection, events)
            ]
            connection.executemany(
                "INSERT INTO events (source, number, type, time_us, task_id, root_id, data) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
        self._added += len(rows)
        if self._added >= _PRUNE_EVERY:
            self._added = 0
            self.prune()
        return len(rows)

    @staticmethod
    def _fresh(
        connection: sqlite3.Connection, events: Iterable[Event]
    ) -> Iterator[tuple[int, Event]]:
        known: dict[str, tuple[int, int]] = {}
        for event in events:
            found = known.get(event.source)
            if found is None:
                connection.execute(
                    "INSERT OR IGNORE INTO sources (name, last) VALUES (?, 0)", (event.source,)
                )
                query = "SELECT id, last FROM sources WHERE name = ?"
                found = connection.execute(query, (event.source,)).fetchone()
            source, last = found
            if event.sequence > last:
                last = event.sequence
                yield source, event
            known[event.source] = source, last
        connection.executemany(
            "UPDATE sources SET last = ? WHERE id = ?",
            [(last, source) for source, last in known.values()],
        )

    def read(self, feed: EventFeed, timeout_s: float) -> int:
        """Take what a feed has, store it, and let go of it there; return how many were new.

        Args:
            feed: A named reader.
            timeout_s: How long to wait for the first batch, in seconds.

        Raises:
            ConfigError: If the broker refuses for good.
            BrokerUnavailable: If the embedded file cannot be read.
        """
        batches = feed.get(timeout_s)
        events: list[Event] = []
        for _, body in batches:
            try:
                events += read_batch(body)
            except DecodeError:
                self.unreadable += 1
        added = self.add(events) if events else 0
        if batches:
            feed.ack(batches[-1][0])
        return added

    def catch_up(self, feed: EventFeed) -> int:
        """Store what waits for a reader now; return how many events were new."""
        total = 0
        while True:
            added = self.read(feed, _QUIET_S)
            total += added
            if not added:
                return total

    def life(self, task_id: str) -> list[Event]:
        """Return the events of a task, of its attempts and of what it began, oldest first.

        Args:
            task_id: Id of the task.
        """
        where = "WHERE seq IN (SELECT seq FROM events WHERE task_id = ? UNION ALL "
        where += "SELECT seq FROM events WHERE root_id = ?) ORDER BY time_us, source, number"
        return list(self._select(where, (task_id, task_id)))

    def between(self, since_us: int, until_us: int) -> Iterator[Event]:
        """Yield the events of a span of time, oldest first.

        Args:
            since_us: From this moment on, as epoch microseconds.
            until_us: Before this moment.
        """
        where = "WHERE time_us >= ? AND time_us < ? ORDER BY time_us, source, number"
        return self._select(where, (since_us, until_us))

    def _select(self, where: str, values: Sequence[Any]) -> Iterator[Event]:
        for source, number, kind, time_us, data in self._connection.execute(
            f"{_SELECT} {where}", values
        ):
            yield Event(source, number, kind, time_us, msgpack.unpackb(data, strict_map_key=False))

    def count(self) -> int:
        """Return how many events there are."""
        (count,) = self._connection.execute("SELECT count(*) FROM events").fetchone()
        return int(count)

    def prune(self) -> int:
        """Remove what is too old or too much; return how many events went."""
        oldest_us = time.time_ns() // 1000 - round(self._max_age_s * 1e6)
        total = 0
        while True:
            with self._transaction() as connection:
                (last,) = connection.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()
                removed = connection.execute(
                    "DELETE FROM events WHERE seq IN (SELECT seq FROM events "
                    "WHERE seq <= ? OR time_us < ? ORDER BY seq LIMIT ?)",
                    (last - self._max_events, oldest_us, _PRUNE_ROWS),
                ).rowcount
            total += removed
            if removed < _PRUNE_ROWS:
                return total

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise ConfigError(f"the history {self.path} cannot be written: {error}") from error


def _ids(event: Event) -> tuple[str | None, str | None]:
    """Return task and root id; the root only where it is another, so that its index is small."""
    task_id = event.task_id or None
    root_id = event.root_id if event.root_id != task_id else None
    return task_id, root_id or None


def history_path(broker_url: str) -> str:
    """Return where the history of a broker is by default: beside an embedded file.

    Args:
        broker_url: The broker's, with an absolute path.
    """
    if broker_url.startswith("sqlite:///"):
        path = broker_url.removeprefix("sqlite:///").partition("?")[0]
        return f"{path}-history"
    return str(Path("taskq-history.db").absolute())
