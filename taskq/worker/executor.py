"""The executor process: user code and nothing else, no connection of the worker's own.

A reading thread takes frames off the socket into a queue, so that unstarted work can be given back
while a task runs. Slots take from the queue: one on this thread (`process`, `solo`), or several
threads (`thread`). The `asyncio` pool has its own loop in `async_executor.py`.
"""

import asyncio
import contextlib
import queue
import socket
import threading
from functools import partial
from typing import Any

from taskq.errors import TaskCancelled
from taskq.message import Message
from taskq.request import Run
from taskq.worker import endings, failpoints
from taskq.worker.dead_hook import DeadListeners
from taskq.worker.endings import Ending
from taskq.worker.limits import (
    AlarmLimiter,
    Interrupted,
    Limiter,
    WatchdogLimiter,
    limited_coroutine,
)
from taskq.worker.outbox import Outbox, new_unpacker
from taskq.worker.registry import Registry
from taskq.worker.runner import Job, Runner
from taskq.worker.slots import Slots


class Executor:
    """Runs tasks on threads: `process` and `solo` with one slot, `thread` with several."""

    def __init__(self, sock: socket.socket, slots: Slots, registry: Registry, worker: str) -> None:
        """Prepare an executor.

        Args:
            sock: Stream socket to the hub.
            slots: Shared memory; its count is the number of tasks at once.
            registry: What can be run.
            worker: Name of the worker.
        """
        self._sock = sock
        self._slots = slots
        self._registry = registry
        self._runner = Runner(registry, worker)
        self._outbox = Outbox(sock)
        self._dead = DeadListeners(registry.hooks, self._outbox)
        self._todo: queue.SimpleQueue[list[Any] | None] = queue.SimpleQueue()
        on_main = threading.current_thread() is threading.main_thread()
        self._limiter: Limiter = (
            AlarmLimiter() if on_main and slots.count == 1 else WatchdogLimiter()
        )
        self._loops = threading.local()
        self._cancelled: set[int] = set()
        self._runs = [
            Run(0, self._cancelled, partial(slots.beat, index), self._outbox.send)
            for index in range(slots.count)
        ]
        self._coroutines: dict[int, tuple[asyncio.AbstractEventLoop, Any]] = {}

    def serve(self) -> None:
        """Run tasks until the hub says stop or is gone."""
        self._registry.hooks.emit("worker_start")
        reader = threading.Thread(target=self._read, name="taskq-intake", daemon=True)
        reader.start()
        self._outbox.send("hello")
        others = [
            threading.Thread(target=self._work, args=(index,), name=f"taskq-{index}", daemon=True)
            for index in range(1, self._slots.count)
        ]
        for thread in others:
            thread.start()
        self._work(0)
        for thread in others:
            thread.join()
        self._dead.close()
        self._registry.hooks.emit("worker_stop")

    def _read(self) -> None:
        unpacker = new_unpacker()
        while True:
            try:
                data = self._sock.recv(1 << 18)
            except OSError:
                data = b""
            if not data:
                # The hub is gone: the broker delivers again what it held.
                self._stop()
                return
            unpacker.feed(data)
            for frame in unpacker:
                self._take(frame)

    def _take(self, frame: list[Any]) -> None:
        kind = frame[0]
        if kind == "run":
            failpoints.reach(failpoints.GIVEN)
            for item in frame[1]:
                self._todo.put(item)
        elif kind == "back":
            self._give_back()
        elif kind == "cancel":
            self._limiter.interrupt(set(frame[1]))
        elif kind == "dead":
            self._dead.put(frame[1], frame[2])
        elif kind == "revoke":
            self._revoke(set(frame[1]), frame[2])
        elif kind == "ping":
            with contextlib.suppress(OSError):
                self._outbox.send("pong")
        elif kind == "stop":
            self._stop()

    def _revoke(self, tags: set[int], by_force: bool) -> None:
        """Let tasks learn of their cancel: at a checkpoint, as a cancelled coroutine, or now."""
        self._cancelled |= tags
        coroutines = {tag: pair for tag in tags if (pair := self._coroutines.get(tag))}
        for loop, coroutine in coroutines.values():
            # The loop's end, between two tasks, is no fault.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(cancel_task_of, loop, coroutine)
        if by_force:
            self._limiter.interrupt(tags - set(coroutines), TaskCancelled)

    def _give_back(self) -> None:
        tags = []
        stops = 0
        while True:
            try:
                item = self._todo.get_nowait()
            except queue.Empty:
                break
            if item is None:
                stops += 1
            else:
                tags.append(item[0])
        for _ in range(stops):
            self._todo.put(None)
        try:
            self._outbox.send("back", tags)
        except OSError:
            self._stop()

    def _stop(self) -> None:
        for _ in range(self._slots.count):
            self._todo.put(None)

    def _work(self, index: int) -> None:
        todo, outbox, slots = self._todo, self._outbox, self._slots
        try:
            while True:
                try:
                    item = todo.get_nowait()
                except queue.Empty:
                    # Nothing to start: what is finished leaves before the wait.
                    outbox.flush()
                    slots.clear(index)
                    item = todo.get()
                if item is None:
                    break
                outbox.flush_if_due()
                ending = self._one(index, item)
                failpoints.reach(failpoints.RUN)
                outbox.add(item[0], ending)
                if slots.count > 1:
                    # Another thread may run for minutes; this outcome must not wait for it.
                    outbox.flush_if_due()
            outbox.flush()
            slots.clear(index)
        except OSError:
            # The hub closed the line while an outcome was sent; nobody is left to tell.
            return
        finally:
            runner: asyncio.Runner | None = getattr(self._loops, "runner", None)
            if runner is not None:
                runner.close()

    def _one(self, index: int, item: list[Any]) -> Ending:
        tag, queue_name, redelivered, parts = item
        if tag in self._cancelled:
            # Cancelled while it waited here: the hub knows, and ends it as such.
            self._cancelled.discard(tag)
            return Ending(endings.REQUEUED)
        run = self._runs[index]
        run.tag = tag
        self._slots.start(index, tag)
        failpoints.reach(failpoints.BEGUN)
        self._limiter.enter(tag)
        try:
            job = self._runner.decode(Message.from_list(parts), queue_name, redelivered)
            if isinstance(job, Ending):
                return job
            job.request.run = run
            if job.runnable.is_async:
                return self._run_async(job, tag)
            if job.soft_limit_s is None:
                return self._runner.run(job, job.runnable.call)
            return self._run_limited(job, job.soft_limit_s)
        except (Interrupted, TaskCancelled):
            return Ending(endings.REQUEUED)
        finally:
            self._limiter.leave(tag)
            self._cancelled.discard(tag)

    def _run_limited(self, job: Job, limit_s: float) -> Ending:
        function, limiter = job.runnable.call, self._limiter
        return self._runner.run(job, lambda request: limiter.call(function, request, limit_s))

    def _run_async(self, job: Job, tag: int) -> Ending:
        runner: asyncio.Runner | None = getattr(self._loops, "runner", None)
        if runner is None:
            # One loop a thread for its life: sessions that tasks keep stay usable.
            runner = self._loops.runner = asyncio.Runner()
        call = job.runnable.call
        if job.soft_limit_s is not None:
            call = limited_coroutine(call, job.soft_limit_s)
        coroutine = self._runner.arun(job, call)
        self._coroutines[tag] = (runner.get_loop(), coroutine)
        try:
            return runner.run(coroutine)
        finally:
            del self._coroutines[tag]


def cancel_task_of(loop: asyncio.AbstractEventLoop, coroutine: Any) -> None:
    """Cancel the task that runs a coroutine, if there still is one; on that loop."""
    for task in asyncio.all_tasks(loop):
        if task.get_coro() is coroutine:
            task.cancel()
