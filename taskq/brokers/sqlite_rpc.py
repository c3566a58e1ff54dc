"""Answers to remote calls in the embedded file: rows that live for as long as somebody waits."""

import contextlib
import os
import sqlite3
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final

from taskq import clock
from taskq.brokers.base import Outgoing
from taskq.embedded.database import Database
from taskq.embedded.faults import Trouble
from taskq.errors import BrokerUnavailable, PublishError

KEEP_MS: Final = 60_000
"""How long an answer waits for whoever asked, in milliseconds."""
_WAIT_S: Final = 1.0
_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS answers (seq INTEGER PRIMARY KEY, address TEXT NOT NULL, "
    "id TEXT NOT NULL, body BLOB NOT NULL, ends_ms INTEGER NOT NULL)"
)
_INDEX: Final = "CREATE INDEX IF NOT EXISTS answers_address ON answers (address)"


def store(connection: sqlite3.Connection, items: Sequence[Outgoing], now_ms: int) -> None:
    """Write answers, in the transaction that is open, and remove those that nobody took."""
    connection.execute(_TABLE)
    connection.execute(_INDEX)
    connection.execute("DELETE FROM answers WHERE ends_ms < ?", (now_ms,))
    connection.executemany(
        "INSERT INTO answers (address, id, body, ends_ms) VALUES (?, ?, ?, ?)",
        [(item.topic, item.message.id, item.message.body, now_ms + KEEP_MS) for item in items],
    )


class RpcClient:
    """Sends requests; one thread of the process takes the answers and hands them out."""

    def __init__(
        self,
        database: Database,
        publish: Callable[[Sequence[Outgoing], float], list[PublishError | None]],
        timeout_s: float,
    ) -> None:
        """Prepare; the thread starts with the first request.

        Args:
            database: Where.
            publish: Sends messages.
            timeout_s: How long to wait for other writers, in seconds.
        """
        self._database = database
        self._publish = publish
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._waiting: dict[str, Future[bytes]] = {}
        self._pid = 0
        self._address = ""

    def request(self, item: Outgoing, timeout_s: float) -> bytes:
        """See `Broker`."""
        message = item.message._replace(reply_to=self._start())
        answer: Future[bytes] = Future()
        deadline = clock.monotonic_s() + timeout_s
        self._waiting[message.id] = answer
        try:
            error = self._publish([Outgoing(item.queue, message)], timeout_s)[0]
            if error is not None:
                raise BrokerUnavailable(str(error)) from error
            return answer.result(max(0.0, deadline - clock.monotonic_s()))
        finally:
            self._waiting.pop(message.id, None)

    def close(self) -> None:
        """End the thread; who still waits times out."""
        self._closed.set()

    def _start(self) -> str:
        """Return the address of this process, and see that its thread runs."""
        with self._lock:
            if self._pid != os.getpid():
                # A fork has no threads, and may not take its parent's answers.
                self._pid = os.getpid()
                self._waiting = {}
                self._address = f"taskq.reply.{uuid.uuid4().hex}"
                arguments = (self._address, self._waiting)
                threading.Thread(
                    target=self._listen, args=arguments, name="taskq-answers", daemon=True
                ).start()
            return self._address

    def _listen(self, address: str, waiting: dict[str, Future[bytes]]) -> None:
        wakeup = None
        while not self._closed.is_set():
            with contextlib.suppress(Trouble):
                if wakeup is None:
                    with self._database.writing(self._timeout_s, durable=False) as connection:
                        connection.execute(_TABLE)
                        connection.execute(_INDEX)
                    wakeup = self._database.wakeup()
                for task_id, body in self._taken(address):
                    answer = waiting.get(task_id)
                    # None: it came too late, and whoever asked has gone.
                    if answer is not None and not answer.done():
                        answer.set_result(body)
            if wakeup is not None:
                wakeup.wait(_WAIT_S)
            else:
                self._closed.wait(_WAIT_S)
        if wakeup is not None:
            wakeup.close()

    def _taken(self, address: str) -> list[tuple[str, bytes]]:
        query = "SELECT seq, id, body FROM answers WHERE address = ? ORDER BY seq"
        with self._database.reading(self._timeout_s) as connection:
            rows = connection.execute(query, (address,)).fetchall()
        if rows:
            with self._database.writing(self._timeout_s, durable=False) as connection:
                connection.execute(
                    "DELETE FROM answers WHERE address = ? AND seq <= ?", (address, rows[-1][0])
                )
        return [(task_id, body) for _, task_id, body in rows]
