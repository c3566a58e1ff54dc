"""The one place that settles deliveries: results stored, follow-ups confirmed, then the ack.

One thread, one batch at a time; whatever finishes meanwhile forms the next batch (group commit), so
batches grow under load by themselves and an idle worker waits for nothing. While the results store
or the broker is away the batch in hand waits, nothing is acknowledged, and the broker's prefetch
brings consuming to a stop by itself.
"""

import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from taskq import clock, outcome
from taskq.brokers.base import Broker, Consumer, Outgoing
from taskq.errors import BrokerError, ConfigError, PublishError, ResultsUnavailable, TaskqError
from taskq.events.schema import EXCHANGE
from taskq.flow.asks import Release
from taskq.resend import dead
from taskq.results.base import (
    ResultStore,
    Write,
    attempt_of,
    is_terminal,
    outranks,
    starts_of,
)
from taskq.worker import failpoints
from taskq.worker.behind import cancelled_behind
from taskq.worker.endings import MALFORMED, REQUEUED, Ending

log = logging.getLogger("taskq.worker.settle")

Value = TypeVar("Value")
TTL_S = 7 * 86400
"""How long starts are counted after the last one, in seconds."""
_MAX_BATCH = 1000
_MAX_WAIT_S = 2.0
_FULL_MS = 1000
_HOPELESS = ("unroutable", "refused")


class Abandoned(TaskqError):
    """The worker stops before a batch could be settled; the broker delivers it again."""


class Settler:
    """Settles endings on a thread of its own.

    Attributes:
        consumer: Whose deliveries are acknowledged; set before `start`.
        store: The results store; None when results are off.
        events: Gives messages to send with each batch, before it is acknowledged.
        on_refused: Takes events that the broker will never take.
        on_dead: Takes dead letters that the broker has confirmed; None when nobody listens.
        release: Gives back what limits gave to the runs of a batch; None where there are none.
        trouble: What settling waits for, or empty.
    """

    def __init__(
        self,
        broker: Broker,
        store: ResultStore | None,
        publish_timeout_s: float,
        on_settled: Callable[[int], None],
    ) -> None:
        """Prepare the thread; `start` runs it.

        Args:
            broker: Where follow-ups go.
            store: Where records go; None when results are off.
            publish_timeout_s: Bound of one try to publish, in seconds.
            on_settled: Called on the settling thread with how many deliveries were settled.
        """
        self.consumer: Consumer | None = None
        self.events: Callable[[], Sequence[Outgoing]] = tuple
        self.release: Callable[[list[Release]], None] | None = None
        self.on_dead: Callable[[Sequence[Outgoing]], None] | None = None
        self.on_refused: Callable[[Outgoing], None] | None = None
        self._broker = broker
        self.store = store
        self._timeout_s = publish_timeout_s
        self._on_settled = on_settled
        self._todo: queue.SimpleQueue[list[tuple[Any, Ending]] | None] = queue.SimpleQueue()
        self._abandon = threading.Event()
        self._thread = threading.Thread(target=self._run, name="taskq-settle", daemon=True)
        self.trouble = ""

    def start(self) -> None:
        """Begin to settle."""
        self._thread.start()

    def put(self, items: list[tuple[Any, Ending]]) -> None:
        """Hand over endings with the receipts of their deliveries.

        A receipt of None settles no delivery: the ending's records are stored and its messages
        sent all the same.
        """
        self._todo.put(items)

    def stop(self, wait_s: float) -> bool:
        """Settle what was handed over and end; give up after `wait_s` seconds.

        Returns:
            Whether everything was settled.
        """
        self._todo.put(None)
        self._thread.join(wait_s)
        done = not self._thread.is_alive()
        self._abandon.set()
        self._thread.join(self._timeout_s + 1)
        return done

    def _run(self) -> None:
        ended = False
        while not ended:
            batch, ended = self._next_batch()
            try:
                self._commit(batch)
            except Abandoned:
                return
            # A fault in here must not end the thread: unsettled deliveries come back, silence
            # would not.
            except Exception:
                log.exception("settling failed; the broker will deliver %d again", len(batch))
                returned = [receipt for receipt, _ in batch if receipt is not None]
                if self.consumer is not None and returned:
                    self.consumer.settle((), returned)
            if batch:
                self._on_settled(sum(1 for receipt, _ in batch if receipt is not None))

    def _next_batch(self) -> tuple[list[tuple[Any, Ending]], bool]:
        items = self._todo.get()
        if items is None:
            return [], True
        batch = items
        while len(batch) < _MAX_BATCH:
            try:
                items = self._todo.get_nowait()
            except queue.Empty:
                break
            if items is None:
                return batch, True
            batch = batch + items
        return batch, False

    def _commit(self, batch: list[tuple[Any, Ending]]) -> None:
        finished = [ending for _, ending in batch if ending.code != outcome.RETRY]
        retries = [ending for _, ending in batch if ending.code == outcome.RETRY]
        refused = self._store_writes([write for ending in finished for write in ending.writes])
        outdated = {id(e) for e in finished if _is_refused(e, refused)}
        taken_over = {id(e) for e in finished if id(e) in outdated and _is_taken_over(e, refused)}
        if retries:
            self._look_at_retries(retries, outdated, taken_over)
            retries = [ending for ending in retries if id(ending) not in outdated]
        failpoints.reach(failpoints.STORED)
        follow = [
            item
            for _, ending in batch
            if ending.follow and id(ending) not in outdated
            for item in ending.follow
        ]
        self._cancel_behind([e for _, e in batch if e.follow and id(e) in outdated])
        follow += self.events()
        if follow:
            self._publish(follow)
        failpoints.reach(failpoints.CONFIRMED)
        # A retry's record comes after its message is confirmed: dying in between runs the attempt
        # twice; the other way round the redelivered original would be taken for outdated, and the
        # task would be lost.
        self._store_writes([write for ending in retries for write in ending.writes])
        self._give_back([ending.release for _, ending in batch if ending.release is not None])
        failpoints.reach(failpoints.BEFORE_ACK)
        done: list[Any] = []
        returned: list[Any] = []
        for receipt, ending in batch:
            if receipt is not None:
                # What another run has taken over is not ours to acknowledge.
                back = ending.code == REQUEUED or id(ending) in taken_over
                (returned if back else done).append(receipt)
        self._refund([ending.refund for _, ending in batch if ending.refund])
        if self.consumer is not None and (done or returned):
            # Ack last: dying before this line runs the task twice; after an early ack loses it.
            self.consumer.settle(done, returned)

    def _look_at_retries(
        self, retries: list[Ending], outdated: set[int], taken_over: set[int]
    ) -> None:
        """Find failed runs that are not the last ones of their tasks: they retry nothing.

        Their records come after their messages, so it is not the store that stops them.
        """
        store = self.store
        known = [ending for ending in retries if ending.writes and ending.rank is not None]
        if store is None or not known:
            return
        ids = [ending.writes[0].task_id for ending in known]
        for ending, data in zip(
            known, self._insist("results store", lambda: store.fetch(ids)), strict=True
        ):
            if data is None or ending.rank is None:
                continue
            stored = (attempt_of(data), starts_of(data))
            if is_terminal(data) or stored > ending.rank:
                outdated.add(id(ending))
                if not is_terminal(data) and stored[0] == ending.rank[0]:
                    taken_over.add(id(ending))

    def _cancel_behind(self, outdated: list[Ending]) -> None:
        """Cancel the steps behind runs that ended after their task was cancelled."""
        store = self.store
        if store is None or not outdated:
            return
        ids = [ending.writes[0].task_id for ending in outdated]
        stored = self._insist("results store", lambda: store.fetch(ids))
        gone = [e for e, data in zip(outdated, stored, strict=True) if data and data[:1] == b"C"]
        self._store_writes([write for ending in gone for write in cancelled_behind(ending)])

    def _refund(self, keys: list[str]) -> None:
        """Take back the starts of what is given back; best effort, a start too many does little."""
        if self.store is None or not keys:
            return
        try:
            self.store.count_starts(keys, TTL_S, -1)
        except (ResultsUnavailable, ConfigError) as error:
            log.warning("starts of %d returned tasks stay counted error=%s", len(keys), error)

    def _store_writes(self, writes: list[Write]) -> dict[int, bytes | None]:
        """Store records; return those that lost, by `id()`, with what is stored instead."""
        store = self.store
        if store is None or not writes:
            return {}
        taken = self._insist("results store", lambda: store.store(writes))
        lost = [write for write, ok in zip(writes, taken, strict=True) if not ok]
        if not lost:
            return {}
        # A write whose answer was lost on the line is refused when it is repeated: it is ours all
        # the same, and what follows it must still be sent.
        stored = self._insist("results store", lambda: store.fetch([w.task_id for w in lost]))
        return {
            id(write): data
            for write, data in zip(lost, stored, strict=True)
            if data != write.record
        }

    def _give_back(self, held: list[Release]) -> None:
        release = self.release
        if release is not None and held:
            self._insist("results store", lambda: release(held))

    def _publish(self, follow: Sequence[Outgoing]) -> None:
        waiting = list(follow)

        def attempt() -> None:
            nonlocal waiting
            errors = self._broker.publish(waiting, self._timeout_s)
            failed = [
                (item, error)
                for item, error in zip(waiting, errors, strict=True)
                if error and not self._passed_over(item, error)
            ]
            if self.on_dead is not None:
                pairs = zip(waiting, errors, strict=True)
                letters = [item for item, error in pairs if item.dead and error is None]
                if letters:
                    self.on_dead(letters)
            waiting = [_rerouted(item, error) for item, error in failed]
            if failed:
                raise failed[0][1]

        self._insist("broker", attempt)

    def _passed_over(self, item: Outgoing, error: PublishError) -> bool:
        """Return whether a failed message is given up: events must not keep tasks from ending."""
        hopeless = bool(item.topic) and error.reason in _HOPELESS
        if hopeless and self.on_refused is not None and item.queue == EXCHANGE:
            self.on_refused(item)
        return hopeless

    def _insist(self, what: str, attempt: Callable[[], Value]) -> Value:
        """Repeat until it works; raise Abandoned when the worker stops first."""
        wait_s = 0.05
        while True:
            try:
                value = attempt()
            except (ResultsUnavailable, BrokerError, ConfigError) as error:
                if not self.trouble:
                    log.warning("settling waits for the %s error=%s", what, error)
                self.trouble = f"{what}: {error}"
                if self._abandon.wait(wait_s):
                    raise Abandoned from error
                wait_s = min(wait_s * 2, _MAX_WAIT_S)
            else:
                if self.trouble:
                    self.trouble = ""
                    log.info("settling goes on")
                return value


def _is_refused(ending: Ending, refused: Mapping[int, bytes | None]) -> bool:
    """Return whether another run of the task ended it first, and sends what follows.

    Not so for a malformed message: its id may be any, also one it shares with a finished task, and
    the dead letter is all that is left of it.
    """
    if ending.code == MALFORMED or not ending.writes:
        return False
    return id(ending.writes[0]) in refused


def _is_taken_over(ending: Ending, refused: Mapping[int, bytes | None]) -> bool:
    """Return whether a later start of the same attempt is under way: its end is what counts."""
    write = ending.writes[0]
    data = refused[id(write)]
    if data is None or is_terminal(data):
        return False
    return attempt_of(data) == attempt_of(write.record) and outranks(data, write.record)


def _rerouted(item: Outgoing, error: PublishError) -> Outgoing:
    """Return what to send instead of a message that its queue does not take."""
    if error.reason == "nacked" and not (item.dead or item.topic):
        # A full queue: the broker keeps it in a delay until there is room. Waiting for that here
        # would hold up the acknowledgements that make room.
        return replace(item, due_ms=clock.now_ms() + _FULL_MS)
    if error.reason not in _HOPELESS or item.dead:
        return item
    described = outcome.describe(error)
    letter = dead(item.message, "unroutable", item.queue, error=replace(described, traceback=""))
    return Outgoing(item.queue, letter, dead=True)
