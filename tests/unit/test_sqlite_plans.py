"""No statement of the embedded broker and results store reads a whole table.

Plans are asked for on an empty file whose statistics say that it holds a million messages.
"""

import sqlite3
from collections.abc import Iterator

import pytest

from taskq.brokers import sqlite_control, sqlite_rows
from taskq.embedded import schema
from taskq.results import sqlite as results
from taskq.results import sqlite_cancels, sqlite_watch

STATEMENTS = {
    "any ready": (sqlite_rows.ANY_READY, "messages_ready (queue=?)"),
    "next due": (sqlite_rows.NEXT_DUE, "messages_delayed"),
    "promote": (sqlite_rows.PROMOTE, "messages_delayed (due_ms<?)"),
    "claim": (sqlite_rows.CLAIM, "messages_ready (queue=?)"),
    "oldest": (sqlite_rows.OLDEST, "messages_ready (queue=? AND priority=?)"),
    "top priority": (sqlite_rows.TOP_PRIORITY_OF, "messages_ready (queue=?)"),
    "claim one": (sqlite_rows.CLAIM_ONE, "INTEGER PRIMARY KEY (rowid=?)"),
    "delete": (sqlite_rows.DELETE, "INTEGER PRIMARY KEY (rowid=?)"),
    "release": (sqlite_rows.RELEASE, "INTEGER PRIMARY KEY (rowid=?)"),
    "release all": (sqlite_rows.RELEASE_ALL, "messages_leased (owner=?)"),
    "expire": (sqlite_rows.EXPIRE, "messages_leased (owner=?)"),
    "due before": (sqlite_rows.DUE_BEFORE, "messages_delayed (due_ms<?)"),
    "count ready": (sqlite_rows.COUNT_READY, "COVERING INDEX messages_ready (queue=?)"),
    "count leased": (sqlite_rows.COUNT_LEASED, "COVERING INDEX messages_leased"),
    "count delayed": (sqlite_rows.COUNT_DELAYED, "COVERING INDEX messages_delayed"),
    "count dead": (sqlite_rows.COUNT_DEAD, "COVERING INDEX messages_dead (queue=?)"),
    "purge": (sqlite_rows.PURGE_READY, "messages_ready (queue=?)"),
    "purge due": (sqlite_rows.PURGE_DUE, "messages_delayed (due_ms<?)"),
    "purge dead": (sqlite_rows.PURGE_DEAD, "messages_dead (queue=?"),
    "prune dead": (sqlite_rows.PRUNE_DEAD, "messages_dead (queue=?)"),
    "dead page": (sqlite_rows.DEAD_PAGE, "messages_dead (queue=?"),
    "delete dead": (sqlite_rows.DELETE_DEAD, "INTEGER PRIMARY KEY (rowid=?)"),
    "requests": (sqlite_control.NEW_REQUESTS, "INTEGER PRIMARY KEY (rowid>?)"),
    "cancel rules": (sqlite_cancels.RULES, "INTEGER PRIMARY KEY (rowid>?)"),
    "ended rules": (sqlite_cancels.ENDED, "cancels_ends (ends_ms<?)"),
    "stored": (sqlite_cancels.STORED, "sqlite_autoindex_records_1 (id=?)"),
    "queued with due": (sqlite_cancels.QUEUED, "messages_id (id=?"),
    "heads": (results.HEADS, "sqlite_autoindex_records_1 (id=?)"),
    "fetch": (results.FETCH, "sqlite_autoindex_records_1 (id=?)"),
    "queued": (results.QUEUED, "messages_id (id=?"),
    "prune records": (results.PRUNE_RECORDS, "records_expires (expires_ms<?)"),
    "prune starts": (results.PRUNE_STARTS, "starts_expires (expires_ms<?)"),
    "follow": (sqlite_watch.NEWER, "INTEGER PRIMARY KEY (rowid>?)"),
}


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    opened = sqlite3.connect(":memory:", isolation_level=None)
    schema.upgrade(opened, "memory")
    opened.execute("ANALYZE")
    rows = [
        ("messages", "messages_ready", "1000000 100000 10000 1 1"),
        ("messages", "messages_leased", "1000000 10000 1000 1"),
        ("messages", "messages_delayed", "1000000 1 1 1 1"),
        ("messages", "messages_dead", "1000000 1000000 1 1 1"),
        ("messages", "messages_id", "1000000 1 1"),
        ("records", "sqlite_autoindex_records_1", "1000000 1"),
    ]
    opened.executemany("INSERT INTO sqlite_stat1 VALUES (?, ?, ?)", rows)
    opened.execute("ANALYZE sqlite_schema")
    yield opened
    opened.close()


def plan(connection: sqlite3.Connection, statement: str) -> list[str]:
    count = 3 if "?3" in statement else statement.count("?")
    rows = connection.execute(f"EXPLAIN QUERY PLAN {statement}", (0,) * count)
    return [detail for *_, detail in rows]


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_uses_its_index(connection: sqlite3.Connection, name: str) -> None:
    """With a million rows waiting, each scan would stop everybody for a second."""
    statement, index = STATEMENTS[name]

    steps = plan(connection, statement)

    assert any(index in step for step in steps), steps
    # json and subquery results are the few rows of this very call. Counts walk one state's index.
    small = ("json_each", "(subquery", "SCAN VALUE", "COVERING INDEX messages_")
    scans = [
        step for step in steps if step.startswith("SCAN") and not any(s in step for s in small)
    ]
    assert scans == []


@pytest.mark.parametrize("name", ["claim", "promote", "dead page", "prune records", "follow"])
def test_a_statement_sorts_nothing(connection: sqlite3.Connection, name: str) -> None:
    """The order must come from the index: sorting reads all candidates before the first."""
    assert not any("TEMP B-TREE" in step for step in plan(connection, STATEMENTS[name][0]))
