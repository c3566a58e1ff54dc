"""One guarded connection to the embedded database, shared by all who use it in this process.

Waiting for another process's lock happens outside SQLite and without holding the connection, so
that readers go on, deadlines hold, and a fork never meets a thread inside SQLite.
"""

import ctypes
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from taskq import clock
from taskq.embedded import faults, schema
from taskq.embedded.forks import tell_of_forks
from taskq.embedded.location import Location
from taskq.embedded.wakeup import FileWakeup, MemoryWakeup, Wakeup, announce
from taskq.errors import TaskqError

log = logging.getLogger("taskq.embedded")

_FIRST_PAUSE_S: Final = 0.0005
_LONGEST_PAUSE_S: Final = 0.01
_WAL_KEEP_BYTES: Final = 64 * 1024 * 1024

_open: dict[tuple[str, str], "Database"] = {}
_open_guard = threading.Lock()
os.register_at_fork(
    before=_open_guard.acquire,
    after_in_parent=_open_guard.release,
    after_in_child=_open_guard.release,
)


def open_database(location: Location) -> "Database":
    """Return this process's database at a location; `close` it once for each call.

    Opens no file yet: that happens at first use.
    """
    key = (location.path, location.name)
    with _open_guard:
        database = _open.get(key)
        if database is None:
            database = _open[key] = Database(location)
        database._users += 1
        return database


class Database:
    """A file, or a database in memory, with explicit transactions; thread-safe, fork-safe.

    A child of a fork gets a connection of its own; a database in memory is empty there.

    Attributes:
        location: Where it is.
        label: The absolute path, or the URL of a database in memory; for messages.
    """

    def __init__(self, location: Location) -> None:
        self.location = location
        self.label = location.path or location.url
        self._users = 0
        self._reset()
        tell_of_forks(self)

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._changed = threading.Condition()
        self._commits = 0
        self._connection: sqlite3.Connection | None = None
        self._inode = (0, 0)
        self._durable = True

    @contextmanager
    def writing(self, timeout_s: float, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """Hold a write transaction; commit at the end, roll back on an exception.

        Args:
            timeout_s: How long to wait for other writers, in seconds.
            durable: False spares the wait for the disk: after a power failure the commit may be
                missing (never torn), which a lease or a control request survives.

        Raises:
            Trouble: If the database stays locked, is full, or fails.
            ConfigError: If the file is not usable; see `schema.check_identity`.
        """
        connection = self._begin("BEGIN IMMEDIATE", timeout_s, durable)
        try:
            yield connection
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back(connection, error)
            raise faults.explain(error, self.label) from error
        # Whatever the block raised, also an interrupt: the lock on the file must not stay.
        except BaseException:
            self._roll_back(connection, None)
            raise
        finally:
            self._lock.release()
        self._announce()

    @contextmanager
    def reading(self, timeout_s: float) -> Iterator[sqlite3.Connection]:
        """Hold one snapshot for reading; others may write meanwhile.

        Raises:
            Trouble: If the database cannot be read in time.
            ConfigError: If the file is not usable.
        """
        connection = self._begin("BEGIN", timeout_s, None)
        try:
            yield connection
        except sqlite3.Error as error:
            self._roll_back(connection, error)
            raise faults.explain(error, self.label) from error
        finally:
            self._roll_back(connection, None)
            self._lock.release()

    def wakeup(self) -> Wakeup:
        """Return what wakes a thread when the database changed; `close` it after use.

        Raises:
            Trouble: If the database cannot be opened.
            ConfigError: If the file is not usable.
        """
        if not self.location.path:
            return MemoryWakeup(self._changed, lambda: self._commits)
        # Opened first: the file must exist to be watched.
        with self.reading(5.0):
            pass
        return FileWakeup(self.location.path, self.version)

    def version(self) -> tuple[int, int]:
        """Return two numbers of which one differs after each commit, here or in another process."""
        try:
            with self.reading(1.0) as connection:
                (other,) = connection.execute("PRAGMA data_version").fetchone()
        except TaskqError:
            return -1, self._commits
        return other, self._commits

    def close(self) -> None:
        """Let go of the database; the last of its users closes the connection."""
        with _open_guard:
            self._users -= 1
            if self._users > 0:
                return
            key = (self.location.path, self.location.name)
            if _open.get(key) is self:
                del _open[key]
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    def _begin(self, statement: str, timeout_s: float, durable: bool | None) -> sqlite3.Connection:
        """Take the lock and open a transaction; the caller releases the lock."""
        deadline = clock.monotonic_s() + timeout_s
        pause_s = _FIRST_PAUSE_S
        while True:
            if not self._lock.acquire(timeout=max(0.0, deadline - clock.monotonic_s())):
                raise faults.locked(self.label)
            try:
                connection = self._usable()
                if durable is not None and durable != self._durable:
                    connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                    self._durable = durable
                connection.execute(statement)
                if durable is None:
                    # BEGIN alone reads nothing: a recovery under way shows here, not later.
                    connection.execute("SELECT 1 FROM queues LIMIT 1").fetchone()
                return connection
            except sqlite3.Error as error:
                self._failed_to_begin(error)
                if not faults.is_busy(error) or clock.monotonic_s() >= deadline:
                    raise faults.explain(error, self.label) from error
            except BaseException:
                self._lock.release()
                raise
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    def _failed_to_begin(self, error: sqlite3.Error) -> None:
        if self._connection is not None:
            self._roll_back(self._connection, error)
        self._lock.release()

    def _roll_back(self, connection: sqlite3.Connection, error: sqlite3.Error | None) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error as failed:
            error = failed
        if error is None or not faults.is_fatal(error) or not self.location.path:
            return
        if self._connection is connection:
            self._connection = None
            connection.close()

    def _announce(self) -> None:
        with self._changed:
            self._commits += 1
            self._changed.notify_all()
        if self.location.path:
            announce(self.location.path)

    def _usable(self) -> sqlite3.Connection:
        """Return the connection, opened, and to the file that is at the path now."""
        connection = self._connection
        if connection is not None:
            if not self.location.path or self._inode == _inode_of(self.location.path):
                return connection
            log.warning("reopening path=%s reason=file was replaced or deleted", self.label)
            # Not closed: closing would delete the -wal file that belongs to the new file.
            _abandon(connection)
            self._connection = None
        self._connection = connection = self._open()
        self._durable = True
        return connection

    def _open(self) -> sqlite3.Connection:
        path = self.location.path
        if not path:
            connection = _connect(":memory:")
            schema.upgrade(connection, self.label)
            return connection
        unusable = faults.unusable(path)
        if unusable is not None:
            raise unusable
        try:
            connection = _connect(path)
        except sqlite3.Error as error:
            raise faults.explain_open(error, path) from error
        try:
            self._prepare(connection)
        except sqlite3.Error as error:
            connection.close()
            if faults.is_busy(error):
                raise
            raise faults.explain_open(error, path) from error
        except BaseException:
            connection.close()
            raise
        self._inode = _inode_of(path)
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        # Looked at before anything is written: another program's file stays as it is.
        version = schema.check_identity(connection, self.label)
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise faults.Trouble(
                "io", f"{self.label}: this file system has no shared memory; use a local disk"
            )
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_KEEP_BYTES}")
        if version == schema.VERSION:
            return
        connection.execute("BEGIN IMMEDIATE")
        schema.upgrade(connection, self.label)
        connection.execute("COMMIT")

    def before_fork(self) -> None:
        """Wait until no thread is inside SQLite: its locks would stay locked in the child."""
        self._lock.acquire()
        self._changed.acquire()

    def after_fork_in_parent(self) -> None:
        """Let the threads go on."""
        self._changed.release()
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Forget the parent's connection; the next use opens another."""
        if self._connection is not None:
            _abandon(self._connection)
        self._reset()


def _connect(path: str) -> sqlite3.Connection:
    return sqlite3.connect(
        path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=256
    )


def _inode_of(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_dev, status.st_ino


def _abandon(connection: sqlite3.Connection) -> None:
    """Keep a connection from ever being closed: one reference too many, on purpose."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
