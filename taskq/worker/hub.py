"""The hub: deliveries in, admission, windows, settlement. It does I/O and runs no user code.

::

    broker ─delivered─▶ open ─▶ admission (one fetch a batch) ─▶ ready ─▶ pool ─▶ executors
                         │            │                                      │
                         └────────────┴──────────▶ settler ◀── endings ──────┘
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from taskq import clock, outcome
from taskq.brokers.base import Broker, Consumer, Delivery
from taskq.config import WorkerSettings
from taskq.errors import RemoteError, ResultsUnavailable
from taskq.results.base import ResultStore
from taskq.worker import endings
from taskq.worker.admission import Admission
from taskq.worker.control import answer
from taskq.worker.endings import Ending
from taskq.worker.held import Held
from taskq.worker.launcher import AnyLauncher
from taskq.worker.manifest import Manifest
from taskq.worker.pool import Pool, layout
from taskq.worker.settle import Settler
from taskq.worker.stats import Stats
from taskq.worker.twins import RETURN_MS, Twins
from taskq.worker.window import Pace, worth_resizing

log = logging.getLogger("taskq.worker")

_HOLD_MS = 1000
_CROWDED_HOLD_MS = 250
_RESIZE_S = 0.25
_TICK_S = 0.05
_STARTED_AFTER_S = 0.2
_HOARD_S = 1.0


class Hub:
    """One worker's flow of deliveries; every method runs on its loop.

    Attributes:
        held: Deliveries in hand, by tag.
        ready: Those that may start, in order.
        unsettled: Endings handed to the settler and not settled yet.
        stats: Counters.
        connected: Whether the broker delivers.
        trouble: Why not, or empty.
        quiet: Whether nothing more is consumed.
        cold: Whether running tasks are being killed and requeued.
        failure: Set when the worker cannot go on.
    """

    def __init__(
        self,
        name: str,
        settings: WorkerSettings,
        manifest: Manifest,
        launcher: AnyLauncher,
        broker: Broker,
        store: ResultStore | None,
    ) -> None:
        self.name = name
        self.settings = settings
        self.manifest = manifest
        self.queues = settings.queues or manifest.queues()
        self.held: dict[int, Held] = {}
        self.ready: deque[Held] = deque()
        self.early: set[Held] = set()
        self.unsettled = 0
        self.stats = Stats()
        self.connected = False
        self.trouble = "not connected yet"
        self.failure: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self._store = store
        self._admission = Admission(manifest, name, store is not None)
        self._threads = ThreadPoolExecutor(1, "taskq-admission")
        self._to_admit: list[Held] = []
        self._twins = Twins()
        self._admitting = False
        self.quiet = False
        self.cold = False
        self._long = False
        self.settler = Settler(
            broker, store, manifest.settings.publish_timeout_s, self._settled_elsewhere
        )
        size, count = layout(settings)
        self.pace = Pace(size * count, settings.prefetch)
        self.pool = Pool(self._loop, launcher, settings, self.pace, self)
        self.prefetch = self.pace.prefetch()
        self._resized_at = 0.0
        self.consumer: Consumer = broker.consumer(self.queues, self.prefetch, self, self._loop)
        self.settler.consumer = self.consumer
        self._ticker: asyncio.TimerHandle | None = None
        self._ticks = 0

    def start(self) -> None:
        """Begin: executors, settling, consuming."""
        self.settler.start()
        self.pool.start()
        self.consumer.start()
        self._tick()

    def delivered(self, batch: list[Delivery]) -> None:
        """Take messages from the broker."""
        self.stats.received += len(batch)
        opened = []
        for delivery in batch:
            held, ending = self._admission.open(delivery)
            self.held[held.tag] = held
            if ending is None:
                opened.append(held)
            else:
                self._end(held, ending)
        if self._store is None:
            self._admit(opened, [None] * len(opened))
        elif opened:
            self._to_admit += self._twins.enter(opened)
            self._fetch()

    def lost(self) -> None:
        """Forget what has not started: the broker delivers it again."""
        running = {held.tag for _, held, _ in self.pool.running()}
        for held in list(self.held.values()):
            if held.tag not in running:
                held.void = True
                if held.child is None:
                    del self.held[held.tag]
                    self._twins.leave(held)
        self.ready.clear()
        self.early.clear()
        self._to_admit = []
        for child in self.pool.children:
            child.take_back()

    def connection(self, up: bool, detail: str) -> None:
        """Learn that consuming began or stopped."""
        if up and not self.connected:
            log.info("consuming queues=%s", ",".join(self.queues))
        elif not up and detail != self.trouble:
            log.warning("not consuming why=%s", detail)
        self.connected = up
        self.trouble = "" if up else detail

    def fatal(self, error: Exception) -> None:
        """Learn that the worker cannot go on."""
        if not self.failure.done():
            self.failure.set_result(error)

    def control(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """Answer a control request."""
        return answer(self, request)

    def _fetch(self) -> None:
        if self._admitting or not self._to_admit or self._store is None:
            return
        batch, self._to_admit = self._to_admit, []
        self._admitting = True
        ids = [held.delivery.message.id for held in batch]
        future = self._loop.run_in_executor(self._threads, self._store.fetch, ids)
        future.add_done_callback(lambda done: self._fetched(batch, done))

    def _fetched(self, batch: list[Held], done: "asyncio.Future[list[bytes | None]]") -> None:
        self._admitting = False
        error = done.exception()
        if error is None:
            self._admit(batch, done.result())
            self._fetch()
            return
        if isinstance(error, ResultsUnavailable):
            log.warning("admission waits for the results store error=%s", error)
        else:
            # A wrong password, say: no waiting cures it.
            self.fatal(error if isinstance(error, Exception) else RuntimeError(repr(error)))
        self._to_admit = [held for held in batch if not held.void] + self._to_admit
        self._loop.call_later(0.5, self._fetch)

    def _admit(self, batch: list[Held], records: list[bytes | None]) -> None:
        if self.quiet:
            self._give_back([held for held in batch if not held.void])
            return
        now_ms, now_s = clock.now_ms(), time.monotonic()
        for held, data in zip(batch, records, strict=True):
            if held.void:
                self.held.pop(held.tag, None)
                continue
            ending = self._admission.judge(held, data)
            if ending is not None:
                self._end(held, ending)
            elif held.envelope.due_ms > now_ms:
                self._hold(held, held.envelope.due_ms - now_ms)
            else:
                held.since_s = now_s
                self.ready.append(held)
        self._dispatch()

    def _hold(self, held: Held, early_ms: int) -> None:
        """Keep an early message for at most a second, else send it on towards its time."""
        crowded = len(self.early) * 2 > self.prefetch
        if early_ms > (_CROWDED_HOLD_MS if crowded else _HOLD_MS):
            case = held.case(self.name, self._store is not None)
            self._end(held, endings.deferred(case, held.envelope.due_ms))
            return
        self.early.add(held)
        self._loop.call_later(early_ms / 1000, self._due, held)

    def _due(self, held: Held) -> None:
        if held not in self.early:
            return
        left_ms = held.envelope.due_ms - clock.now_ms()
        if left_ms > 0:
            # The loop's clock and the wall clock differ by a little: never early.
            self._loop.call_later(left_ms / 1000, self._due, held)
            return
        self.early.discard(held)
        held.since_s = time.monotonic()
        self.ready.append(held)
        self._dispatch()

    def _dispatch(self) -> None:
        if self.ready:
            self.pool.dispatch(self.ready)

    def room(self) -> None:
        """An executor can take work."""
        self._dispatch()

    def finished(self, outcomes: list[tuple[Held, Ending]]) -> None:
        """Runs ended in an executor."""
        self._settle(outcomes)
        self._dispatch()
        self._adapt()

    def returned(self, batch: list[Held]) -> None:
        """Unstarted work came back from an executor."""
        kept = []
        for held in batch:
            if held.void:
                self.held.pop(held.tag, None)
                self._to_admit += self._twins.leave(held)
            else:
                kept.append(held)
        self._fetch()
        if self.quiet:
            self._give_back(kept)
        else:
            self.ready.extendleft(reversed(kept))
            self._dispatch()

    def executor_lost(self, batch: list[Held], detail: str) -> None:
        """An executor died while it ran these: each costs one attempt.

        At a cold stop the worker itself killed it, which costs nothing.
        """
        if self.cold:
            self._give_back(batch)
            return
        for held in batch:
            error = RemoteError("taskq.errors", "WorkerLost", f"the executor was {detail}")
            retryable = held.info is not None and held.info.retry_lost
            self._end(
                held, endings.failed(self._case(held), error, retryable, us=1, reason="worker_lost")
            )

    def timed_out(self, held: Held) -> None:
        """A task passed its hard limit and was stopped."""
        limit_s = held.time_limit_s or 0.0
        error = RemoteError(
            "taskq.errors", "TimeLimitExceeded", f"the task ran longer than {limit_s:g} s"
        )
        retryable = held.info is not None and held.info.retry_timeout
        self._end(
            held,
            endings.failed(self._case(held), error, retryable, us=max(1, int(limit_s * 1e6))),
        )

    def _case(self, held: Held) -> endings.Case:
        return held.case(self.name, self._store is not None)

    def _end(self, held: Held, ending: Ending) -> None:
        self._settle([(held, ending)])

    def _settle(self, outcomes: list[tuple[Held, Ending]]) -> None:
        batch = [held for held, _ in outcomes]
        for held in batch:
            self.held.pop(held.tag, None)
        self.stats.ended(outcomes)
        self.unsettled += len(batch)
        self._twins.put(batch)
        self.settler.put([(held.delivery.receipt, ending) for held, ending in outcomes])

    def _give_back(self, batch: list[Held]) -> None:
        self._settle([(held, Ending(endings.REQUEUED)) for held in batch])

    def give_back_unstarted(self) -> None:
        """Return every delivery that no executor holds, and ask executors for theirs."""
        batch = [*self.ready, *self.early, *self._to_admit, *self._twins.impatient(-1)]
        self.ready.clear()
        self.early.clear()
        self._to_admit = []
        self._give_back(batch)
        for child in self.pool.children:
            child.take_back()

    def _settled_elsewhere(self, count: int) -> None:
        self._loop.call_soon_threadsafe(self._settled, count)

    def _settled(self, count: int) -> None:
        self.unsettled -= count
        self._to_admit += self._twins.settled(count)
        self._fetch()

    def _adapt(self) -> None:
        if self._long:
            self._leave_long()
            return
        wanted = self.pace.prefetch()
        now = time.monotonic()
        if worth_resizing(self.prefetch, wanted) and now - self._resized_at > _RESIZE_S:
            self._resized_at = now
            self.prefetch = wanted
            self.consumer.resize(wanted)

    def _tick(self) -> None:
        self._ticks += 1
        busy = bool(self.held)
        if busy:
            self.pool.tick()
            self._mark_started()
            for held in self._twins.impatient():
                self._end(held, endings.deferred(self._case(held), clock.now_ms() + RETURN_MS))
            self._release_hoarded()
        if self._ticks % 20 == 0 or not busy:
            self.pool.check_memory()
        self._ticker = self._loop.call_later(_TICK_S if busy else _TICK_S * 4, self._tick)

    def _mark_started(self) -> None:
        """Store STARTED for what runs long enough for anybody to ask; short tasks cost nothing."""
        if self._store is None:
            return
        writes = []
        for _, held, ran_s in self.pool.running():
            if ran_s < _STARTED_AFTER_S or held.marked or held.info is None:
                continue
            held.marked = True
            writes.append(endings.started(self._case(held)))
        if writes:
            self.settler.put([(None, Ending(outcome.STARTED, writes))])

    def _release_hoarded(self) -> None:
        """Give messages back that wait behind long tasks while other workers may be idle."""
        if self.settings.prefetch or self.pool.idle_slots() or not self.ready:
            return
        limit = time.monotonic() - _HOARD_S
        if self.ready[0].since_s > limit:
            return
        if not self._long:
            # While every slot is taken nothing more is consumed: what is given back would return.
            self._long = True
            self.consumer.pause()
        batch = list(self.ready)
        self.ready.clear()
        self._give_back(batch)

    def _leave_long(self) -> None:
        free = self.pool.idle_slots()
        if free and not self.quiet:
            self._long = False
            self.prefetch = free
            self._resized_at = time.monotonic()
            self.consumer.resize(free)
            self.consumer.resume()

    def stop_consuming(self) -> None:
        """Take nothing more from the broker."""
        if not self.quiet:
            self.quiet = True
            self.consumer.pause()

    async def close(self, settle_s: float) -> bool:
        """Settle what is left, close the connections.

        Returns:
            Whether everything was settled in time.
        """
        if self._ticker is not None:
            self._ticker.cancel()
        done = await self._loop.run_in_executor(None, self.settler.stop, settle_s)
        await self.consumer.close()
        self.pool.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        return done
