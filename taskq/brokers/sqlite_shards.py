"""Sharded queues in the embedded file: one layout at a time, and the move to another."""

import sqlite3
from collections.abc import Iterable
from typing import Any

import msgpack

from taskq import clock
from taskq.brokers import sqlite_rows
from taskq.brokers.shapes import parse_shard, shard_for, shard_name, shards_changed
from taskq.brokers.sqlite_leases import living
from taskq.embedded.schema import DELAYED, READY
from taskq.errors import ConfigError
from taskq.message import SHARD_KEY

_NAMES = "SELECT name FROM queues WHERE name > ? AND name < ?"
_ROWS = (
    "SELECT seq, id, headers FROM messages "
    f"WHERE queue = ? AND state IN ({READY}, {DELAYED}) ORDER BY seq"
)


def check_layout(connection: sqlite3.Connection, prefix: str, names: Iterable[str]) -> None:
    """Refuse shards of another number than those that are there.

    Args:
        connection: In a transaction.
        prefix: Of every queue.
        names: With prefix; those that are no shards are left alone.

    Raises:
        ShardsChanged: If a queue has another number of shards.
    """
    wanted = {found[:2] for name in names if (found := parse_shard(name)) is not None}
    for queue, count in wanted:
        for other in _counts(connection, queue) - {count}:
            raise shards_changed(queue.removeprefix(prefix), count, other)


def _counts(connection: sqlite3.Connection, queue: str) -> set[int]:
    found = connection.execute(_NAMES, (f"{queue}.shard.", f"{queue}.shard/"))
    parts = [parse_shard(name) for (name,) in found]
    return {part[1] for part in parts if part is not None and part[0] == queue}


def reshard(connection: sqlite3.Connection, prefix: str, queue: str, count: int) -> int:
    """Move what waits in a queue's shards into `count` others, in order; return how much.

    Args:
        connection: In a write transaction, so that nobody sends or takes in between.
        prefix: Of every queue.
        queue: Name without prefix.
        count: The new number of shards.

    Raises:
        ConfigError: If workers still consume the old ones.
    """
    whole = prefix + queue
    old = [
        shard_name(whole, there, index)
        for there in sorted(_counts(connection, whole) - {count})
        for index in range(there)
    ]
    busy = [name for names in living(connection, prefix).values() for name in names if name in old]
    if busy:
        raise ConfigError(f"workers still consume queue {queue}; stop them, then run this again")
    moved = 0
    for name in old:
        for seq, task_id, headers in connection.execute(_ROWS, (name,)).fetchall():
            place = shard_for(whole, _key(headers, task_id), count)
            connection.execute("UPDATE messages SET queue = ? WHERE seq = ?", (place, seq))
            moved += 1
        connection.execute("DELETE FROM queues WHERE name = ?", (name,))
    fresh = [(shard_name(whole, count, index), clock.now_ms()) for index in range(count)]
    connection.executemany(sqlite_rows.ADD_QUEUE, fresh)
    return moved


def _key(headers: bytes | None, task_id: str) -> str:
    try:
        table: Any = msgpack.unpackb(headers) if headers else {}
    # A damaged row is moved too; it becomes a dead letter where it is delivered.
    except Exception:
        table = {}
    key = table.get(SHARD_KEY) if isinstance(table, dict) else None
    return key if isinstance(key, str) else task_id
