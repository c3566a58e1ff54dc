"""Middleware of one form around tasks of the other: `arun` on functions, `run` on coroutines.

A function under `arun` stays on its thread, where time limits find it and where no loop runs, so
that it may call `asyncio.run` and further middleware may follow inside. The coroutine runs on a
loop of another thread, which all functions of the process share.
"""

import asyncio
import contextvars
import os
import queue
import threading
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

from taskq.request import Request

RunNext = Callable[[Request], Any]
AsyncRunNext = Callable[[Request], Awaitable[Any]]


@dataclass(slots=True)
class _Done:
    """How a run or a middleware ended."""

    value: Any = None
    error: BaseException | None = None

    def get(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


class _LoopThread:
    """A loop on a daemon thread, started at first use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0

    def submit(self, coroutine: Coroutine[Any, Any, None]) -> None:
        with self._lock:
            # A thread does not survive a fork.
            if self._loop is None or self._pid != os.getpid():
                self._loop, self._pid = asyncio.new_event_loop(), os.getpid()
                run = self._loop.run_forever
                threading.Thread(target=run, name="taskq-middleware", daemon=True).start()
            loop = self._loop
        asyncio.run_coroutine_threadsafe(coroutine, loop)


_loop_thread = _LoopThread()


def around_function(
    arun: Callable[[AsyncRunNext, Request], Awaitable[Any]], call_next: RunNext
) -> RunNext:
    """Return a callable that runs a function under a middleware's coroutine form."""

    def call(request: Request) -> Any:
        # What this thread does next: run the function, or give the end of the middleware.
        steps: queue.SimpleQueue[Callable[[], None] | _Done] = queue.SimpleQueue()
        _loop_thread.submit(_whole(arun, partial(_hand_over, steps, call_next), request, steps.put))
        while not isinstance(step := steps.get(), _Done):
            step()
        return step.get()

    return call


async def _whole(
    arun: Callable[[AsyncRunNext, Request], Awaitable[Any]],
    call_next: AsyncRunNext,
    request: Request,
    end: Callable[[_Done], None],
) -> None:
    try:
        end(_Done(await arun(call_next, request)))
    # A SystemExit that left this coroutine would end the loop of all the others.
    except BaseException as error:
        end(_Done(error=error))


async def _hand_over(
    steps: "queue.SimpleQueue[Callable[[], None] | _Done]", call_next: RunNext, request: Request
) -> Any:
    """Have the waiting thread run the function, in the context that the middleware has made."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[_Done] = loop.create_future()
    context = contextvars.copy_context()

    def work() -> None:
        try:
            done = _Done(context.run(call_next, request))
        # Carried to the other thread, to be raised in the middleware.
        except BaseException as error:
            done = _Done(error=error)
        loop.call_soon_threadsafe(_resolve, answer, done)

    steps.put(work)
    return (await answer).get()


def _resolve(answer: "asyncio.Future[_Done]", done: _Done) -> None:
    if not answer.done():
        answer.set_result(done)


def around_coroutine(
    run: Callable[[RunNext, Request], Any], call_next: AsyncRunNext
) -> AsyncRunNext:
    """Return a coroutine function that runs a coroutine under a middleware's plain form."""

    async def call(request: Request) -> Any:
        loop = asyncio.get_running_loop()
        inside = _Inside(call_next)

        def inner(inner_request: Request) -> Any:
            return asyncio.run_coroutine_threadsafe(inside.run(inner_request), loop).result()

        try:
            return await asyncio.to_thread(run, inner, request)
        except asyncio.CancelledError:
            # The thread cannot be cancelled, but the task that it waits for must be.
            inside.cancel()
            raise

    return call


class _Inside:
    """The coroutines that a blocking middleware waits for; all on the loop of their task."""

    def __init__(self, call_next: AsyncRunNext) -> None:
        self._call_next = call_next
        self._running: set[asyncio.Task[Any]] = set()
        self._cancelled = False

    async def run(self, request: Request) -> Any:
        if self._cancelled:
            raise asyncio.CancelledError
        own = asyncio.current_task()
        if own is not None:
            self._running.add(own)
        return await self._call_next(request)

    def cancel(self) -> None:
        self._cancelled = True
        for task in self._running:
            task.cancel()
