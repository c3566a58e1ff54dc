"""Effects that happen once: a marker in the user's own transaction.

A task may run twice: its worker dies after the effect and before the acknowledgement. When effect
and marker are committed together, the second run finds the marker and leaves the effect out.
"""

import sys
from typing import Any, Final

from taskq import clock
from taskq.errors import ConfigError

TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS taskq_once "
    "(id VARCHAR(250) NOT NULL PRIMARY KEY, at VARCHAR(40) NOT NULL)"
)
_INSERT: Final = "INSERT INTO taskq_once (id, at) VALUES ({}, {}) ON CONFLICT (id) DO NOTHING"
_FOUND: Final = "SELECT 1 FROM taskq_once WHERE id = :id"
_TRANSACTIONAL: Final = ("sqlite", "postgresql")
"""Dialects in which creating a table does not commit what came before."""
_MAX_ID: Final = 250


def mark(connection: Any, name: str) -> bool:
    """Put a marker into the transaction of a connection.

    Args:
        connection: A `sqlite3.Connection`, or SQLAlchemy's `Connection` or `Session`, in a
            transaction that the caller commits.
        name: What is marked, at most 250 characters.

    Returns:
        True when it was not there; False when an earlier run committed it.

    Raises:
        ConfigError: If the connection is of another kind, or commits every statement by itself.
    """
    if len(name) > _MAX_ID:
        raise ConfigError(f"the marker {name!r:.60} is longer than {_MAX_ID} characters")
    sqlite3 = sys.modules.get("sqlite3")
    if sqlite3 is not None and isinstance(connection, sqlite3.Connection):
        return _mark_sqlite(connection, name)
    if hasattr(connection, "exec_driver_sql"):
        return _mark_sqlalchemy(connection, name)
    inner = getattr(connection, "connection", None)
    if callable(inner) and hasattr(connection, "get_bind"):
        return _mark_sqlalchemy(inner(), name)
    raise ConfigError(
        f"once() takes a sqlite3 connection, or SQLAlchemy's Connection or Session, not "
        f"{type(connection).__module__}.{type(connection).__qualname__}; for an AsyncConnection or "
        "AsyncSession: await connection.run_sync(self.once)"
    )


def _mark_sqlite(connection: Any, name: str) -> bool:
    cursor = connection.cursor()
    # Looked up first: outside of a transaction, making a table is a commit of its own.
    known = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'taskq_once'"
    if cursor.execute(known).fetchone() is None:
        cursor.execute(TABLE)
    cursor.execute(_INSERT.format("?", "?"), (name, clock.to_iso(clock.now_ms())))
    if not connection.in_transaction:
        raise ConfigError(
            "once() needs a transaction, and this connection commits every statement by itself; "
            "run BEGIN first, or open it without isolation_level=None"
        )
    return int(cursor.rowcount) == 1


def _mark_sqlalchemy(connection: Any, name: str) -> bool:
    from sqlalchemy import text  # type: ignore[import-not-found,unused-ignore]

    if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
        raise ConfigError("once() needs a transaction, and this connection is in AUTOCOMMIT")
    dialect = connection.dialect.name
    if dialect in _TRANSACTIONAL:
        connection.execute(text(TABLE))
    else:
        # Elsewhere making a table commits the caller's transaction.
        with connection.engine.begin() as other:
            other.execute(text(TABLE))
    values = {"id": name, "at": clock.to_iso(clock.now_ms())}
    if dialect in _TRANSACTIONAL:
        done = connection.execute(text(_INSERT.format(":id", ":at")), values)
        return int(done.rowcount) == 1
    if connection.execute(text(_FOUND), values).first() is not None:
        return False
    connection.execute(text("INSERT INTO taskq_once (id, at) VALUES (:id, :at)"), values)
    return True
