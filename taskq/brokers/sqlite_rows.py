"""Messages as rows: every statement on the `messages` table, to be run in an open transaction.

Queue names here carry the prefix. Sets of rows travel as one JSON array: SQLite then works on all
of them in one step, without handing the interpreter lock back and forth for each row.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgpack

from taskq.embedded.schema import DEAD, DELAYED, LEASED, READY
from taskq.errors import DecodeError
from taskq.message import TOP_PRIORITY, Message

PROMOTE_ROWS: Final = 1000
"""Most delayed messages made ready in one transaction, so that others get their turn."""

CONTENT: Final = (
    "task, id, body, headers, content_type, content_encoding, priority, correlation_id, reply_to"
)
_COLUMNS = f"queue, state, due_ms, deliveries, {CONTENT}"
_WIDTH = _COLUMNS.count(",") + 1
_INSERT_ROWS = (50, 10, 1)
_INSERTS = {
    rows: f"INSERT INTO messages ({_COLUMNS}) VALUES "
    + ", ".join([f"({', '.join('?' * _WIDTH)})"] * rows)
    for rows in _INSERT_ROWS
}

ADD_QUEUE: Final = "INSERT OR IGNORE INTO queues (name, created_ms) VALUES (?, ?)"
# Named, because without statistics SQLite prefers to walk the rows of all states by number.
READY_ROWS: Final = f"messages INDEXED BY messages_ready WHERE state = {READY}"
_LEASED: Final = f"messages INDEXED BY messages_leased WHERE state = {LEASED}"
_DELAYED: Final = f"messages INDEXED BY messages_delayed WHERE state = {DELAYED}"
_DEAD: Final = f"messages INDEXED BY messages_dead WHERE state = {DEAD}"

ANY_LEASED: Final = f"SELECT 1 FROM {_LEASED} AND queue = ? LIMIT 1"
ANY_READY: Final = f"SELECT 1 FROM {READY_ROWS} AND queue = ? LIMIT 1"
NEXT_DUE: Final = f"SELECT min(due_ms) FROM {_DELAYED}"
PROMOTE: Final = (
    f"UPDATE messages SET state = {READY}, due_ms = 0 WHERE seq IN "
    f"(SELECT seq FROM {_DELAYED} AND due_ms <= ? ORDER BY due_ms LIMIT {PROMOTE_ROWS})"
)
CLAIM: Final = (
    f"UPDATE messages SET state = {LEASED}, owner = ? WHERE seq IN "
    f"(SELECT seq FROM {READY_ROWS} AND queue = ? ORDER BY priority DESC, seq LIMIT ?) "
    f"RETURNING seq, deliveries, {CONTENT}"
)
OLDEST: Final = f"SELECT seq FROM {READY_ROWS} AND queue = ? AND priority = ? ORDER BY seq LIMIT 1"
TOP_PRIORITY_OF: Final = f"SELECT max(priority) FROM {READY_ROWS} AND queue = ?"
CLAIM_ONE: Final = (
    f"UPDATE messages SET state = {LEASED}, owner = ? WHERE seq = ? "
    f"RETURNING seq, deliveries, {CONTENT}"
)
# The unary plus keeps SQLite from walking all leases of the owner instead of the few rows named.
DELETE: Final = "DELETE FROM messages WHERE seq IN (SELECT value FROM json_each(?)) AND +owner = ?"
RELEASE: Final = (
    f"UPDATE messages SET state = {READY}, owner = NULL "
    "WHERE seq IN (SELECT value FROM json_each(?)) AND +owner = ?"
)
RELEASE_ALL: Final = (
    f"UPDATE messages SET state = {READY}, owner = NULL WHERE seq IN "
    f"(SELECT seq FROM {_LEASED} AND owner = ?)"
)
EXPIRE: Final = (
    f"UPDATE messages SET state = {READY}, owner = NULL, deliveries = deliveries + 1 "
    f"WHERE seq IN (SELECT seq FROM {_LEASED} AND owner = ?)"
)
DUE_BEFORE: Final = f"SELECT count(*) FROM {_DELAYED} AND due_ms <= ?"
COUNT_READY: Final = f"SELECT count(*) FROM {READY_ROWS} AND queue = ?"
COUNT_LEASED: Final = f"SELECT count(*) FROM {_LEASED} AND queue = ?"
COUNT_DELAYED: Final = (
    "SELECT count(*) FILTER (WHERE due_ms <= ?), count(*) FILTER (WHERE due_ms > ?) "
    f"FROM {_DELAYED} AND queue = ?"
)
COUNT_DEAD: Final = f"SELECT count(*) FROM {_DEAD} AND queue = ? AND due_ms > ?"
PURGE_READY: Final = (
    "DELETE FROM messages WHERE seq IN "
    f"(SELECT seq FROM {READY_ROWS} AND queue = ? AND seq <= ? LIMIT ?)"
)
PURGE_DUE: Final = (
    "DELETE FROM messages WHERE seq IN "
    f"(SELECT seq FROM {_DELAYED} AND due_ms <= ? AND queue = ? AND seq <= ? LIMIT ?)"
)
PURGE_DEAD: Final = (
    "DELETE FROM messages WHERE seq IN "
    f"(SELECT seq FROM {_DEAD} AND queue = ? AND seq <= ? LIMIT ?)"
)
DEAD_PAGE: Final = (
    f"SELECT seq, deliveries, {CONTENT} FROM {_DEAD} AND queue = ? "
    "AND seq > ? AND seq <= ? AND due_ms > ? ORDER BY seq LIMIT ?"
)
# The oldest letters only: all are kept equally long, so nothing that ended hides behind them.
PRUNE_DEAD: Final = (
    "DELETE FROM messages WHERE seq IN (SELECT seq FROM (SELECT seq, due_ms "
    f"FROM {_DEAD} AND queue = ? ORDER BY seq LIMIT 100) WHERE due_ms <= ?)"
)
DELETE_DEAD: Final = f"DELETE FROM messages WHERE seq = ? AND state = {DEAD}"
# By number: all states but the dead are wanted, and rows that come meanwhile lie behind `last`.
WAITING_PAGE: Final = (
    "SELECT seq, queue, task, id, headers FROM messages "
    f"WHERE seq > ? AND seq <= ? AND state < {DEAD} ORDER BY seq LIMIT ?"
)
LAST: Final = "SELECT coalesce(max(seq), 0) FROM messages"


class Claimed(NamedTuple):
    """A row in hand: its number, earlier deliveries that ended without a word, its message."""

    seq: int
    deliveries: int
    message: Message
    error: DecodeError | None


def row_of(queue: str, state: int, due_ms: int, message: Message) -> tuple[Any, ...]:
    """Return the values that `insert` takes for one message."""
    headers = msgpack.packb(dict(message.headers)) if message.headers else None
    return (
        queue,
        state,
        due_ms,
        0,
        message.task,
        message.id,
        message.body,
        headers,
        message.content_type,
        message.content_encoding,
        message.priority,
        message.correlation_id,
        message.reply_to,
    )


def insert(connection: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows in order, many in one statement."""
    at = 0
    for size in _INSERT_ROWS:
        while len(rows) - at >= size:
            values = [value for row in rows[at : at + size] for value in row]
            connection.execute(_INSERTS[size], values)
            at += size


def claim(connection: sqlite3.Connection, queue: str, owner: int, limit: int) -> list[Claimed]:
    """Lease up to `limit` ready messages of a queue, highest priority first, then oldest."""
    rows = connection.execute(CLAIM, (owner, queue, limit)).fetchall()
    # RETURNING promises no order.
    return sorted(map(read_row, rows), key=lambda row: (-row.message.priority, row.seq))


def claim_lower(connection: sqlite3.Connection, queue: str, owner: int, turn: int) -> list[Claimed]:
    """Lease the oldest message of a priority below the highest that is ready; none without such.

    Args:
        connection: In a write transaction.
        queue: Its name with prefix.
        owner: Who leases.
        turn: Counts these calls: the lower priorities are served in turn.
    """
    (top,) = connection.execute(TOP_PRIORITY_OF, (queue,)).fetchone()
    below = min(top or 0, TOP_PRIORITY)
    for step in range(below):
        level = (below - 1 - turn - step) % below
        found = connection.execute(OLDEST, (queue, level)).fetchone()
        if found is not None:
            return [read_row(row) for row in connection.execute(CLAIM_ONE, (owner, found[0]))]
    return []


def dead_page(
    connection: sqlite3.Connection, queue: str, after: int, last: int, now_ms: int, limit: int
) -> Iterator[Claimed]:
    """Return the next dead letters between two row numbers, oldest first."""
    rows = connection.execute(DEAD_PAGE, (queue, after, last, now_ms, limit)).fetchall()
    return map(read_row, rows)


def waiting_page(
    connection: sqlite3.Connection, prefix: str, after: int, last: int, limit: int
) -> tuple[int, list[Message]]:
    """Return the next messages that are not dead, without bodies, and where to go on.

    Args:
        connection: In a transaction.
        prefix: Only of queues whose names begin so.
        after: Number of the last row that was seen.
        last: Highest row number to look at.
        limit: Most rows to look at.

    Returns:
        The number to go on after, 0 at the end, and the messages.
    """
    rows = connection.execute(WAITING_PAGE, (after, last, limit)).fetchall()
    found = []
    for seq, queue, task, task_id, headers in rows:
        if queue.startswith(prefix):
            claimed = read_row((seq, 0, task, task_id, b"", headers))
            if claimed.error is None:
                found.append(claimed.message)
    return (rows[-1][0] if len(rows) == limit else 0), found


def delete(connection: sqlite3.Connection, owner: int, seqs: Iterable[int]) -> None:
    """Delete messages that this owner still holds."""
    connection.execute(DELETE, (json.dumps(list(seqs)), owner))


def release(connection: sqlite3.Connection, owner: int, seqs: Iterable[int]) -> None:
    """Make messages that this owner still holds ready again, at their old place."""
    connection.execute(RELEASE, (json.dumps(list(seqs)), owner))


def read_row(row: Sequence[Any]) -> Claimed:
    """Return a row of seq, deliveries and `CONTENT`, read."""
    seq, deliveries, task, task_id, body, headers, *rest = row
    error = None
    table: dict[str, Any] = {}
    if headers is not None:
        try:
            table = msgpack.unpackb(headers)
        # Whatever msgpack raises: a damaged row must not stop the queue.
        except Exception as failed:
            error = DecodeError(f"the stored headers are not readable: {failed}")
    if error is None and not (task and task_id):
        error = DecodeError("the message names no task or no id")
    return Claimed(seq, deliveries, Message(task, task_id, body, table, *rest), error)
