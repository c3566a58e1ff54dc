"""What `taskq doctor` asks of an embedded database."""

import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator

from taskq.brokers.base import Check
from taskq.embedded import schema
from taskq.embedded.database import Database
from taskq.embedded.faults import Trouble
from taskq.errors import ConfigError

_LOW_DISK_BYTES = 256 * 1024 * 1024
_LARGE_WAL_BYTES = 1024 * 1024 * 1024


def check_database(
    database: Database, queues: Iterable[str], create: bool, timeout_s: float
) -> Iterator[Check]:
    """Yield one check after the other; stops at the first that makes the rest pointless.

    Args:
        database: What to examine.
        queues: Names with prefix.
        create: Whether missing queues are made by themselves.
        timeout_s: Bound of each access, in seconds.
    """
    try:
        with database.writing(timeout_s, durable=False):
            pass
    except ConfigError as error:
        yield Check("broker.file", "failed", str(error), "set broker= to a file of taskq's own")
        return
    except Trouble as trouble:
        name = "broker.lock" if trouble.reason == "locked" else "broker.writable"
        yield Check(name, "failed", trouble.detail, "see the detail; then run this again")
        return
    yield Check("broker.file", "ok", f"{database.label} is a taskq database")
    yield Check("broker.writable", "ok", "a write transaction began and ended")
    try:
        with database.reading(timeout_s) as connection:
            yield _schema(connection)
            yield _integrity(connection, database.label)
            yield _queues(connection, queues, create)
            if database.location.path:
                yield _journal(connection, database.location.path)
                yield _disk(database.location.path)
    except Trouble as trouble:
        yield Check("broker.integrity", "failed", trouble.detail, "restore the file from a copy")


def _schema(connection: sqlite3.Connection) -> Check:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return Check(
        "broker.version", "ok", f"schema {version} of {schema.VERSION}, SQLite {sqlite_version()}"
    )


def sqlite_version() -> str:
    """Return the version of the SQLite library in use."""
    return sqlite3.sqlite_version


def _integrity(connection: sqlite3.Connection, label: str) -> Check:
    found = [text for (text,) in connection.execute("PRAGMA quick_check(3)")]
    if found == ["ok"]:
        return Check("broker.integrity", "ok", "quick_check found nothing")
    return Check(
        "broker.integrity",
        "failed",
        "; ".join(found),
        f"stop the workers, keep a copy, and try `sqlite3 {label} .recover`",
    )


def _queues(connection: sqlite3.Connection, queues: Iterable[str], create: bool) -> Check:
    known = {name for (name,) in connection.execute("SELECT name FROM queues")}
    missing = sorted(set(queues) - known)
    if not missing or create:
        return Check("broker.queues", "ok", f"{len(known)} queues")
    return Check(
        "broker.queues",
        "failed",
        f"missing: {', '.join(missing)}",
        "run `taskq topology apply`, or set declare to 'create'",
    )


def _journal(connection: sqlite3.Connection, path: str) -> Check:
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    size_bytes = _size(f"{path}-wal")
    if mode != "wal":
        return Check("broker.wal", "failed", f"journal mode is {mode}", "stop whoever changed it")
    if size_bytes > _LARGE_WAL_BYTES:
        return Check(
            "broker.wal",
            "warning",
            f"the -wal file has {size_bytes:,} bytes",
            f"a reader keeps an old snapshot open; find it with `fuser {path}`",
        )
    return Check("broker.wal", "ok", f"WAL, {size_bytes:,} bytes")


def _disk(path: str) -> Check:
    free_bytes = shutil.disk_usage(os.path.dirname(path)).free
    detail = f"{free_bytes:,} bytes free, the file has {_size(path):,}"
    if free_bytes < _LOW_DISK_BYTES:
        return Check("broker.disk", "warning", detail, "free space: a full disk refuses sends")
    return Check("broker.disk", "ok", detail)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
