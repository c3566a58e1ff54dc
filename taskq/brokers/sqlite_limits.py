"""Queues of the embedded database that are limited in length or in age: `Queue(max_length=...)`.

Whoever sends to such a queue, or takes from it, has to know of its limits: they are the app's, not
the file's. What is dropped becomes a dead letter in the same transaction.
"""

import json
from collections.abc import Iterable, Sequence
from sqlite3 import Connection
from typing import Any, Final

from taskq import clock
from taskq.brokers import sqlite_rows
from taskq.brokers.base import DEAD_QUEUE, BrokerOptions
from taskq.brokers.shapes import DROP_HEAD, QueueShape, base_part
from taskq.embedded.schema import DEAD, READY
from taskq.resend import EXPIRED_IN_QUEUE, QUEUE_FULL, dead

_SWEEP_S: Final = 0.5
_SWEEP_ROWS: Final = 500

_COUNT: Final = f"SELECT count(*) FROM (SELECT 1 FROM {sqlite_rows.READY_ROWS} AND queue = ?)"
_STAMP: Final = (
    "UPDATE messages SET due_ms = ? WHERE seq IN "
    f"(SELECT seq FROM {sqlite_rows.READY_ROWS} AND queue = ? AND due_ms = 0)"
)
_OLDEST: Final = (
    f"SELECT seq, deliveries, {sqlite_rows.CONTENT} FROM {sqlite_rows.READY_ROWS} AND queue = ? "
    "ORDER BY seq LIMIT ?"
)
_EXPIRED: Final = (
    f"SELECT seq, deliveries, {sqlite_rows.CONTENT} FROM {sqlite_rows.READY_ROWS} AND queue = ? "
    "AND due_ms BETWEEN 1 AND ? ORDER BY seq LIMIT ?"
)


class QueueLimits:
    """The limits that one app declares."""

    def __init__(self, options: BrokerOptions) -> None:
        self._prefix = options.prefix
        self._dead_ttl_ms = options.dead_ttl_s * 1000
        self._shapes = {options.prefix + s.name: s for s in options.queues if s.is_limited}
        self._swept_s = 0.0

    def _shape(self, queue: str) -> QueueShape | None:
        return self._shapes.get(queue) or self._shapes.get(base_part(queue))

    def admit(
        self, connection: Connection, rows: Sequence[tuple[Any, ...]], now_ms: int
    ) -> tuple[list[tuple[Any, ...]], set[int]]:
        """Return the rows to insert, and the indexes of those that find their queue full.

        Args:
            connection: In a write transaction.
            rows: As `sqlite_rows.row_of` makes them.
            now_ms: The moment of the send.
        """
        if not self._shapes:
            return list(rows), set()
        room: dict[str, int] = {}
        taken, full = [], set()
        for index, row in enumerate(rows):
            queue, state = row[0], row[1]
            shape = self._shape(queue) if state == READY else None
            if shape is None:
                taken.append(row)
                continue
            if shape.max_length and shape.overflow != DROP_HEAD:
                if queue not in room:
                    room[queue] = shape.max_length - self._count(connection, queue)
                if room[queue] <= 0:
                    full.add(index)
                    continue
                room[queue] -= 1
            ends_ms = now_ms + shape.message_ttl_ms if shape.message_ttl_ms else 0
            taken.append((queue, state, ends_ms, *row[3:]))
        return taken, full

    def overflow(self, connection: Connection, queues: Iterable[str], now_ms: int) -> None:
        """Bury the oldest messages of queues that hold more than they may."""
        if not self._shapes:
            return
        for queue in queues:
            shape = self._shape(queue)
            if shape is None or not shape.max_length or shape.overflow != DROP_HEAD:
                continue
            excess = self._count(connection, queue) - shape.max_length
            if excess > 0:
                rows = connection.execute(_OLDEST, (queue, excess)).fetchall()
                self._bury(connection, queue, rows, QUEUE_FULL, now_ms)

    def expire(self, connection: Connection, promoted: bool) -> None:
        """Bury what has waited for too long; looks twice a second at most.

        Args:
            connection: In a write transaction.
            promoted: Whether delayed messages have just become ready: their time begins now.
        """
        aged = [(name, shape) for name, shape in self._shapes.items() if shape.message_ttl_ms]
        now_s, now_ms = clock.monotonic_s(), clock.now_ms()
        if not aged or (not promoted and now_s - self._swept_s < _SWEEP_S):
            return
        self._swept_s = now_s
        for queue, shape in aged:
            if promoted:
                connection.execute(_STAMP, (now_ms + shape.message_ttl_ms, queue))
            rows = connection.execute(_EXPIRED, (queue, now_ms, _SWEEP_ROWS)).fetchall()
            self._bury(connection, queue, rows, EXPIRED_IN_QUEUE, now_ms)

    @staticmethod
    def _count(connection: Connection, queue: str) -> int:
        count: int = connection.execute(_COUNT, (queue,)).fetchone()[0]
        return count

    def _bury(
        self, connection: Connection, queue: str, rows: Sequence[Any], reason: str, now_ms: int
    ) -> None:
        if not rows:
            return
        where, ends_ms = self._prefix + DEAD_QUEUE, now_ms + self._dead_ttl_ms
        own_name = queue.removeprefix(self._prefix)
        letters = [
            dead(sqlite_rows.read_row(row).message, reason, own_name, attempts=0) for row in rows
        ]
        connection.execute(
            "DELETE FROM messages WHERE seq IN (SELECT value FROM json_each(?))",
            (json.dumps([row[0] for row in rows]),),
        )
        sqlite_rows.insert(
            connection, [sqlite_rows.row_of(where, DEAD, ends_ms, letter) for letter in letters]
        )
