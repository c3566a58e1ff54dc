"""`taskq worker --with-scheduler`: a scheduler as a child process, for small installations.

A process of its own, because it imports the app, which the hub never does. Where several workers
do so, one of their schedulers leads.
"""

import contextlib
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Final

from taskq.config import WorkerSettings

log = logging.getLogger("taskq.scheduler")

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0
_END_S: Final = 10.0
_HOPELESS: Final = (2, 78)
"""Exit codes of wrong options and of a wrong configuration: starting again cures neither."""


class _Child:
    """The child, started again when it dies."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._words = [
            *(sys.executable, "-m", "taskq", "scheduler", "-A", settings.app or ""),
            *("--until-eof", "--health-port", "0"),
            *("-l", settings.log_level, "--log-format", settings.log_format),
        ]
        if settings.name:
            self._words += ["-n", settings.name]
        self._stop = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._watch, name="taskq-beside", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._stop.is_set():
            # A session of its own: a terminal's Ctrl-C is for the worker, which ends it in order.
            self._process = subprocess.Popen(
                self._words, stdin=subprocess.PIPE, start_new_session=True
            )
            if self._stop.is_set():
                self._hang_up()
            code = self._process.wait()
            if self._stop.is_set():
                return
            if code in _HOPELESS:
                log.error("the scheduler ended with exit code %d and stays away", code)
                return
            log.warning("the scheduler ended with exit code %d, again in %g s", code, pause_s)
            self._stop.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _hang_up(self) -> None:
        process = self._process
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()

    def close(self) -> None:
        """End the child as its worker ends: in order, or at last by force."""
        self._stop.set()
        self._hang_up()
        self._thread.join(_END_S)
        if self._thread.is_alive() and self._process is not None:
            self._process.kill()


@contextlib.contextmanager
def scheduler_beside(settings: WorkerSettings) -> Iterator[None]:
    """Run a scheduler beside a worker while the block lasts, where its settings ask for one."""
    if not settings.with_scheduler or not settings.app:
        yield
        return
    child = _Child(settings)
    try:
        yield
    finally:
        child.close()
