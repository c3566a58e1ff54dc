"""Starting a worker: which processes there are, and which thread does what.

With the `process`, `thread` and `asyncio` pools this process is the hub and never imports the app;
a template process does, and forks the executors. With `solo` the app is imported here: the main
thread runs the tasks, where debuggers work, and the hub has a thread of its own.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence

from taskq.app import TaskQ
from taskq.brokers import broker_options, open_broker
from taskq.brokers.base import Broker
from taskq.brokers.shapes import QueueShape
from taskq.config import Settings, WorkerSettings
from taskq.errors import ConfigError
from taskq.loading import load_app
from taskq.results import open_results
from taskq.results.base import ResultStore
from taskq.worker.hub import Hub
from taskq.worker.launcher import AnyLauncher, LocalLauncher, TemplateLauncher
from taskq.worker.lifecycle import SIGNALS, Lifecycle
from taskq.worker.manifest import Manifest
from taskq.worker.start import named_app, worker_name

log = logging.getLogger("taskq.worker")

_SWITCH_S = 0.0005
_LAST_S = 0.5


def open_stores(
    app: str, settings: Settings, queues: Sequence[QueueShape] = ()
) -> tuple[Broker, ResultStore | None]:
    """Open broker and results store as an app's settings say.

    Raises:
        ConfigError: For an unusable URL.
    """
    options = broker_options(app, settings, queues)
    broker = open_broker(settings.broker or "", options)
    store = None
    if settings.results is not None:
        store = open_results(settings.results, settings.results_timeout_s)
    return broker, store


def run_worker(settings: WorkerSettings, launcher: TemplateLauncher | None) -> int:
    """Run a worker until it stops and return its exit code.

    Args:
        settings: The worker's settings.
        launcher: From `start_template` with the same settings; None runs tasks in this process.

    Raises:
        ConfigError: If the app cannot be imported or a setting cannot be used.
    """
    if launcher is None:
        return _run_solo(load_app(named_app(settings)), settings)
    try:
        manifest = launcher.manifest()
        _refuse_memory(manifest.settings)
        return asyncio.run(_serve(worker_name(settings), settings, manifest, launcher))
    finally:
        launcher.close()


def _refuse_memory(settings: Settings) -> None:
    for url in (settings.broker, settings.results):
        if url and url.startswith("memory:"):
            raise ConfigError(
                "memory:// lives inside one process, so a worker process cannot see it; "
                "use sqlite:///taskq.db, or taskq.testing in tests"
            )


async def _serve(
    name: str,
    settings: WorkerSettings,
    manifest: Manifest,
    launcher: AnyLauncher,
    started: Callable[[Lifecycle], None] | None = None,
    stores: tuple[Broker, ResultStore | None] | None = None,
) -> int:
    # The settling thread must get the interpreter within a fraction of a millisecond when its
    # answer arrives, not after the 5 ms that busy threads keep it by default.
    sys.setswitchinterval(_SWITCH_S)
    broker, store = stores or open_stores(manifest.app, manifest.settings, manifest.shapes)
    loop = asyncio.get_running_loop()
    hub = Hub(name, settings, manifest, launcher, broker, store)
    life = Lifecycle(hub, broker, settings)
    if isinstance(launcher, TemplateLauncher):
        launcher.attach(loop)
        launcher.on_lost = lambda: hub.fatal(RuntimeError("the template process died"))
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            loop.add_signal_handler(number, life.on_signal, number)
    log.info(
        "worker %s app=%s pool=%s slots=%d queues=%s tasks=%d",
        name,
        manifest.app,
        settings.pool,
        hub.pool.slots,
        ",".join(hub.queues),
        len(manifest.tasks),
    )
    log.info("broker %s", broker.url)
    log.info("results %s", store.url if store is not None else "off")
    if started is not None:
        started(life)
    try:
        return await life.run()
    finally:
        if stores is None:
            broker.close()
            if store is not None:
                store.close()


class LocalWorker:
    """A worker inside this process: the hub on a thread, tasks on the thread that calls `serve`.

    `solo` and `taskq.testing` are made of it.
    """

    def __init__(self, app: TaskQ, settings: WorkerSettings, *, share: bool = False) -> None:
        """Prepare a worker.

        Args:
            app: The app.
            settings: Its pool is taken as `solo`.
            share: Whether it uses the app's own broker and results store, as memory:// needs.
        """
        self._app = app
        self._settings = settings
        self._share = share
        self._launcher = LocalLauncher(app)
        self._code = 1
        self._life: Lifecycle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begun = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._hub_thread, name="taskq-hub", daemon=True)

    def start(self) -> None:
        """Start the hub.

        Raises:
            ConfigError: If it cannot be started.
        """
        self._thread.start()
        self._begun.wait()
        if self._failure is not None:
            raise self._failure

    def serve(self) -> int:
        """Run tasks on this thread until the hub stops, and return the exit code."""
        from taskq.worker.template import run_executor

        self._launcher.ready.wait()
        sock = self._launcher.theirs
        if sock is not None:
            name = worker_name(self._settings)
            self._idle.clear()
            run_executor(self._app, "solo", 1, name, sock, self._launcher.memory)
            self._idle.set()
            # Shut down, not only closed: the intake thread still reads from it.
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        self._thread.join()
        return self._code

    def signal(self, number: int) -> None:
        """Pass a signal on to the hub."""
        if self._life is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._life.on_signal, number)

    def stop(self) -> None:
        """Ask for a warm stop."""
        if self._life is not None and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._life.request_stop)

    def _hub_thread(self) -> None:
        try:
            self._code = asyncio.run(self._main())
        # Handed to the thread that waits in `start`.
        except BaseException as error:
            self._failure = error
        finally:
            self._launcher.close()
            self._begun.set()
        if not self._share and not self._idle.wait(_LAST_S):
            # A task that nothing stops holds the main thread; its message was given back.
            os._exit(self._code)

    async def _main(self) -> int:
        self._loop = asyncio.get_running_loop()
        stores = (self._app.broker, self._app.results) if self._share else None
        manifest = self._launcher.manifest()
        name = worker_name(self._settings)
        return await _serve(name, self._settings, manifest, self._launcher, self._started, stores)

    def _started(self, life: Lifecycle) -> None:
        self._life = life
        self._begun.set()


def _run_solo(app: TaskQ, settings: WorkerSettings) -> int:
    _refuse_memory(app.settings)
    worker = LocalWorker(app, settings)
    for number in SIGNALS:
        signal.signal(number, lambda got, _frame: worker.signal(got))
    worker.start()
    return worker.serve()
