"""The hub: deliveries in, admission, windows, settlement. It does I/O and runs no user code.

::

    broker ─delivered─▶ open ─▶ twins ─▶ intake (admission, gates) ─▶ ready ─▶ pool ─▶ executors
                         │                 │      ▲                              │
                         │                 │      └─ early (its last second)     │
                         └─────────────────┴────────▶ settler ◀── endings ───────┘
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

from taskq import clock, outcome
from taskq.brokers.base import Broker, Consumer, Delivery
from taskq.config import WorkerSettings
from taskq.results.base import ResultStore
from taskq.worker import endings, failpoints, losses
from taskq.worker.admission import Admission
from taskq.worker.control import answer
from taskq.worker.dead_hook import DeadTeller
from taskq.worker.early import Early
from taskq.worker.endings import Ending
from taskq.worker.gates import make_gates, sent_on
from taskq.worker.held import Held
from taskq.worker.intake import Intake, Judged
from taskq.worker.launcher import AnyLauncher
from taskq.worker.manifest import Manifest
from taskq.worker.overrun import unmarked
from taskq.worker.pauses import PauseWatch
from taskq.worker.pool import Pool, layout
from taskq.worker.prefetch import Prefetch
from taskq.worker.ready import Ready
from taskq.worker.report import Reporting
from taskq.worker.restarts import Restarts
from taskq.worker.revoker import Revoker
from taskq.worker.settle import Settler
from taskq.worker.stats import Stats
from taskq.worker.twins import RETURN_MS, Twins
from taskq.worker.watchdog import Watchdog
from taskq.worker.window import Pace

log = logging.getLogger("taskq.worker")

_TICK_S = 0.05
_ENOUGH = 256
"""Judged deliveries that keep executors busy while the next are judged."""


class Hub:
    """One worker's flow of deliveries; every method runs on its loop.

    Attributes:
        held: Deliveries in hand, by tag.
        intake: Those on their way to admission; limits attach to its `gates`.
        gates: Limits of rate and number, and the rest of flow control; None without a store.
        revoker: Ends those that are cancelled meanwhile.
        ready: Those that may start, in order.
        unsettled: Endings handed to the settler and not settled yet.
        pauses: What is paused.
        stats: Counters.
        reporting: The worker's lifecycle events.
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
        self.manifest = manifest = manifest.of_worker(name, broker)
        self.queues = manifest.consumed(settings.queues or manifest.queues())
        self.held: dict[int, Held] = {}
        self.ready = Ready(manifest.settings.priority_aging)
        self.early = Early(asyncio.get_running_loop(), self._due)
        self.unsettled = 0
        self.stats = Stats()
        self.connected = False
        self.trouble = "not connected yet"
        self.failure: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self._store = store
        self._admission = Admission(manifest, name, store is not None)
        self.intake = Intake(self._loop, store, self._admission, self._admit, self.fatal)
        self.gates = make_gates(manifest, store, name, self.intake)
        self.intake.hungry = lambda: len(self.ready) < _ENOUGH
        self._twins = Twins()
        self._restarts = None
        if store is not None:
            self._restarts = Restarts(store, self._admission, self.intake.run, self._counted)
            self._restarts.flags_returned = broker.flags_returned
        self.quiet = self.cold = False
        self.settler = Settler(
            broker, store, manifest.settings.publish_timeout_s, self._settled_elsewhere
        )
        self.settler.release = self.gates.release if self.gates is not None else None
        size, count = layout(settings)
        self.pace = Pace(size * count, settings.prefetch)
        self.pool = Pool(self._loop, launcher, settings, self.pace, self)
        self._prefetch = Prefetch(settings, self.pace, self.pool, self.ready)
        self.consumer: Consumer = broker.consumer(self.queues, self.prefetch, self, self._loop)
        self._prefetch.consumer = self.settler.consumer = self.consumer
        self.reporting = Reporting(manifest.app, name, manifest.settings, broker, self.settler)
        if manifest.tells_dead:
            self.settler.on_dead = DeadTeller(self._loop, self.pool)
        self.pauses = PauseWatch(self, store, self._loop)
        self.watchdog = Watchdog(self, broker, settings.watchdog_s)
        self.revoker = Revoker(self, store, self._admission, settings.cancel_grace_s)
        self._ticker: asyncio.TimerHandle | None = None
        self._ticks = 0

    @property
    def prefetch(self) -> int:
        """How many unsettled messages the broker may leave here."""
        return self._prefetch.size

    @property
    def consuming(self) -> bool:
        """Whether the broker is asked for more."""
        return not self.quiet and not self._prefetch.paused

    def start(self) -> None:
        """Begin: executors, settling, consuming."""
        self.settler.start()
        self.pool.start()
        # It starts the consumer as soon as it knows which queues are paused.
        self.pauses.start()
        self.reporting.start(self)
        self._tick()

    def delivered(self, batch: list[Delivery]) -> None:
        """Take messages from the broker."""
        self.stats.received += len(batch)
        opened = []
        now_us = time.time_ns() // 1000
        for delivery in batch:
            held, ending = self._admission.open(delivery)
            held.received_us = now_us
            self.held[held.tag] = held
            if ending is None:
                held.suspect = delivery.redelivered and self._restarts is not None
                opened.append(held)
            else:
                self._end(held, ending)
        if self._store is not None:
            opened = self._twins.enter(opened)
        self.intake.add(opened)

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
        self.intake.clear()
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

    def _admit(self, judged: Judged) -> None:
        if self.quiet:
            self._give_back([held for held, _ in judged if not held.void])
            return
        if self.pauses.current:
            # Paused while the batch was judged.
            judged = [(held, ending or self.pauses.verdict(held)) for held, ending in judged]
        now_ms, now_s = clock.now_ms(), time.monotonic()
        for held, ending in judged:
            if held.void:
                self.held.pop(held.tag, None)
            elif ending is not None:
                self._end(held, ending)
            elif held.due_ms > now_ms:
                if not self.early.hold(held, held.due_ms - now_ms, self.prefetch):
                    self._end(held, sent_on(held, self._case(held)))
            elif held.asks:
                # Its moment came while it was judged, or it waits for less than a millisecond.
                self.intake.add([held])
            else:
                held.since_s = now_s
                self.ready.append(held)
        self.room()

    def _due(self, held: Held) -> None:
        # Judged once more: it may have been cancelled in the last second, and limits count starts.
        self.intake.add([held])

    def room(self) -> None:
        """Hand out what is ready: an executor can take work, or there is more of it."""
        if self.ready:
            self.pool.dispatch(self.ready)
        self.intake.go_on()

    def to_count(self, batch: list[Held]) -> None:
        """Redelivered work has a place in an executor, and starts when that is counted."""
        if self._restarts is not None:
            self._restarts.count(batch)

    def _counted(self, held: Held, ending: Ending | None) -> None:
        child = held.child
        if child is None:
            return
        if ending is None and not held.void and not self.quiet:
            held.marked = True
            child.run([held])
            return
        child.release(held)
        if held.void:
            self.returned([held])
        elif self.quiet:
            self._give_back([held])
        elif ending is not None:
            self._end(held, ending)
        self.room()

    def finished(self, outcomes: list[tuple[Held, Ending]]) -> None:
        """Runs ended in an executor."""
        if self.quiet and self._restarts is not None:
            self._restarts.refund(outcomes)
        self.settle(outcomes)
        self.room()
        self._prefetch.adapt(self.quiet)

    def returned(self, batch: list[Held]) -> None:
        """Unstarted work came back from an executor."""
        kept = []
        for held in batch:
            if held.void:
                self.held.pop(held.tag, None)
                self.intake.add(self._twins.leave(held))
            else:
                kept.append(held)
        kept = self.revoker.unstarted(kept)
        if self.pauses.current:
            kept, paused = self.pauses.sort(kept)
            self._let_go(paused)
        if self.quiet:
            self._give_back(kept)
        else:
            self.ready.extendleft(reversed(kept))
            self.room()

    def executor_lost(self, batch: list[Held], detail: str) -> None:
        """An executor died while it ran these: each costs one attempt.

        At a cold stop the worker itself killed it, which costs nothing.
        """
        if self.cold:
            self._give_back(batch)
            return
        detail = f"the executor was {detail}"
        self.settle([(held, losses.worker_lost(self._case(held), detail)) for held in batch])

    def timed_out(self, held: Held) -> None:
        """A task passed its hard limit and was stopped."""
        self._end(held, losses.timed_out(self._case(held), held.overrun, held.ran_s))

    def _case(self, held: Held) -> endings.Case:
        return held.case(self.name, self._store is not None)

    def _end(self, held: Held, ending: Ending) -> None:
        self.settle([(held, ending)])

    def settle(self, outcomes: list[tuple[Held, Ending]]) -> None:
        """Hand endings over to the settler; nothing else lets go of a delivery."""
        if not outcomes:
            return
        outcomes = self.revoker.ended(outcomes)
        batch = [held for held, _ in outcomes]
        for held, ending in outcomes:
            self.held.pop(held.tag, None)
            if ending.code == outcome.RETRY:
                ending.rank = held.envelope.retries, held.envelope.starts
        if self.gates is not None:
            self.gates.collect(outcomes)
        self.stats.ended(outcomes)
        self.reporting.ended(outcomes)
        self.unsettled += len(batch)
        self._twins.put(batch)
        self.settler.put([(held.delivery.receipt, ending) for held, ending in outcomes])

    def _give_back(self, batch: list[Held]) -> None:
        # What is void was settled, or belongs to the broker again.
        self._let_go([(held, Ending(endings.REQUEUED)) for held in batch if not held.void])

    def _let_go(self, outcomes: list[tuple[Held, Ending]]) -> None:
        if self._restarts is not None:
            self._restarts.refund(outcomes)
        self.settle(outcomes)

    def withhold(self) -> None:
        """Let go of what has not started and may not start now."""
        kept, paused = self.pauses.sort(self.ready.clear())
        for held in kept:
            self.ready.append(held)
        self._let_go(paused)
        for child in self.pool.children:
            if any(self.pauses.verdict(held) for held in child.held.values()):
                child.take_back()

    def give_back_unstarted(self) -> None:
        """Return every delivery that no executor holds, and ask executors for theirs."""
        batch = [*self.ready.clear(), *self.early.clear(), *self.intake.clear()]
        self._give_back(batch + self._twins.impatient(-1))
        for child in self.pool.children:
            child.take_back()

    def _settled_elsewhere(self, count: int) -> None:
        self._loop.call_soon_threadsafe(self._settled, count)

    def _settled(self, count: int) -> None:
        self.unsettled -= count
        failpoints.reach(failpoints.ACKED)
        self.intake.add(self._twins.settled(count))

    def _tick(self) -> None:
        self._ticks += 1
        busy = bool(self.held)
        if busy:
            self.pool.tick()
            self.intake.go_on(at_once=True)
            self.revoker.tick()
            self._mark_started()
            self.reporting.running(self.pool.running())
            for held in self._twins.impatient():
                self._end(held, endings.deferred(self._case(held), clock.now_ms() + RETURN_MS))
            self._give_back(self._prefetch.hoarded())
            if self.gates is not None:
                self.gates.renew(self.held.values())
        self._prefetch.resume(self.quiet)
        if self._ticks % 20 == 0 or not busy:
            self.pool.check_memory()
        self._ticker = self._loop.call_later(_TICK_S if busy else _TICK_S * 4, self._tick)

    def _mark_started(self) -> None:
        """Store STARTED for what runs long enough for anybody to ask; short tasks cost nothing."""
        found = unmarked(self.pool.running()) if self._store is not None else ()
        if writes := [endings.started(self._case(held)) for held in found]:
            self.settler.put([(None, Ending(outcome.STARTED, writes))])

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
        self.pauses.close()
        await self._loop.run_in_executor(None, self.reporting.stop)
        done = await self._loop.run_in_executor(None, self.settler.stop, settle_s)
        await self.consumer.close()
        self.pool.close()
        self.intake.close()
        return done
