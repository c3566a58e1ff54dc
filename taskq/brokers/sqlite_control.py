"""Control requests and their answers as rows that live for as long as somebody waits."""

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgpack

from taskq import clock
from taskq.brokers.sqlite_leases import living
from taskq.embedded.database import Database

NEW_REQUESTS: Final = (
    "SELECT seq, request FROM requests WHERE seq > ? AND prefix = ? AND ends_ms > ? ORDER BY seq"
)


def last_request(connection: sqlite3.Connection) -> int:
    """Return the number that later requests lie above."""
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'requests'").fetchone()
    return int(row[0]) if row else 0


def new_requests(
    connection: sqlite3.Connection, after: int, prefix: str
) -> list[tuple[int, dict[str, Any]]]:
    """Return the requests above a number: [(number, request)]."""
    rows = connection.execute(NEW_REQUESTS, (after, prefix, clock.now_ms())).fetchall()
    return [(seq, msgpack.unpackb(packed)) for seq, packed in rows]


def write_replies(
    connection: sqlite3.Connection, owner: int, replies: Sequence[tuple[int, Mapping[str, Any]]]
) -> None:
    """Write answers; an empty one says that nothing will come from this consumer.

    An answer to a request that is over is dropped.
    """
    connection.executemany(
        "INSERT OR REPLACE INTO replies (request, owner, reply) "
        "SELECT ?, ?, ? WHERE EXISTS (SELECT 1 FROM requests WHERE seq = ?)",
        [
            (seq, owner, msgpack.packb(dict(reply), default=str) if reply else None, seq)
            for seq, reply in replies
        ],
    )


def ask(
    database: Database, prefix: str, request: Mapping[str, Any], timeout_s: float, lock_s: float
) -> list[dict[str, Any]]:
    """Write a request, and collect answers until all living consumers gave theirs, or the timeout.

    Args:
        database: Where.
        prefix: Whom: consumers with this prefix.
        request: Plain msgpack data.
        timeout_s: How long to collect, in seconds.
        lock_s: How long to wait for other writers, in seconds.

    Raises:
        Trouble: If the database cannot be used.
        ConfigError: If the file is not usable.
    """
    deadline = clock.monotonic_s() + timeout_s
    # Awake before the first answer can come.
    wakeup = database.wakeup()
    number = 0
    try:
        with database.writing(lock_s, durable=False) as connection:
            expected = set(living(connection, prefix))
            number = _put(connection, prefix, request, timeout_s)
        while True:
            with database.reading(lock_s) as connection:
                rows = connection.execute(
                    "SELECT owner, reply FROM replies WHERE request = ?", (number,)
                ).fetchall()
            left_s = deadline - clock.monotonic_s()
            if left_s <= 0 or expected <= {owner for owner, _ in rows}:
                return [msgpack.unpackb(reply) for _, reply in rows if reply is not None]
            wakeup.wait(left_s)
    finally:
        wakeup.close()
        if number:
            with database.writing(lock_s, durable=False) as connection:
                _remove(connection, number)


def _put(
    connection: sqlite3.Connection, prefix: str, request: Mapping[str, Any], timeout_s: float
) -> int:
    now_ms = clock.now_ms()
    # What askers that were killed left behind.
    over = connection.execute("SELECT seq FROM requests WHERE ends_ms < ?", (now_ms - 60_000,))
    for (seq,) in over.fetchall():
        _remove(connection, seq)
    cursor = connection.execute(
        "INSERT INTO requests (prefix, ends_ms, request) VALUES (?, ?, ?)",
        (prefix, now_ms + round(timeout_s * 1000), msgpack.packb(dict(request))),
    )
    return int(cursor.lastrowid or 0)


def _remove(connection: sqlite3.Connection, number: int) -> None:
    connection.execute("DELETE FROM requests WHERE seq = ?", (number,))
    connection.execute("DELETE FROM replies WHERE request = ?", (number,))
