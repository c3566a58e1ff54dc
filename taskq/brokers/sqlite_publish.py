"""Sends into the embedded database: whoever comes first commits for all who wait."""

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from sqlite3 import Connection
from typing import Any, Final

from taskq import clock
from taskq.brokers import sqlite_events, sqlite_rows, sqlite_rpc, sqlite_topics
from taskq.brokers.base import DEAD_QUEUE, BrokerOptions, Outgoing
from taskq.brokers.sqlite_limits import QueueLimits
from taskq.brokers.sqlite_shards import check_layout
from taskq.embedded.database import Database
from taskq.embedded.faults import Trouble
from taskq.embedded.forks import tell_of_forks
from taskq.embedded.schema import DEAD, DELAYED, READY
from taskq.errors import PublishError, TaskqError
from taskq.events.schema import EXCHANGE
from taskq.topics import TOPICS

_REASONS: Final = {"full": "refused", "read-only": "refused", "damaged": "refused"}
_BATCHES_PER_COMMIT: Final = 64


class Send:
    """A batch under way; what `Broker.submit` returns."""

    def __init__(
        self, batch: Sequence[Outgoing], timeout_s: float, lead: Callable[["Send"], None]
    ) -> None:
        self.batch = batch
        self._lead = lead
        self.deadline = clock.monotonic_s() + timeout_s
        self.outcome: list[PublishError | None] | None = None
        self._ended = threading.Event()

    def end(self, outcome: list[PublishError | None]) -> None:
        """Record how it ended, and wake who waits."""
        self.outcome = outcome
        self._ended.set()

    def fail(self, reason: str, detail: str) -> None:
        """End with the same error for each message."""
        self.end([PublishError(item.message.id, reason, detail) for item in self.batch])

    def wait(self) -> list[PublishError | None]:
        """Return one entry for each message; see `Publishing`."""
        # Whoever waits may as well do the work: no other thread has to wake up first.
        if self.outcome is None:
            self._lead(self)
        # A little longer than the sender, which reports more exactly why nothing happened.
        self._ended.wait(max(0.0, self.deadline + 0.5 - clock.monotonic_s()))
        if self.outcome is None:
            return self._late()
        return self.outcome

    async def wait_async(self) -> list[PublishError | None]:
        """Do what `wait` does on another thread."""
        return self.outcome if self.outcome is not None else await asyncio.to_thread(self.wait)

    def _late(self) -> list[PublishError | None]:
        detail = "the disk did not finish the write in time"
        return [PublishError(item.message.id, "timeout", detail) for item in self.batch]


class Outbox:
    """Commits sends of any number of threads, several at a time in one transaction.

    Args:
        database: Where to.
        options: Prefix, declaration and the life of dead letters.
    """

    def __init__(self, database: Database, options: BrokerOptions) -> None:
        self._database = database
        self._options = options
        self._limits = QueueLimits(options)
        self.after_fork_in_child()
        tell_of_forks(self)

    def before_fork(self) -> None:
        """Let no thread be in the middle of a hand-over."""
        self._guard.acquire()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._guard.release()

    def after_fork_in_child(self) -> None:
        """Begin empty: what was under way is the parent's."""
        self._waiting: list[Send] = []
        self._guard = threading.Lock()
        self._commit_lock = threading.Lock()
        self._calls: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def publish(self, batch: Sequence[Outgoing], timeout_s: float) -> list[PublishError | None]:
        """Commit a batch on the calling thread, with those of others who wait."""
        send = Send(batch, timeout_s, self._lead)
        with self._guard:
            self._waiting.append(send)
        return send.wait()

    def submit(self, batch: Sequence[Outgoing], timeout_s: float) -> Send:
        """Hand a batch to the sending thread, which is started at the first call."""
        send = Send(batch, timeout_s, self._lead)
        with self._guard:
            self._waiting.append(send)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, args=(self._calls,), name="taskq-sqlite-send", daemon=True
                )
                self._thread.start()
            self._calls.put(True)
        return send

    def close(self) -> None:
        """End the sending thread after what was handed to it."""
        with self._guard:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._calls.put(False)
        if thread is not None:
            thread.join(self._options.publish_timeout_s + 1.0)

    def _work(self, calls: "queue.SimpleQueue[bool]") -> None:
        while calls.get():
            with self._guard:
                send = self._waiting[0] if self._waiting else None
            if send is not None:
                self._lead(send)

    def _lead(self, send: Send) -> None:
        """Get a send done: commit it with all others that wait, or find that another did."""
        if not self._commit_lock.acquire(timeout=max(0.0, send.deadline - clock.monotonic_s())):
            with self._guard:
                unsent = send in self._waiting
                if unsent:
                    self._waiting.remove(send)
            if unsent:
                send.fail("unavailable", f"{self._database.label} was busy until the deadline")
            return
        try:
            if send.outcome is None:
                self._commit(send)
        finally:
            self._commit_lock.release()

    def _commit(self, leader: Send) -> None:
        with self._guard:
            # In the order of the sends: an event that overtook another would pass for a double.
            count = max(self._waiting.index(leader) + 1, _BATCHES_PER_COMMIT)
            taken, self._waiting = self._waiting[:count], self._waiting[count:]
        try:
            outcomes = self._write(taken, leader.deadline - clock.monotonic_s())
        except Trouble as trouble:
            if trouble.reason == "locked":
                # Only the leader's time is up; the others go on with their own.
                others = [send for send in taken if send is not leader]
                with self._guard:
                    self._waiting = others + self._waiting
                    for _ in others:
                        self._calls.put(True)
                taken = [leader]
            _fail_all(taken, _REASONS.get(trouble.reason, "unavailable"), trouble.detail)
        except TaskqError as error:
            _fail_all(taken, "refused", str(error))
        # An unforeseen error must not leave senders waiting for an answer.
        except Exception as error:
            _fail_all(taken, "refused", f"{type(error).__name__}: {error}")
        else:
            for send, outcome in zip(taken, outcomes, strict=True):
                send.end(outcome)

    def _write(self, sends: list[Send], timeout_s: float) -> list[list[PublishError | None]]:
        now_ms = clock.now_ms()
        every = [item for send in sends for item in send.batch]
        items = [item for item in every if not item.topic]
        topics = [item for item in every if item.topic]
        rows = [self.row(item, now_ms) for item in items]
        # Reports that nobody waits for need no wait for the disk.
        durable = bool(items) or self._options.durable_events
        durable = durable or any(item.queue == TOPICS for item in topics)
        with self._database.writing(max(0.0, timeout_s), durable=durable) as connection:
            if topics:
                copies = self._spread(connection, topics, now_ms)
                rows += [self.row(item, now_ms) for item in copies]
            missing = self.declare_for(connection, items, now_ms)
            rows, full = self._limits.admit(connection, rows, now_ms)
            if missing:
                rows = [row for row in rows if row[0] not in missing]
            sqlite_rows.insert(connection, rows)
            self._limits.overflow(connection, {row[0] for row in rows}, now_ms)
            if any(item.dead for item in items):
                dead = self._options.prefix + DEAD_QUEUE
                connection.execute(sqlite_rows.PRUNE_DEAD, (dead, now_ms))
        refused = {id(items[index]) for index in full if index < len(items)}
        return [[self._verdict(item, missing, refused) for item in send.batch] for send in sends]

    def _spread(
        self, connection: Connection, topics: Sequence[Outgoing], now_ms: int
    ) -> list[Outgoing]:
        """Store events and answers; return the copies for subscribers of what was published."""
        prefix = self._options.prefix
        if events := [item for item in topics if item.queue == EXCHANGE]:
            sqlite_events.store(connection, prefix, events, now_ms)
        if answers := [item for item in topics if not item.queue]:
            sqlite_rpc.store(connection, answers, now_ms)
        published = [item for item in topics if item.queue == TOPICS]
        return sqlite_topics.routed(connection, prefix, published) if published else []

    def declare_for(
        self, connection: Connection, items: Sequence[Outgoing], now_ms: int
    ) -> set[str]:
        """Create the queues of messages; or return those, with prefix, that may not be created."""
        queues = {self._options.prefix + item.queue for item in items if not item.dead}
        if any(".shard." in name for name in queues):
            check_layout(connection, self._options.prefix, queues)
        if self._options.declare == "create":
            connection.executemany(sqlite_rows.ADD_QUEUE, [(name, now_ms) for name in queues])
            return set()
        return queues - {name for (name,) in connection.execute("SELECT name FROM queues")}

    def _verdict(self, item: Outgoing, missing: set[str], refused: set[int]) -> PublishError | None:
        if id(item) in refused:
            detail = f"queue {item.queue} is full (max_length)"
            return PublishError(item.message.id, "nacked", detail)
        unroutable = not (item.dead or item.topic) and self._options.prefix + item.queue in missing
        return self._unroutable(item) if unroutable else None

    def row(self, item: Outgoing, now_ms: int) -> tuple[Any, ...]:
        """Return the row of a message that is sent at `now_ms`."""
        if item.dead:
            ends_ms = now_ms + self._options.dead_ttl_s * 1000
            queue_name = self._options.prefix + DEAD_QUEUE
            return sqlite_rows.row_of(queue_name, DEAD, ends_ms, item.message)
        delayed = item.due_ms > now_ms
        return sqlite_rows.row_of(
            self._options.prefix + item.queue,
            DELAYED if delayed else READY,
            item.due_ms if delayed else 0,
            item.message,
        )

    def _unroutable(self, item: Outgoing) -> PublishError:
        return PublishError(
            item.message.id,
            "unroutable",
            f"{self._database.label} has no queue {item.queue!r} and declare is "
            f"{self._options.declare!r}; create it first, or set declare to 'create'",
        )


def _fail_all(sends: Sequence[Send], reason: str, detail: str) -> None:
    for send in sends:
        send.fail(reason, detail)
