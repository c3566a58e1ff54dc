"""`taskq scheduler` as a process: signals, health port, and its end."""

import signal
import sys
import threading
from types import FrameType
from typing import Final

from taskq.app import TaskQ
from taskq.errors import ConfigError
from taskq.scheduler.health import serve
from taskq.scheduler.scheduler import Scheduler
from taskq.worker.notify import notify, watchdog_interval_s

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


def run_scheduler(
    app: TaskQ, *, name: str, lease_s: float, health_port: int = 0, until_eof: bool = False
) -> int:
    """Run a scheduler until a signal stops it, and return the exit code.

    Args:
        app: The app.
        name: Its name in logs; host and pid when it is empty.
        lease_s: How long nothing is sent, at most, after a leader died.
        health_port: Where /livez, /readyz and /metrics are; 0 for nowhere.
        until_eof: Whether it also stops when its standard input ends: with the process beside it.

    Raises:
        ConfigError: If a setting or a declared schedule cannot be used.
    """
    if (app.settings.broker or "").startswith("memory:"):
        raise ConfigError(
            "memory:// lives inside one process, so a scheduler process cannot see it; "
            "use sqlite:///taskq.db"
        )
    scheduler = Scheduler(app, name=name, lease_s=lease_s)

    def on_signal(number: int, frame: FrameType | None) -> None:
        scheduler.stop()

    for number in _SIGNALS:
        signal.signal(number, on_signal)
    server = serve(scheduler, health_port) if health_port else None
    if until_eof:
        threading.Thread(target=_stop_at_eof, args=(scheduler,), daemon=True).start()
    ended = threading.Event()
    threading.Thread(target=_notify, args=(scheduler, ended), daemon=True).start()
    try:
        scheduler.run()
    finally:
        ended.set()
        if server is not None:
            server.shutdown()
    return 0


def _stop_at_eof(scheduler: Scheduler) -> None:
    while sys.stdin.buffer.read(1024):
        pass
    scheduler.stop()


def _notify(scheduler: Scheduler, ended: threading.Event) -> None:
    """Tell systemd that it is up, and alive as long as the loop turns."""
    notify("READY=1")
    interval_s = watchdog_interval_s()
    seen_s = 0.0
    while interval_s and not ended.wait(interval_s):
        if scheduler.beat_at_s != seen_s:
            seen_s = scheduler.beat_at_s
            notify("WATCHDOG=1")
