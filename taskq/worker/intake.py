"""Deliveries on their way to admission: one round trip to the store for each batch.

While one batch is judged, what arrives meanwhile forms the next; while executors have enough to do
it goes on growing. A store that is away keeps the batch waiting, and with it, by the broker's
prefetch, consuming comes to a stop by itself.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from taskq import clock
from taskq.errors import ResultsUnavailable
from taskq.results.base import MAX_NEWS, ResultStore
from taskq.worker.admission import Admission
from taskq.worker.endings import Ending
from taskq.worker.held import Held
from taskq.worker.revoker import look_up

log = logging.getLogger("taskq.worker")

Value = TypeVar("Value")
_STORE_PAUSE_S = 0.5

Judged = Sequence[tuple[Held, Ending | None]]
"""Deliveries, each with the ending that keeps it from running, or None."""


class Gate(Protocol):
    """What may hold back an admitted delivery: limits of rate or of number."""

    def idle(self) -> bool:
        """Return whether it has nothing to say of the batch whose records were just fetched."""

    def ask(self, batch: Sequence[Held]) -> Sequence[Ending | None]:
        """Return for each delivery None to let it start, or what becomes of it (`deferred`).

        Called on the admission thread with deliveries that are due and that admission let through,
        so one round trip to a store is in place. Raises ResultsUnavailable to have the batch
        asked again later. What passed may still be given back unstarted (a stop, a lost
        connection): `Hub.finished`, `returned` and `lost` are where every delivery leaves.
        """


class Intake:
    """Judges batches on a thread, and hands them back on the hub's loop.

    Attributes:
        gates: Asked in order, after admission.
        fetch: Gets the records of a batch; a gate may put its own question into the same round
            trip.
        hungry: Whether what was judged will soon have been handed out.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        store: ResultStore | None,
        admission: Admission,
        on_judged: Callable[[Judged], None],
        on_fatal: Callable[[Exception], None],
    ) -> None:
        """Prepare the thread.

        Args:
            loop: The hub's.
            store: Where records are; None when results are off.
            admission: Judge of single deliveries.
            on_judged: Told each batch's verdicts.
            on_fatal: Told what no waiting cures.
        """
        self.gates: list[Gate] = []
        self.fetch: Callable[[Sequence[Held]], Sequence[bytes | None]] = self._fetch
        self.hungry: Callable[[], bool] = lambda: True
        self._loop = loop
        self._store = store
        self._admission = admission
        self._on_judged = on_judged
        self._on_fatal = on_fatal
        self._waiting: list[Held] = []
        self._busy = False
        self._threads = ThreadPoolExecutor(1, "taskq-admission")

    def add(self, batch: Sequence[Held]) -> None:
        """Judge these, at once or with the next batch."""
        if self._store is None and not self.gates:
            if batch:
                self._on_judged(self._judge(batch))
            return
        self._waiting += batch
        self.go_on()

    def go_on(self, at_once: bool = False) -> None:
        """Judge what waits when it is time to; to be called when executors took work.

        Args:
            at_once: Also while there is enough to do: what waits may be more urgent than that.
        """
        if self._waiting and not self._busy and (at_once or self.hungry()):
            self._next()

    def clear(self) -> list[Held]:
        """Take out what waits for its batch; the batch under way comes back as it may."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def run(self, function: "Callable[[], Value]") -> "asyncio.Future[Value]":
        """Run a function on the admission thread, behind the batch under way."""
        return self._loop.run_in_executor(self._threads, function)

    def close(self) -> None:
        """End the thread once it is idle."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _next(self) -> None:
        if self._busy or not self._waiting:
            return
        self._busy = True
        batch = self.clear()
        future = self._loop.run_in_executor(self._threads, self._judge, batch)
        future.add_done_callback(lambda done: self._judged(batch, done))

    def _fetch(self, batch: Sequence[Held]) -> Sequence[bytes | None]:
        if self._store is None:
            return [None] * len(batch)
        ids = [held.delivery.message.id for held in batch]
        return look_up(self._store, self._admission.rules, ids)

    @property
    def last_cancel(self) -> int:
        """Number of the newest cancel rule that is known."""
        return self._admission.rules.last

    def learn_cancels(self, news: Sequence[tuple[int, bytes]]) -> None:
        """Learn cancel rules, for a gate that gets the records itself."""
        self._admission.rules.learn(news)
        if len(news) == MAX_NEWS and self._store is not None:
            look_up(self._store, self._admission.rules, ())

    def _judge(self, batch: Sequence[Held]) -> Judged:
        records = self.fetch(batch)
        judge = self._admission.judge
        verdicts = [judge(held, data) for held, data in zip(batch, records, strict=True)]
        for gate in self.gates:
            if gate.idle():
                continue
            now_ms = clock.now_ms()
            open_at = [
                at
                for at, ending in enumerate(verdicts)
                if ending is None and not batch[at].void and batch[at].due_ms <= now_ms
            ]
            answers = gate.ask([batch[at] for at in open_at]) if open_at else ()
            for at, answer in zip(open_at, answers, strict=True):
                verdicts[at] = answer
        return list(zip(batch, verdicts, strict=True))

    def _judged(self, batch: list[Held], done: "asyncio.Future[Judged]") -> None:
        self._busy = False
        error = done.exception()
        if error is None:
            self._on_judged(done.result())
            self.go_on()
            return
        if isinstance(error, ResultsUnavailable):
            log.warning("admission waits for the results store error=%s", error)
        else:
            # A wrong password, say: no waiting cures it.
            self._on_fatal(error if isinstance(error, Exception) else RuntimeError(repr(error)))
        self._waiting = [held for held in batch if not held.void] + self._waiting
        self._loop.call_later(_STORE_PAUSE_S, self._next)
