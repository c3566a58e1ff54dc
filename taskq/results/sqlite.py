"""Results in the embedded database, by default the file that the queue is in."""

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from taskq import clock
from taskq.embedded.database import open_database
from taskq.embedded.faults import Trouble
from taskq.embedded.location import parse_location
from taskq.embedded.schema import DEAD
from taskq.errors import ConfigError, ResultsUnavailable
from taskq.outcome import PENDING
from taskq.results import sqlite_cancels
from taskq.results.base import (
    Record,
    ResultStore,
    Write,
    encode_record,
    is_terminal,
    outranks,
)
from taskq.results.sqlite_watch import Watchers

_PENDING: Final = encode_record(Record(PENDING))
_PRUNE_ROWS: Final = 50

HEADS: Final = (
    "SELECT id, substr(record, 1, 5) FROM records "
    "WHERE id IN (SELECT value FROM json_each(?)) AND expires_ms > ?"
)
FETCH: Final = (
    "SELECT id, record FROM records WHERE id IN (SELECT value FROM json_each(?)) AND expires_ms > ?"
)
QUEUED: Final = (
    "SELECT DISTINCT id FROM messages "
    f"WHERE id IN (SELECT value FROM json_each(?)) AND state < {DEAD}"
)
PRUNE_RECORDS: Final = (
    "DELETE FROM records WHERE seq IN "
    "(SELECT seq FROM records WHERE expires_ms <= ? ORDER BY expires_ms LIMIT ?)"
)
PRUNE_STARTS: Final = (
    "DELETE FROM starts WHERE id IN "
    "(SELECT id FROM starts WHERE expires_ms <= ? ORDER BY expires_ms LIMIT ?)"
)
NOTES: Final = "SELECT name, value FROM notes WHERE kind = ?"
DROP_NOTE: Final = "DELETE FROM notes WHERE kind = ? AND name = ?"
PUT_NOTE: Final = "INSERT INTO notes (kind, name, value) VALUES (?, ?, ?)"
_PUT: Final = "INSERT OR REPLACE INTO records (id, record, expires_ms) VALUES (?, ?, ?)"
_COUNT: Final = (
    "INSERT INTO starts (id, count, expires_ms) VALUES (?1, ?4, ?2) ON CONFLICT (id) DO UPDATE "
    "SET count = iif(expires_ms <= ?3, ?4, count + ?4), expires_ms = ?2 RETURNING count"
)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except Trouble as trouble:
        raise ResultsUnavailable(trouble.detail) from trouble


class SqliteResults(ResultStore):
    """Records in a file; see `ResultStore`. One commit for each call that writes.

    In the queue's own file, an id without record whose message still waits reads as PENDING.

    Attributes:
        url: With an absolute path.
    """

    def __init__(self, url: str, timeout_s: float = 5.0) -> None:
        """Take the URL apart; the file is opened, or made, at first use.

        Args:
            url: `sqlite:///relative.db` or `sqlite:////absolute.db`.
            timeout_s: How long an operation may take, in seconds.

        Raises:
            ConfigError: If the URL names no file.
        """
        location = parse_location(url)
        self.url = location.url
        self._database = open_database(location)
        self._timeout_s = timeout_s
        self._watchers = Watchers(self._database, self.fetch)
        self._closed = False

    def covers(self, broker_url: str) -> bool:
        """Return whether the broker's messages are in this very database."""
        try:
            return parse_location(broker_url).url == self.url
        except ConfigError:
            return False

    def mark_pending(self, task_ids: Sequence[str], ttl_s: int) -> None:
        """Write PENDING where there is no record; see `ResultStore`."""
        now_ms = clock.now_ms()
        with self._writing() as connection:
            known = _heads(connection, task_ids, now_ms)
            fresh = [task_id for task_id in dict.fromkeys(task_ids) if task_id not in known]
            rows = [(task_id, _PENDING, now_ms + ttl_s * 1000) for task_id in fresh]
            connection.executemany(_PUT, rows)
            _prune(connection, PRUNE_RECORDS, now_ms, len(rows))

    def store(self, writes: Sequence[Write]) -> list[bool]:
        """Store records by the rules of finality; see `ResultStore`."""
        now_ms = clock.now_ms()
        taken: list[bool] = []
        rows: dict[str, tuple[str, bytes, int]] = {}
        with self._writing() as connection:
            heads = _heads(connection, [write.task_id for write in writes], now_ms)
            for write in writes:
                wins = _wins(heads.get(write.task_id), write.record)
                taken.append(wins)
                if wins:
                    heads[write.task_id] = write.record[:5]
                    expires_ms = now_ms + write.ttl_s * 1000
                    rows[write.task_id] = (write.task_id, write.record, expires_ms)
            # Replaced, not updated: a new number tells waiters that it is news.
            connection.executemany(_PUT, list(rows.values()))
            _prune(connection, PRUNE_RECORDS, now_ms, len(rows))
        return taken

    def fetch(self, task_ids: Sequence[str]) -> list[bytes | None]:
        """Return records, or PENDING for what is only queued; see `ResultStore`."""
        with _translated(), self._database.reading(self._timeout_s) as connection:
            found = _records(connection, task_ids)
        return [found.get(task_id) for task_id in task_ids]

    def fetch_news(
        self, task_ids: Sequence[str], after: int
    ) -> tuple[list[bytes | None], list[tuple[int, bytes]]]:
        """Return records and new cancel rules from one snapshot; see `ResultStore`."""
        with _translated(), self._database.reading(self._timeout_s) as connection:
            news = sqlite_cancels.rules_after(connection, after)
            found = _records(connection, task_ids)
        return [found.get(task_id) for task_id in task_ids], news

    def add_rule(self, rule: bytes, ends_ms: int) -> None:
        """Keep a cancel rule; see `ResultStore`."""
        with self._writing() as connection:
            sqlite_cancels.add_rule(connection, rule, ends_ms, clock.now_ms())

    def cancel(self, task_ids: Sequence[str], record: bytes, ttl_s: int) -> list[str | None]:
        """Cancel tasks that have not ended; see `ResultStore`."""
        with self._writing() as connection:
            return sqlite_cancels.cancel(connection, task_ids, record, ttl_s, clock.now_ms())

    def forget(self, task_ids: Sequence[str]) -> None:
        """Delete records; see `ResultStore`."""
        with self._writing() as connection:
            connection.execute(
                "DELETE FROM records WHERE id IN (SELECT value FROM json_each(?))",
                (json.dumps(list(task_ids)),),
            )

    def count_starts(self, task_ids: Sequence[str], ttl_s: int, by: int = 1) -> list[int]:
        """Count starts; see `ResultStore`."""
        now_ms = clock.now_ms()
        with self._writing() as connection:
            counts = [
                connection.execute(_COUNT, (task_id, now_ms + ttl_s * 1000, now_ms, by)).fetchall()
                for task_id in task_ids
            ]
            _prune(connection, PRUNE_STARTS, now_ms, len(counts))
        return [count for ((count,),) in counts]

    def notes(self, kind: str) -> dict[str, bytes]:
        """Return the notes of a kind; see `ResultStore`."""
        with _translated(), self._database.reading(self._timeout_s) as connection:
            return dict(connection.execute(NOTES, (kind,)))

    def put_note(self, kind: str, name: str, value: bytes | None) -> bool:
        """Set or remove a note; see `ResultStore`."""
        with self._writing() as connection:
            known = connection.execute(DROP_NOTE, (kind, name)).rowcount > 0
            if value is not None:
                connection.execute(PUT_NOTE, (kind, name, value))
        return known

    def watch(self, task_id: str, callback: Callable[[bytes], None]) -> Callable[[], None]:
        """Call back with the final record; see `ResultStore`."""
        return self._watchers.add(task_id, callback)

    def ping(self) -> float:
        """Return how long reading takes, in seconds."""
        began_s = clock.monotonic_s()
        with _translated(), self._database.reading(self._timeout_s):
            pass
        return clock.monotonic_s() - began_s

    def close(self) -> None:
        """End the watches and let go of the file; may be called twice."""
        if not self._closed:
            self._closed = True
            self._watchers.close()
            self._database.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with _translated(), self._database.writing(self._timeout_s) as connection:
            yield connection


def _records(connection: sqlite3.Connection, task_ids: Sequence[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = dict(
        connection.execute(FETCH, (json.dumps(list(task_ids)), clock.now_ms()))
    )
    missing = [task_id for task_id in task_ids if task_id not in found]
    if missing:
        for (task_id,) in connection.execute(QUEUED, (json.dumps(missing),)):
            found[task_id] = _PENDING
    return found


def _heads(
    connection: sqlite3.Connection, task_ids: Sequence[str], now_ms: int
) -> dict[str, bytes]:
    return dict(connection.execute(HEADS, (json.dumps(list(task_ids)), now_ms)))


def _wins(old: bytes | None, new: bytes) -> bool:
    """Return whether a record may replace another one (or its first 5 bytes)."""
    return old is None or not (is_terminal(old) or outranks(old, new))


def _prune(connection: sqlite3.Connection, statement: str, now_ms: int, written: int) -> None:
    # A few more than were written: it keeps up at any rate, and no call takes long.
    connection.execute(statement, (now_ms, 2 * written + _PRUNE_ROWS))
