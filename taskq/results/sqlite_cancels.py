"""Cancels in the embedded database: rules by number, and records replaced in one transaction."""

import json
import sqlite3
from collections.abc import Sequence
from typing import Final

from taskq import outcome
from taskq.embedded.schema import DEAD
from taskq.results.base import MAX_NEWS, is_terminal, state_of

RULES: Final = "SELECT number, rule FROM cancels WHERE number > ? ORDER BY number LIMIT ?"
ENDED: Final = (
    "DELETE FROM cancels WHERE number IN "
    "(SELECT number FROM cancels WHERE ends_ms <= ? ORDER BY ends_ms LIMIT 100)"
)
STORED: Final = (
    "SELECT id, substr(record, 1, 5), expires_ms FROM records "
    "WHERE id IN (SELECT value FROM json_each(?)) AND expires_ms > ?"
)
QUEUED: Final = (
    "SELECT id, max(due_ms) FROM messages "
    f"WHERE id IN (SELECT value FROM json_each(?)) AND state < {DEAD} GROUP BY id"
)
_PUT: Final = "INSERT OR REPLACE INTO records (id, record, expires_ms) VALUES (?, ?, ?)"


def rules_after(connection: sqlite3.Connection, after: int) -> list[tuple[int, bytes]]:
    """Return the rules above a number, oldest first, at most `MAX_NEWS`."""
    return connection.execute(RULES, (after, MAX_NEWS)).fetchall()


def add_rule(connection: sqlite3.Connection, rule: bytes, ends_ms: int, now_ms: int) -> None:
    """Keep a rule under the next number, and drop some that have ended.

    A number is the time in microseconds, or one more than the last: it grows also when the file
    was replaced, so that no worker takes a new rule for one that it knows.
    """
    connection.execute(ENDED, (now_ms,))
    connection.execute(
        "INSERT INTO cancels (number, rule, ends_ms) "
        "VALUES (max(?, (SELECT coalesce(max(number), 0) + 1 FROM cancels)), ?, ?)",
        (now_ms * 1000, rule, ends_ms),
    )


def cancel(
    connection: sqlite3.Connection,
    task_ids: Sequence[str],
    record: bytes,
    ttl_s: int,
    now_ms: int,
) -> list[str | None]:
    """Replace the records of tasks that have not ended; see `ResultStore.cancel`.

    Args:
        connection: In a write transaction.
        task_ids: Whose.
        record: The record of CANCELLED.
        ttl_s: How long it is kept, in seconds.
        now_ms: The time, as epoch ms.
    """
    packed = json.dumps(list(task_ids))
    before: dict[str, str | None] = {}
    ends_ms: dict[str, int] = {}
    # A message that waits counts as PENDING, as in `fetch`, and may be due in a year.
    for task_id, due_ms in connection.execute(QUEUED, (packed,)):
        before[task_id] = outcome.PENDING
        ends_ms[task_id] = max(due_ms, now_ms) + ttl_s * 1000
    for task_id, head, expires_ms in connection.execute(STORED, (packed, now_ms)):
        before[task_id] = state_of(head)
        if is_terminal(head):
            ends_ms.pop(task_id, None)
        else:
            ends_ms[task_id] = max(expires_ms, now_ms + ttl_s * 1000, ends_ms.get(task_id, 0))
    rows = [(task_id, record, moment_ms) for task_id, moment_ms in ends_ms.items()]
    # Replaced, not updated: a new number tells waiters that it is news.
    connection.executemany(_PUT, rows)
    return [before.get(task_id) for task_id in task_ids]
