"""Publish and subscribe in the embedded file: bindings are rows, and each match gets a copy."""

import json
import sqlite3
from collections.abc import Sequence
from typing import Final

from taskq.brokers import sqlite_rows
from taskq.brokers.base import Outgoing
from taskq.brokers.sqlite_leases import living
from taskq.topics import KEY, Binding, matches

_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS bindings (prefix TEXT NOT NULL, queue TEXT NOT NULL, "
    "task TEXT NOT NULL, pattern TEXT NOT NULL, headers TEXT, broadcast INTEGER NOT NULL, "
    "PRIMARY KEY (prefix, queue)) WITHOUT ROWID"
)


def bind(
    connection: sqlite3.Connection, prefix: str, bindings: Sequence[Binding], now_ms: int
) -> None:
    """Write bindings and make their queues, in the transaction that is open.

    Args:
        connection: Inside a write transaction.
        prefix: The broker's.
        bindings: One for each queue; it replaces the queue's last one.
        now_ms: The time, as epoch milliseconds.
    """
    connection.execute(_TABLE)
    for binding in bindings:
        headers = None if binding.headers is None else json.dumps(dict(binding.headers))
        connection.execute(
            "INSERT OR REPLACE INTO bindings VALUES (?, ?, ?, ?, ?, ?)",
            (prefix, binding.queue, binding.task, binding.pattern, headers, binding.broadcast),
        )
        connection.execute(sqlite_rows.ADD_QUEUE, (prefix + binding.queue, now_ms))


def routed(
    connection: sqlite3.Connection, prefix: str, items: Sequence[Outgoing]
) -> list[Outgoing]:
    """Return the copies of published messages, one for each queue that is bound to them.

    Queues of broadcasts go with their workers: those without one are removed here.
    """
    try:
        rows = connection.execute(
            "SELECT queue, task, pattern, headers, broadcast FROM bindings WHERE prefix = ?",
            (prefix,),
        ).fetchall()
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error):
            raise
        return []
    bindings = [
        Binding(queue, task, pattern, None if headers is None else json.loads(headers), bool(each))
        for queue, task, pattern, headers, each in rows
    ]
    if any(binding.broadcast for binding in bindings):
        bindings = _without_the_dead(connection, prefix, bindings)
    return [
        Outgoing(binding.queue, item.message)
        for item in items
        for binding in bindings
        if matches(binding, str(item.message.headers.get(KEY, item.topic)), item.message.headers)
    ]


def _without_the_dead(
    connection: sqlite3.Connection, prefix: str, bindings: Sequence[Binding]
) -> list[Binding]:
    heard = {name for queues in living(connection, prefix).values() for name in queues}
    kept = []
    for binding in bindings:
        inner = prefix + binding.queue
        if not binding.broadcast or inner in heard:
            kept.append(binding)
            continue
        connection.execute(
            "DELETE FROM bindings WHERE prefix = ? AND queue = ?", (prefix, binding.queue)
        )
        connection.execute("DELETE FROM messages WHERE queue = ?", (inner,))
        connection.execute("DELETE FROM queues WHERE name = ?", (inner,))
    return kept
