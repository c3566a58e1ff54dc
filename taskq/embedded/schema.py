"""The tables of a taskq file, and how older files become current ones."""

import sqlite3
from typing import Final

from taskq.errors import ConfigError

APPLICATION_ID: Final = 0x7441736B
"""`tAsk`, at byte 68 of the file: how taskq (and `file`) tell its files from others."""

FIRST_VERSION: Final = 1
"""What `TABLES` makes."""
VERSION: Final = 3
"""Schema version, SQLite's `user_version`."""

READY: Final = 0
LEASED: Final = 1
DELAYED: Final = 2
DEAD: Final = 3
"""States of a message."""

# A lease belongs to a consumer, not to a message: renewing one is one row, however many messages
# the consumer holds. `owner` is NULL unless the message is leased; `due_ms` is when a delayed
# message is due and when a dead letter ends. The partial indexes repeat `state`: SQLite would
# otherwise visit each row to read what the index's condition says already.
TABLES: Final = """
CREATE TABLE queues (
    name TEXT PRIMARY KEY,
    created_ms INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE messages (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    queue TEXT NOT NULL,
    priority INTEGER NOT NULL,
    state INTEGER NOT NULL,
    due_ms INTEGER NOT NULL,
    owner INTEGER,
    deliveries INTEGER NOT NULL,
    task TEXT NOT NULL,
    id TEXT NOT NULL,
    headers BLOB,
    content_type TEXT NOT NULL,
    content_encoding TEXT NOT NULL,
    correlation_id TEXT NOT NULL,
    reply_to TEXT NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX messages_ready ON messages (queue, priority DESC, seq, state) WHERE state = 0;
CREATE INDEX messages_leased ON messages (owner, queue, state) WHERE state = 1;
CREATE INDEX messages_delayed ON messages (due_ms, queue, seq, state) WHERE state = 2;
CREATE INDEX messages_dead ON messages (queue, seq, due_ms, state) WHERE state = 3;
CREATE INDEX messages_id ON messages (id, state);

CREATE TABLE consumers (
    owner INTEGER PRIMARY KEY,
    prefix TEXT NOT NULL,
    queues TEXT NOT NULL,
    beat INTEGER NOT NULL,
    seen_ms INTEGER NOT NULL,
    lease_ms INTEGER NOT NULL,
    place TEXT NOT NULL,
    pid INTEGER NOT NULL,
    pid_start INTEGER NOT NULL
);

CREATE TABLE requests (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    prefix TEXT NOT NULL,
    ends_ms INTEGER NOT NULL,
    request BLOB NOT NULL
);
CREATE TABLE replies (
    request INTEGER NOT NULL,
    owner INTEGER NOT NULL,
    reply BLOB,
    PRIMARY KEY (request, owner)
) WITHOUT ROWID;

CREATE TABLE records (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    record BLOB NOT NULL,
    expires_ms INTEGER NOT NULL
);
CREATE INDEX records_expires ON records (expires_ms);

CREATE TABLE starts (
    id TEXT PRIMARY KEY,
    count INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX starts_expires ON starts (expires_ms);
"""

NOTES: Final = """
CREATE TABLE notes (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (kind, name)
) WITHOUT ROWID;
"""
CANCELS: Final = """
CREATE TABLE cancels (
    number INTEGER PRIMARY KEY,
    rule BLOB NOT NULL,
    ends_ms INTEGER NOT NULL
);
CREATE INDEX cancels_ends ON cancels (ends_ms);
"""

MIGRATIONS: dict[int, str] = {1: NOTES, 2: CANCELS}
"""Schema version to the statements that lead from it to the next one; a new file gets them all."""


def check_identity(connection: sqlite3.Connection, path: str) -> int:
    """Return the schema version of a file, 0 for a new one, and change nothing.

    Raises:
        ConfigError: If another program made the file, or a newer taskq.
        sqlite3.Error: If it cannot be read.
    """
    if connection.in_transaction:
        return _check_identity(connection, path)
    # One snapshot: between two of these questions another process may be making the file, whose
    # tables would then be seen without its application id.
    connection.execute("BEGIN")
    try:
        return _check_identity(connection, path)
    finally:
        connection.execute("ROLLBACK")


def _check_identity(connection: sqlite3.Connection, path: str) -> int:
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application_id == APPLICATION_ID:
        if version > VERSION:
            raise ConfigError(
                f"{path} was written by a newer taskq (schema {version}, this one reads up to "
                f"{VERSION}); upgrade taskq here, or name another file"
            )
        return int(version)
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application_id or version or tables:
        raise ConfigError(
            f"{path} is another program's SQLite database; name another file, taskq shares none"
        )
    return 0


def upgrade(connection: sqlite3.Connection, path: str) -> None:
    """Bring a file to the current schema, in the transaction that is open.

    Asks for the version again: another process may have been faster.

    Raises:
        ConfigError: As `check_identity`.
        sqlite3.Error: If it cannot be written.
    """
    version = check_identity(connection, path)
    if version == 0:
        _run(connection, TABLES)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        version = FIRST_VERSION
    while version < VERSION:
        _run(connection, MIGRATIONS[version])
        version += 1
    connection.execute(f"PRAGMA user_version = {version}")


def _run(connection: sqlite3.Connection, script: str) -> None:
    # Not executescript: it commits first, and half a schema would stay behind a crash.
    for statement in script.split(";\n"):
        if statement.strip():
            connection.execute(statement)
