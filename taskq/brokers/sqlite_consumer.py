"""The consuming face of the embedded broker: one thread that claims, renews, expires and answers.

Whatever the loop or a settling thread wants of the database while it is locked is handed to this
thread, which tries until it succeeds.
"""

import asyncio
import logging
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from taskq import clock
from taskq.brokers import sqlite_control, sqlite_rows
from taskq.brokers.base import BrokerOptions, Consumer, Delivery, Sink
from taskq.brokers.shapes import parse_shard
from taskq.brokers.sqlite_hand import Hand, Receipt
from taskq.brokers.sqlite_leases import Lease, Silent, expire
from taskq.brokers.sqlite_limits import QueueLimits
from taskq.embedded.database import Database
from taskq.embedded.faults import Trouble
from taskq.embedded.wakeup import Wakeup
from taskq.errors import ConfigError

log = logging.getLogger("taskq.brokers.sqlite")

_CLAIM_ROWS: Final = 500
_LOCK_S: Final = 1.0
_PATIENCE_S: Final = 5.0
_LONGEST_BACKOFF_S: Final = 5.0


class SqliteConsumer(Consumer):
    """Consumes queues of an embedded database; see `Consumer`."""

    def __init__(
        self,
        database: Database,
        options: BrokerOptions,
        queues: Sequence[str],
        prefetch: int,
        sink: Sink,
        loop: asyncio.AbstractEventLoop,
        declare: Callable[[Sequence[str]], None],
    ) -> None:
        """Prepare the thread; `start` runs it.

        Args:
            database: Where messages are.
            options: The broker's.
            queues: Names without prefix, in order of preference.
            prefetch: Unsettled messages that may be here.
            sink: Where deliveries go.
            loop: The loop that the sink lives on.
            declare: Creates or checks queues.
        """
        self._database = database
        self._options = options
        self._queues = list(dict.fromkeys(queues))
        self._hand = Hand(self._queues, prefetch)
        self._limits = QueueLimits(options)
        self._sink = sink
        self._loop = loop
        self._declare = declare
        self._lease = Lease(
            options.prefix, [options.prefix + name for name in self._queues], options.lease_s
        )
        self._guard = threading.Lock()
        self._done: list[Receipt] = []
        self._returned: list[Receipt] = []
        self._replies: list[tuple[int, Mapping[str, Any]]] = []
        self._paused = False
        self._closing = False
        self._wakeup: Wakeup | None = None
        self._thread: threading.Thread | None = None
        self._request = 0
        self._up = False
        self._good_s = 0.0
        self._looked_s = 0.0
        self._claims = self._aged_turns = 0
        self._ordered = frozenset(name for name in self._queues if parse_shard(name) is not None)

    def start(self) -> None:
        """Begin to consume; see `Consumer`."""
        self._good_s = clock.monotonic_s()
        self._thread = threading.Thread(target=self._run, name="taskq-sqlite-consume", daemon=True)
        self._thread.start()

    def resize(self, prefetch: int) -> None:
        """Change the prefetch; see `Consumer`."""
        self._hand.prefetch = prefetch
        self._poke()

    def pause(self) -> None:
        """Take no further deliveries; see `Consumer`."""
        self._paused = True

    def resume(self) -> None:
        """Take deliveries again; see `Consumer`."""
        self._paused = False
        self._poke()

    def hold(self, queues: Collection[str]) -> None:
        """Take nothing from these queues; see `Consumer`."""
        self._hand.held_back = frozenset(queues)
        self._poke()

    def rebuild(self) -> None:
        """Look again at once: there is no connection that could be gone; see `Consumer`."""
        self._poke()

    def settle(self, done: Sequence[Any], returned: Sequence[Any] = ()) -> None:
        """Settle receipts in one transaction; see `Consumer`.

        Returns when committed, or after `publish_timeout_s`: then the consumer's thread goes on
        trying, and the messages count as held until it succeeded.
        """
        done, returned = self._hand.known(done), self._hand.known(returned)
        if not done and not returned:
            return
        try:
            self._settle_now(done, returned, self._options.publish_timeout_s)
        except (Trouble, ConfigError) as error:
            log.warning("settling later count=%d reason=%s", len(done) + len(returned), error)
            with self._guard:
                self._done += done
                self._returned += returned
        self._poke()

    async def close(self) -> None:
        """Give back what is unsettled and end the thread; see `Consumer`."""
        self._closing = True
        self._poke()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def _poke(self) -> None:
        wakeup = self._wakeup
        if wakeup is not None:
            wakeup.poke()

    def _settle_now(
        self, done: Sequence[Receipt], returned: Sequence[Receipt], timeout_s: float
    ) -> None:
        owners = {owner for owner, _ in (*done, *returned)}
        with self._database.writing(timeout_s) as connection:
            for owner in owners:
                if done:
                    seqs = [seq for holder, seq in done if holder == owner]
                    sqlite_rows.delete(connection, owner, seqs)
                if returned:
                    seqs = [seq for holder, seq in returned if holder == owner]
                    sqlite_rows.release(connection, owner, seqs)
        self._hand.drop((*done, *returned))

    # The thread.

    def _run(self) -> None:
        failures = 0
        while not self._closing:
            try:
                pause_s = self._turn()
                failures = 0
            except Trouble as trouble:
                failures += 1
                self._trouble(trouble.detail, patient=trouble.reason == "locked")
                # Jitter: consumers that failed together do not come back together.
                backoff_s = min(_LONGEST_BACKOFF_S, 0.05 * 2**failures) * random.uniform(0.5, 1)
                pause_s = 0.0 if trouble.reason == "locked" else backoff_s
            except ConfigError as error:
                self._call(self._sink.fatal, error)
                break
            # A fault in here must not end consuming in silence.
            except Exception as error:
                failures += 1
                log.exception("consuming failed; it goes on")
                self._trouble(f"{type(error).__name__}: {error}", patient=False)
                pause_s = 1.0
            self._sleep(pause_s)
        self._leave()

    def _sleep(self, pause_s: float) -> None:
        if pause_s <= 0 or self._closing:
            return
        if self._wakeup is None:
            # Not open yet, so nothing can wake this thread but time.
            time.sleep(min(pause_s, 0.2))
        else:
            self._wakeup.wait(pause_s)

    def _trouble(self, detail: str, *, patient: bool) -> None:
        if patient and clock.monotonic_s() - self._good_s < _PATIENCE_S:
            return
        if self._up or self._good_s > 0:
            self._up, self._good_s = False, 0.0
            self._call(self._sink.connection, False, detail)

    def _turn(self) -> float:
        """Do all there is to do, and return how long to sleep, in seconds."""
        if self._wakeup is None:
            self._wakeup = self._database.wakeup()
        if self._lease.owner == 0:
            self._enter()
        self._flush()
        found, next_due_ms, silent, requests = self._look()
        claimed: list[Delivery] = []
        if found or silent or self._lease.due_in_s() <= 0:
            claimed, more = self._claim(silent)
        else:
            more = False
        self._good_s = clock.monotonic_s()
        if not self._up:
            self._up = True
            self._call(self._sink.connection, True, f"consuming from {self._database.label}")
        if claimed:
            self._call(self._deliver, claimed)
        for number, request in requests:
            self._request = number
            self._call(self._answer, number, request)
        if more:
            return 0.0
        pause_s = self._lease.due_in_s()
        if next_due_ms is not None and self._room():
            pause_s = min(pause_s, (next_due_ms - clock.now_ms()) / 1000)
        return max(pause_s, 0.001)

    def _enter(self) -> None:
        self._declare(self._queues)
        with self._database.writing(_LOCK_S, durable=False) as connection:
            self._request = sqlite_control.last_request(connection)
            self._lease.enter(connection)

    def _flush(self) -> None:
        """Do what others handed over."""
        with self._guard:
            done, self._done = self._done, []
            returned, self._returned = self._returned, []
            replies, self._replies = self._replies, []
        try:
            if done or returned:
                self._settle_now(done, returned, _LOCK_S)
                done, returned = [], []
            if replies:
                with self._database.writing(_LOCK_S, durable=False) as connection:
                    sqlite_control.write_replies(connection, self._lease.owner, replies)
        except (Trouble, ConfigError):
            with self._guard:
                self._done += done
                self._returned += returned
                self._replies += replies
            raise

    def _room(self) -> list[str]:
        """Return the queues to take from, in order of preference."""
        return [] if self._paused or self._closing else self._hand.room()

    def _look(
        self,
    ) -> tuple[bool, int | None, list[Silent], list[tuple[int, dict[str, Any]]]]:
        """Read what there is to do: (messages to claim or promote?, next due, silent, requests)."""
        room = self._room()
        now_s = clock.monotonic_s()
        prefix = self._options.prefix
        silent: list[Silent] = []
        with self._database.reading(_LOCK_S) as connection:
            ready = any(
                connection.execute(sqlite_rows.ANY_READY, (prefix + name,)).fetchone()
                and not self._is_taken(connection, name)
                for name in room
            )
            (due_ms,) = connection.execute(sqlite_rows.NEXT_DUE).fetchone()
            requests = sqlite_control.new_requests(connection, self._request, prefix)
            if now_s - self._looked_s >= min(0.5, self._options.lease_s / 10):
                silent = self._lease.silent(connection)
                self._looked_s = now_s
        is_due = bool(room) and due_ms is not None and due_ms <= clock.now_ms()
        return ready or is_due, due_ms, silent, requests

    def _claim(self, silent: Sequence[Silent]) -> tuple[list[Delivery], bool]:
        """Renew, expire, promote and claim in one transaction; whether more may be waiting."""
        deliveries: list[Delivery] = []
        with self._database.writing(_LOCK_S, durable=False) as connection:
            # Renewed first and always: what is claimed for an owner that others have expired
            # would belong to nobody, for ever.
            lost = not self._lease.renew(connection)
            if not lost:
                expire(connection, silent)
                promoted = connection.execute(sqlite_rows.PROMOTE, (clock.now_ms(),)).rowcount
                self._limits.expire(connection, promoted > 0)
                deliveries, full = self._take(connection)
        if lost:
            self._lose()
            return [], True
        self._hand.take(deliveries)
        return deliveries, full or promoted == sqlite_rows.PROMOTE_ROWS

    def _take(self, connection: sqlite3.Connection) -> tuple[list[Delivery], bool]:
        """Claim messages in this transaction; whether more may be had at once."""
        deliveries: list[Delivery] = []
        owner = self._lease.owner
        for name in self._room():
            count = min(self._hand.count_for(name, len(deliveries)), _CLAIM_ROWS - len(deliveries))
            if count <= 0 or self._is_taken(connection, name):
                continue
            if name in self._ordered:
                count = 1
            rows = self._aged(connection, name, count)
            rows += sqlite_rows.claim(
                connection, self._options.prefix + name, owner, count - len(rows)
            )
            deliveries += [
                Delivery((owner, seq), name, message, tries > 0, tries, error)
                for seq, tries, message, error in rows
            ]
        return deliveries, len(deliveries) >= _CLAIM_ROWS

    def _is_taken(self, connection: sqlite3.Connection, name: str) -> bool:
        """Return whether a shard's task is in some worker's hands: the next one waits for it."""
        if name not in self._ordered:
            return False
        row = connection.execute(sqlite_rows.ANY_LEASED, (self._options.prefix + name,)).fetchone()
        return row is not None

    def _aged(
        self, connection: sqlite3.Connection, name: str, count: int
    ) -> list[sqlite_rows.Claimed]:
        """Claim what aging gives to lower priorities: one in so many."""
        aging = self._options.priority_aging
        if not aging:
            return []
        turns, self._claims = divmod(self._claims + count, aging)
        rows = []
        for _ in range(min(turns, count)):
            self._aged_turns += 1
            queue, owner = self._options.prefix + name, self._lease.owner
            rows += sqlite_rows.claim_lower(connection, queue, owner, self._aged_turns)
        return rows

    def _lose(self) -> None:
        """Forget everything: others gave our messages away, as if this process had died."""
        log.warning("lost the lease path=%s held=%d", self._database.label, self._hand.clear())
        with self._guard:
            self._done.clear()
            self._returned.clear()
        self._lease.owner = 0
        self._call(self._sink.lost)

    def _leave(self) -> None:
        """Flush and give back; what cannot be given back now is when the lease ends."""
        deadline = clock.monotonic_s() + self._options.publish_timeout_s
        while self._lease.owner:
            try:
                self._flush()
                with self._database.writing(_LOCK_S, durable=False) as connection:
                    self._lease.leave(connection)
                break
            except (Trouble, ConfigError) as error:
                if clock.monotonic_s() >= deadline:
                    log.warning("leaving without giving back reason=%s", error)
                    break
        self._hand.clear()
        if self._wakeup is not None:
            self._wakeup.close()

    # On the loop.

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            # The loop was closed under us: nobody is there to deliver to.
            self._closing = True

    def _deliver(self, batch: list[Delivery]) -> None:
        owner = self._lease.owner
        current = [delivery for delivery in batch if delivery.receipt[0] == owner]
        if self._paused or self._closing:
            with self._guard:
                self._returned += [delivery.receipt for delivery in current]
            self._poke()
        elif current:
            self._sink.delivered(current)

    def _answer(self, number: int, request: Mapping[str, Any]) -> None:
        try:
            reply = self._sink.control(request)
        # A command that fails must neither end the loop nor keep the asker waiting.
        except Exception:
            log.exception("control request failed command=%s", request.get("command"))
            reply = None
        with self._guard:
            self._replies.append((number, reply or {}))
        self._poke()
