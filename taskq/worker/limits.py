"""Soft time limits and interruption inside an executor.

On the main thread an alarm signal raises in the task, which also wakes it from a blocking call.
On other threads a watchdog raises through the interpreter's asynchronous exceptions, which take
effect at the next bytecode: a blocking C call is only ended by the hub's hard limit.
"""

import asyncio
import ctypes
import heapq
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

from taskq.errors import SoftTimeLimitExceeded
from taskq.request import Request


class Interrupted(BaseException):
    """Raised in a task whose worker stops and whose grace is over; its message is requeued."""


class Limiter(Protocol):
    """Runs a call under a soft limit, and interrupts running calls."""

    def call(self, function: Callable[[Request], Any], request: Request, limit_s: float) -> Any:
        """Call the function; SoftTimeLimitExceeded is raised in it after `limit_s` seconds."""

    def enter(self, tag: int) -> None:
        """Learn that this thread runs the task with this tag."""

    def leave(self, tag: int) -> None:
        """Learn that it does so no longer."""

    def interrupt(self, tags: set[int], kind: type[BaseException] = Interrupted) -> None:
        """Raise an exception in the running tasks with these tags."""


class AlarmLimiter:
    """For tasks on the main thread; uses SIGALRM."""

    def __init__(self) -> None:
        self._tag = 0
        self._interruption: type[BaseException] | None = None
        signal.signal(signal.SIGALRM, self._on_alarm)

    def _on_alarm(self, _signal: int, _frame: FrameType | None) -> None:
        if self._tag and self._interruption is not None:
            raise self._interruption
        if self._tag:
            raise SoftTimeLimitExceeded("the task passed its soft time limit")

    def call(self, function: Callable[[Request], Any], request: Request, limit_s: float) -> Any:
        """Call the function under the limit."""
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        try:
            return function(request)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def enter(self, tag: int) -> None:
        """Remember what runs."""
        self._interruption = None
        self._tag = tag

    def leave(self, tag: int) -> None:
        """Forget it; an alarm from now on raises nothing."""
        self._tag = 0

    def interrupt(self, tags: set[int], kind: type[BaseException] = Interrupted) -> None:
        """Wake the main thread with the alarm."""
        if self._tag in tags:
            self._interruption = kind
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)


class WatchdogLimiter:
    """For tasks on any thread; one watchdog thread, started when first needed."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._running: dict[int, int] = {}
        self._deadlines: list[tuple[float, int, int]] = []
        self._counter = 0
        self._active: set[int] = set()
        self._thread: threading.Thread | None = None

    def call(self, function: Callable[[Request], Any], request: Request, limit_s: float) -> Any:
        """Call the function under the limit."""
        with self._lock:
            self._counter += 1
            token = self._counter
            self._active.add(token)
            deadline = time.monotonic() + limit_s
            heapq.heappush(self._deadlines, (deadline, token, threading.get_ident()))
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, daemon=True)
                self._thread.start()
            self._lock.notify()
        try:
            return function(request)
        finally:
            # Under the lock: after this the watchdog cannot raise in the next task.
            with self._lock:
                self._active.discard(token)

    def _watch(self) -> None:
        with self._lock:
            while True:
                if not self._deadlines:
                    self._lock.wait()
                    continue
                deadline, token, thread_id = self._deadlines[0]
                left_s = deadline - time.monotonic()
                if left_s > 0 and token in self._active:
                    self._lock.wait(left_s)
                    continue
                heapq.heappop(self._deadlines)
                if token in self._active:
                    _raise_in(thread_id, SoftTimeLimitExceeded)

    def enter(self, tag: int) -> None:
        """Remember which thread runs it."""
        self._running[tag] = threading.get_ident()

    def leave(self, tag: int) -> None:
        """Forget it."""
        with self._lock:
            self._running.pop(tag, None)

    def interrupt(self, tags: set[int], kind: type[BaseException] = Interrupted) -> None:
        """Raise in the threads that run these tasks."""
        with self._lock:
            for tag in tags:
                thread_id = self._running.get(tag)
                if thread_id is not None:
                    _raise_in(thread_id, kind)


def _raise_in(thread_id: int, kind: type[BaseException]) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(kind))


def limited_coroutine(
    function: Callable[[Request], Any], limit_s: float
) -> Callable[[Request], Any]:
    """Return a coroutine function under a soft limit.

    Inside, the coroutine sees CancelledError; its caller sees SoftTimeLimitExceeded.
    """

    async def call(request: Request) -> Any:
        try:
            async with asyncio.timeout(limit_s) as scope:
                return await function(request)
        except TimeoutError as error:
            if scope.expired():
                raise SoftTimeLimitExceeded("the task passed its soft time limit") from error
            raise

    return call
