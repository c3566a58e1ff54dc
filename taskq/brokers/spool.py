"""An outbox on the local disk: sends that the broker does not take now wait there, in order.

::

    app = TaskQ("shop", broker="amqp://...", spool="/var/lib/shop/spool.db")

A send that fails because the broker is away, blocked or silent is written to the file and counts as
sent: durable on this machine's disk instead of the broker's. While anything waits there, further
sends of this process go behind it at once, without trying the broker first. A thread sends it all
in order when the broker is back. Several processes may share one file; one of them drains it.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgpack

from taskq import outcome
from taskq.brokers.base import Broker, Outgoing, Publishing
from taskq.errors import ConfigError, PublishError
from taskq.message import Message
from taskq.resend import dead

log = logging.getLogger("taskq.spool")

APPLICATION_ID: Final = 0x7441736F
"""`tAso`: how spool files are told from others."""
VERSION: Final = 1
AWAY: Final = frozenset({"unavailable", "timeout", "blocked"})
"""Reasons of a `PublishError` that pass; what is refused is refused again later."""

_PART: Final = 200
_LOCK_WAIT_S: Final = 5.0
_RETRY_S: Final = 1.0
_STOP_S: Final = 10.0
_TABLE: Final = "CREATE TABLE outbox (seq INTEGER PRIMARY KEY AUTOINCREMENT, item BLOB NOT NULL)"


_spools: "weakref.WeakSet[Spool]" = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for spool in list(_spools):
        spool._reset()


os.register_at_fork(after_in_child=_after_fork_in_child)


class Spool:
    """Sends of one app through a broker and, while that is away, a file.

    Attributes:
        path: The file's absolute path.
    """

    def __init__(self, path: str, broker: Broker) -> None:
        """Open or make the file.

        Args:
            path: Where it is; its directory must exist.
            broker: Where messages go.

        Raises:
            ConfigError: If the file cannot be used, is another program's, or was written by another
                version of taskq.
        """
        self.path = str(Path(path).absolute())
        self._broker = broker
        self._reset()
        self._check()
        if self.count():
            self._start()
        _spools.add(self)

    def _reset(self) -> None:
        # A child has no thread of its parent's; it drains when it spools something itself.
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._waiting = False

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self.path, timeout=_LOCK_WAIT_S, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = FULL")
            yield connection
        finally:
            connection.close()

    def _check(self) -> None:
        try:
            with self._connected() as connection:
                # One transaction: another process may be making the file in this moment.
                connection.execute("BEGIN IMMEDIATE")
                self._check_identity(connection)
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise ConfigError(
                f"the spool {self.path} cannot be used: {error}; name a file in a directory that "
                "exists and can be written"
            ) from error

    def _check_identity(self, connection: sqlite3.Connection) -> None:
        (kind,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if kind == APPLICATION_ID:
            if version != VERSION:
                raise ConfigError(
                    f"the spool {self.path} has version {version}, this taskq reads {VERSION}; let "
                    "the taskq that wrote it send what is in there, or name another file"
                )
            return
        if kind or version or tables:
            raise ConfigError(f"{self.path} is no spool of taskq; name another file")
        connection.execute(_TABLE)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {VERSION}")

    def count(self) -> int:
        """Return how many messages wait in the file.

        Raises:
            ConfigError: If it cannot be read.
        """
        try:
            with self._connected() as connection:
                (count,) = connection.execute("SELECT count(*) FROM outbox").fetchone()
        except sqlite3.Error as error:
            raise ConfigError(f"the spool {self.path} cannot be read: {error}") from error
        return int(count)

    def submit(self, batch: Sequence[Outgoing], timeout_s: float) -> Publishing:
        """Begin to send; see `Broker.submit`. What the broker does not take goes into the file.

        Lifecycle events are tried once: what tells of the past is not worth keeping.
        """
        if self._waiting:
            # Behind what waits already, and without waiting for a broker that is away.
            with self._lock:
                if self._waiting and self._put(batch) is None:
                    return _Done(len(batch))
        return _Spooling(self, batch, self._broker.submit(batch, timeout_s))

    def catch(
        self, batch: Sequence[Outgoing], errors: list[PublishError | None]
    ) -> list[PublishError | None]:
        """Keep what failed for a reason that passes, and return the errors that remain.

        Args:
            batch: What was sent.
            errors: One entry for each message.
        """
        away = [
            index
            for index, error in enumerate(errors)
            if error is not None and error.reason in AWAY and not batch[index].topic
        ]
        if not away:
            return errors
        with self._lock:
            failed = self._put([batch[index] for index in away])
        kept = set(away) if failed is None else set()
        if failed is not None:
            for index in away:
                error = errors[index]
                if error is not None:
                    error.add_note(f"nor could it be kept in the spool {self.path}: {failed}")
        return [None if index in kept else error for index, error in enumerate(errors)]

    def _put(self, batch: Sequence[Outgoing]) -> sqlite3.Error | None:
        """Write messages to the file; called with the lock. Returns why that did not work."""
        rows = [
            (msgpack.packb((one.queue, one.message.to_list(), one.due_ms, one.dead)),)
            for one in batch
            if not one.topic
        ]
        try:
            with self._connected() as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany("INSERT INTO outbox (item) VALUES (?)", rows)
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            return error
        if not self._waiting:
            log.warning("keeping sends in the spool path=%s", self.path)
        self._waiting = True
        self._start()
        return None

    # Draining

    def _start(self) -> None:
        self._waiting = True
        self._wake.set()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._drain, name="taskq-spool", daemon=True)
            self._thread.start()

    def _drain(self) -> None:
        while not self._end.is_set():
            if self._drained():
                return
            self._end.wait(_RETRY_S)

    def _drained(self) -> bool:
        """Send what is there while the broker takes it; return whether nothing is left."""
        try:
            with open(f"{self.path}.drain", "a", encoding="ascii") as guard:
                try:
                    fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    # Another process drains the file; this one goes on behind it until it is empty.
                    return self._is_empty()
                while not self._end.is_set() and self._send_part():
                    pass
            return self._is_empty()
        except (OSError, sqlite3.Error) as error:
            log.warning("the spool waits path=%s error=%s", self.path, error)
            return False

    def _is_empty(self) -> bool:
        with self._lock, self._connected() as connection:
            (left,) = connection.execute("SELECT EXISTS (SELECT 1 FROM outbox)").fetchone()
            if left:
                return False
            # With the lock: whatever is put from here on starts the thread again.
            self._waiting = False
            self._thread = None
        log.info("the spool is empty path=%s", self.path)
        return True

    def _send_part(self) -> bool:
        """Send the oldest messages; return whether to go on at once."""
        with self._connected() as connection:
            rows = connection.execute(
                "SELECT seq, item FROM outbox ORDER BY seq LIMIT ?", (_PART,)
            ).fetchall()
        if not rows:
            return False
        batch = [_unpack(item) for _, item in rows]
        errors = self._broker.publish(batch, self._broker.options.publish_timeout_s)
        refused = [
            (index, _letter(batch[index], error))
            for index, error in enumerate(errors)
            if error is not None and error.reason not in AWAY
        ]
        if refused:
            # Nobody waits for it any more who could be told.
            again = self._broker.publish(
                [letter for _, letter in refused], self._broker.options.publish_timeout_s
            )
            for (index, _), error in zip(refused, again, strict=True):
                errors[index] = error
        done = [(rows[index][0],) for index, error in enumerate(errors) if error is None]
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("DELETE FROM outbox WHERE seq = ?", done)
            connection.execute("COMMIT")
        return len(done) == len(rows)

    def close(self) -> None:
        """Stop draining; what is left is sent by the next process that opens the file."""
        self._end.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_STOP_S)


def _unpack(item: bytes) -> Outgoing:
    queue, parts, due_ms, is_dead = msgpack.unpackb(item, strict_map_key=False)
    return Outgoing(queue, Message.from_list(parts), due_ms, is_dead)


def _letter(one: Outgoing, error: PublishError) -> Outgoing:
    if one.dead:
        return one
    letter = dead(one.message, "unroutable", one.queue, error=outcome.describe(error))
    return Outgoing(one.queue, letter, dead=True)


class _Done:
    """A send that is in the file."""

    def __init__(self, count: int) -> None:
        self._count = count

    def wait(self) -> list[PublishError | None]:
        return [None] * self._count

    async def wait_async(self) -> list[PublishError | None]:
        return self.wait()


class _Spooling:
    """A send that the broker tries, and the file catches."""

    def __init__(self, spool: Spool, batch: Sequence[Outgoing], under_way: Publishing) -> None:
        self._catch: Callable[[list[PublishError | None]], list[PublishError | None]] = (
            lambda errors: spool.catch(batch, errors)
        )
        self._under_way = under_way

    def wait(self) -> list[PublishError | None]:
        return self._catch(self._under_way.wait())

    async def wait_async(self) -> list[PublishError | None]:
        errors = await self._under_way.wait_async()
        return await asyncio.to_thread(self._catch, errors)
