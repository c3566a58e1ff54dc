"""A worker from its start to its end: signals, burst, warm and cold stop."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable

from taskq.brokers.base import Broker
from taskq.config import WorkerSettings
from taskq.errors import BrokerError, ConfigError, ResultsUnavailable
from taskq.worker import health
from taskq.worker.hub import Hub
from taskq.worker.notify import notify, watchdog_interval_s

log = logging.getLogger("taskq.worker")

EX_OK, EX_FAILURE, EX_UNAVAILABLE, EX_TEMPFAIL, EX_CONFIG = 0, 1, 69, 75, 78
SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGTSTP,
    signal.SIGUSR1,
)
_POLL_S = 0.02
_CANCEL_WAIT_S = 2.0
_SETTLE_WAIT_S = 10.0
_BURST_POLL_S = 0.1
_BURST_HORIZON_S = 10.0
_BURST_CONNECT_S = 30.0


class Lifecycle:
    """Runs a hub until it is told to stop, or has nothing left to do in burst mode."""

    def __init__(self, hub: Hub, broker: Broker, settings: WorkerSettings) -> None:
        self._hub = hub
        self._loop = asyncio.get_running_loop()
        self._broker = broker
        self._settings = settings
        self._stop = asyncio.Event()
        self._cold = asyncio.Event()
        self._template_pid = 0

    def use_template(self, pid: int) -> None:
        """Learn the template's process id, for stack dumps."""
        self._template_pid = pid

    def on_signal(self, number: int) -> None:
        """Act on a signal: TERM warm, INT warm then cold, QUIT cold, HUP replace, TSTP quiet."""
        name = signal.Signals(number).name
        if number == signal.SIGUSR1:
            self._dump_stacks()
            return
        log.info("signal %s", name)
        if number == signal.SIGHUP:
            self._hub.pool.retire_all("SIGHUP")
        elif number == signal.SIGTSTP:
            log.info("quiet: taking no further tasks")
            self._hub.stop_consuming()
            self._hub.give_back_unstarted()
        elif number == signal.SIGQUIT or (number == signal.SIGINT and self._stop.is_set()):
            self._cold.set()
            self._stop.set()
        elif not self._stop.is_set():
            if number == signal.SIGINT:
                log.info("finishing running tasks; once more to requeue them")
            self._stop.set()

    def request_stop(self) -> None:
        """Stop warm, as TERM does."""
        self._stop.set()

    def _greet_store(self) -> None:
        """Find out at the start, not at the first task, that the results store refuses us."""
        store = self._hub.settler.store
        try:
            if store is not None:
                store.ping()
        except ConfigError as error:
            self._loop.call_soon_threadsafe(self._hub.fatal, error)
        except ResultsUnavailable as error:
            log.warning("the results store does not answer, waiting for it error=%s", error)

    def _dump_stacks(self) -> None:
        import faulthandler

        faulthandler.dump_traceback(all_threads=True)
        for child in self._hub.pool.children:
            if child.pid:
                os.kill(child.pid, signal.SIGUSR1)

    async def run(self) -> int:
        """Work until the stop and return the exit code."""
        hub = self._hub
        server = None
        if self._settings.health_port:
            try:
                server = await health.serve(hub, self._settings.health_port)
            except OSError as error:
                hub.fatal(ConfigError(f"health port {self._settings.health_port}: {error}"))
        hub.start()
        asyncio.get_running_loop().run_in_executor(None, self._greet_store)
        notify("READY=1")
        watchdogs = [
            asyncio.create_task(_watchdog()),
            asyncio.create_task(hub.watchdog.run()),
        ]
        ends: list[asyncio.Future[object]] = [
            asyncio.ensure_future(self._stop.wait()),
            asyncio.ensure_future(_result_of(hub.failure)),
        ]
        if self._settings.burst:
            ends.append(asyncio.ensure_future(self._until_empty()))
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        code = self._exit_code(ends)
        notify("STOPPING=1")
        await self._drain(code)
        for watchdog in watchdogs:
            watchdog.cancel()
        if server is not None:
            server.close()
        return code

    def _exit_code(self, ends: Iterable["asyncio.Future[object]"]) -> int:
        hub = self._hub
        if hub.failure.done():
            error = hub.failure.result()
            if isinstance(error, ConfigError):
                log.error("cannot work: %s", error)
                return EX_CONFIG
            log.error("cannot go on: %s", error)
            return EX_TEMPFAIL
        for end in ends:
            if end.done() and not end.cancelled() and end.exception() is not None:
                log.error("cannot go on: %s", end.exception())
                return EX_UNAVAILABLE
        return EX_OK

    async def _drain(self, code: int) -> None:
        """Return what has not started, let running tasks finish, then cancel, then requeue."""
        hub = self._hub
        hub.stop_consuming()
        hub.give_back_unstarted()
        grace_s = 0.0 if code else self._settings.grace_s
        if hub.held and grace_s:
            log.info("stopping: %d tasks in hand, grace %g s", len(hub.held), grace_s)
        await self._wait(lambda: not hub.held, grace_s)
        if hub.held and not self._cold.is_set():
            log.warning("grace is over, cancelling %d tasks", len(hub.held))
            for child in hub.pool.children:
                child.cancel(list(child.held))
            await self._wait(lambda: not hub.held, _CANCEL_WAIT_S)
        if hub.held:
            log.warning("requeueing %d tasks that did not stop", len(hub.held))
            hub.cold = True
            hub.pool.kill_all()
            await self._wait(lambda: not hub.held, _CANCEL_WAIT_S, heed_cold=False)
            for child in hub.pool.children:
                # In solo nobody can be killed: left to the connection's end, the message would
                # come back as lost with its worker, at the price of an attempt.
                hub.executor_lost(child.drop(), "stopped")
        if hub.manifest.tells_dead:
            # Executors must still be there when the last letters are durable.
            await self._wait(lambda: not hub.unsettled, _CANCEL_WAIT_S)
        hub.pool.stop_all()
        await self._wait(lambda: not hub.pool.children, _CANCEL_WAIT_S)
        if not await hub.close(_SETTLE_WAIT_S):
            log.warning("not everything could be settled; the broker delivers it again")
        log.info("stopped %s", hub.stats.summary()["endings"])

    async def _wait(
        self, condition: Callable[[], bool], limit_s: float, *, heed_cold: bool = True
    ) -> None:
        deadline = time.monotonic() + limit_s
        while not condition() and time.monotonic() < deadline:
            if heed_cold and self._cold.is_set():
                return
            await asyncio.sleep(_POLL_S)

    async def _until_empty(self) -> None:
        """Return when the queues are empty and nothing is due soon."""
        hub = self._hub
        started = time.monotonic()
        while True:
            await asyncio.sleep(_BURST_POLL_S)
            if not hub.connected:
                if time.monotonic() - started > _BURST_CONNECT_S:
                    raise BrokerError(f"no broker for {_BURST_CONNECT_S:g} s: {hub.trouble}")
                continue
            started = time.monotonic()
            if hub.held or hub.unsettled or not hub.pool.ready():
                continue
            received = hub.stats.received
            if await asyncio.to_thread(self._is_empty) and not (
                hub.held or hub.unsettled or hub.stats.received != received
            ):
                return

    def _is_empty(self) -> bool:
        try:
            # What is paused stays where it is: waiting for it would be waiting for an operator.
            paused = self._hub.pauses.queues
            depths = self._broker.depths([q for q in self._hub.queues if q not in paused])
            if any(depth is not None and depth.ready for depth in depths.values()):
                return False
            return self._broker.due_within(_BURST_HORIZON_S) == 0
        except BrokerError as error:
            log.warning("cannot look at the queues error=%s", error)
            return False


async def _result_of(future: "asyncio.Future[Exception]") -> None:
    await asyncio.shield(future)


async def _watchdog() -> None:
    interval_s = watchdog_interval_s()
    while interval_s:
        notify("WATCHDOG=1")
        await asyncio.sleep(interval_s)
