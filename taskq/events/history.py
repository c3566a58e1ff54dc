"""The history: events in an SQLite file, found by task, pruned by age, number and size.

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

from taskq.brokers.base import Broker
from taskq.errors import ConfigError, DecodeError
from taskq.events.bus import Recorder
from taskq.events.feed import EventFeed
from taskq.events.schema import Event, read_batch
from taskq.events.silence import Silence

MAX_AGE_S: Final = 30 * 86_400.0
MAX_EVENTS: Final = 10_000_000
MAX_BYTES: Final = 10_000_000_000
VERSION: Final = 1
"""Of the file's tables; a later taskq may write another one."""
READER: Final = "history"
"""Under this name the history reads the broker's events."""
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
        self,
        path: str,
        *,
        max_age_s: float = MAX_AGE_S,
        max_events: int = MAX_EVENTS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """Open the file, or make it.

        Args:
            path: Where.
            max_age_s: Older events are removed, in seconds.
            max_events: Beyond this the oldest are removed.
            max_bytes: Beyond this size of the file the oldest are removed.

        Raises:
            ConfigError: If it cannot be used.
        """
        self.path = path
        self.unreadable = 0
        self._max_age_s = max_age_s
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._added = 0
        self._silence = Silence()
        self._recorder = Recorder("history")
        try:
            self._connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
            # Before the first table, or it has no effect: what is removed gives its space back.
            self._connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version > VERSION:
                raise ConfigError(
                    f"the history {path} was written by a later taskq (version {version}, this "
                    f"one reads {VERSION}); use that one, or another file"
                )
            self._connection.executescript(f"{_TABLES}PRAGMA user_version = {VERSION};")
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
        batches, added = self._read(feed, timeout_s)
        if not feed.active:
            self._silence.forgive()
        elif not batches:
            added += self._tell_lost()
        return added

    def _tell_lost(self) -> int:
        """Note the workers that were not heard of for too long."""
        for data in self._silence.lost():
            self._recorder.tell("worker.lost", data)
        item = self._recorder.take()
        return 0 if item is None else self.add(read_batch(item.message.body))

    def _read(self, feed: EventFeed, timeout_s: float) -> tuple[int, int]:
        """Return how many batches came, and how many events of them were new."""
        batches = feed.get(timeout_s)
        events: list[Event] = []
        for _, body in batches:
            try:
                events += read_batch(body)
            except DecodeError:
                self.unreadable += 1
        added = self.add(events) if events else 0
        self._silence.seen(events)
        if batches:
            feed.ack(batches[-1][0])
        return len(batches), added

    def catch_up(self, feed: EventFeed) -> int:
        """Store what waits for a reader now; return how many events were new."""
        total = 0
        while True:
            # Not by what is new: behind batches that came twice others may wait.
            batches, added = self._read(feed, _QUIET_S)
            total += added
            if not batches:
                return total

    def life(self, task_id: str) -> list[Event]:
        """Return the events of a task, of its attempts and of what it began, oldest first.

        Args:
            task_id: Id of the task.
        """
        own = list(self._select("WHERE task_id = ?", (task_id,)))
        root_id = next((event.root_id for event in own), task_id)
        family = list(self._select("WHERE root_id = ?", (root_id,)))
        if root_id != task_id:
            family = _descendants(task_id, family)
        return sorted([*own, *family], key=lambda e: (e.time_us, e.source, e.sequence))

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

    @property
    def size_bytes(self) -> int:
        """How much of the file is in use; what lies beside it until it is merged not counted."""
        pragmas = ("page_count", "freelist_count", "page_size")
        pages, free, size_bytes = (
            self._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas
        )
        return int((pages - free) * size_bytes)

    def prune(self) -> int:
        """Remove what is too old or too much; return how many events went."""
        oldest_us = time.time_ns() // 1000 - round(self._max_age_s * 1e6)
        total = 0
        while True:
            too_large = self.size_bytes > self._max_bytes
            with self._transaction() as connection:
                first, last = connection.execute(
                    "SELECT coalesce(min(seq), 0), coalesce(max(seq), 0) FROM events"
                ).fetchone()
                share = max(1, (last - first + 1) // 20)
                upto = first + min(share, _PRUNE_ROWS) if too_large and last else 0
                removed = connection.execute(
                    "DELETE FROM events WHERE seq IN (SELECT seq FROM events "
                    "WHERE seq <= ? UNION SELECT seq FROM events WHERE time_us < ? LIMIT ?)",
                    (max(last - self._max_events, upto), oldest_us, _PRUNE_ROWS),
                ).rowcount
            total += removed
            if not removed or (removed < _PRUNE_ROWS and not too_large):
                break
        if total:
            # As a script: `execute` would stop after the first page.
            self._connection.executescript("PRAGMA incremental_vacuum")
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


def _descendants(task_id: str, events: Sequence[Event]) -> list[Event]:
    """Return the events of what a task began, and of what that began, out of those of its root."""
    children: dict[str, set[str]] = {}
    for event in events:
        parent_id = event.data.get("parent_id")
        if isinstance(parent_id, str):
            children.setdefault(parent_id, set()).add(event.task_id)
    found: set[str] = set()
    waiting = [task_id]
    while waiting:
        fresh = children.get(waiting.pop(), set()) - found
        found |= fresh
        waiting += fresh
    found.discard(task_id)
    return [event for event in events if event.task_id in found]


def replay(broker: Broker, since_us: int, until_us: int, path: str = "") -> Iterator[Event]:
    """Yield the events of a span of time out of a broker's history, oldest first.

    Args:
        broker: Whose; an embedded one's history is brought up to date before.
        since_us: From this moment on, as epoch microseconds.
        until_us: Before this moment.
        path: The file; see `history_path` for the default.

    Raises:
        ConfigError: If the file cannot be used.
    """
    history = History(path or history_path(broker.url))
    try:
        if broker.url.startswith("sqlite:"):
            with contextlib.closing(broker.events(READER)) as feed:
                history.catch_up(feed)
        yield from history.between(since_us, until_us)
    finally:
        history.close()


def history_path(broker_url: str) -> str:
    """Return where the history of a broker is by default: beside an embedded file.

    Args:
        broker_url: The broker's, with an absolute path.
    """
    if broker_url.startswith("sqlite:///"):
        path = broker_url.removeprefix("sqlite:///").partition("?")[0]
        return f"{path}-history"
    return str(Path("taskq-history.db").absolute())
