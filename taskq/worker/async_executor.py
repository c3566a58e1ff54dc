"""The executor of the `asyncio` pool: one loop, many coroutines; plain functions on threads."""

import asyncio
import contextlib
import socket
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from taskq.errors import TaskCancelled
from taskq.message import Message
from taskq.request import Run
from taskq.worker import endings, failpoints
from taskq.worker.dead_hook import DeadListeners
from taskq.worker.endings import Ending
from taskq.worker.limits import Interrupted, WatchdogLimiter, limited_coroutine
from taskq.worker.outbox import Outbox, new_unpacker
from taskq.worker.registry import Registry
from taskq.worker.runner import Job, Runner
from taskq.worker.slots import Slots


class AsyncExecutor:
    """Runs up to `slots.count` tasks at once on one loop."""

    def __init__(self, sock: socket.socket, slots: Slots, registry: Registry, worker: str) -> None:
        """Prepare an executor; see `Executor`."""
        self._sock = sock
        self._slots = slots
        self._registry = registry
        self._runner = Runner(registry, worker)
        self._outbox = Outbox(sock)
        self._dead = DeadListeners(registry.hooks, self._outbox)
        self._unpacker = new_unpacker()
        self._todo: deque[list[Any]] = deque()
        self._free = list(range(slots.count - 1, -1, -1))
        self._running: dict[int, asyncio.Task[None]] = {}
        self._interrupted: set[int] = set()
        self._on_threads: set[int] = set()
        self._limiter = WatchdogLimiter()
        self._cancelled: set[int] = set()
        self._runs = [
            Run(0, self._cancelled, partial(slots.beat, index), self._outbox.send)
            for index in range(slots.count)
        ]
        self._flushing = False
        self._stopping = False

    def serve(self) -> None:
        """Run tasks until the hub says stop or is gone."""
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(max(1, self._slots.count), "taskq"))
        self._ended = asyncio.Event()
        self._registry.hooks.emit("worker_start")
        loop.add_reader(self._sock, self._read)
        self._outbox.send("hello")
        await self._ended.wait()
        loop.remove_reader(self._sock)
        self._flush()
        self._dead.close()
        self._registry.hooks.emit("worker_stop")

    def _read(self) -> None:
        try:
            data = self._sock.recv(1 << 18, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            # The hub is gone: the broker delivers again what it held.
            self._ended.set()
            asyncio.get_running_loop().remove_reader(self._sock)
            return
        self._unpacker.feed(data)
        for frame in self._unpacker:
            self._take(frame)
        self._start_more()

    def _take(self, frame: list[Any]) -> None:
        kind = frame[0]
        if kind == "run":
            failpoints.reach(failpoints.GIVEN)
            self._todo.extend(frame[1])
        elif kind == "back":
            tags = [item[0] for item in self._todo]
            self._todo.clear()
            self._outbox.send("back", tags)
        elif kind == "cancel":
            self._limiter.interrupt(set(frame[1]))
            for tag in frame[1]:
                # A function on a thread goes on when its awaiter is cancelled: it would be
                # requeued, and run elsewhere, while it runs here.
                if tag in self._running and tag not in self._on_threads:
                    self._interrupted.add(tag)
                    self._running[tag].cancel()
        elif kind == "dead":
            self._dead.put(frame[1], frame[2])
        elif kind == "revoke":
            self._revoke(set(frame[1]), frame[2])
        elif kind == "ping":
            with contextlib.suppress(OSError):
                self._outbox.send("pong")
        elif kind == "stop":
            self._stopping = True

    def _revoke(self, tags: set[int], by_force: bool) -> None:
        """Let tasks learn of their cancel: at a checkpoint, as a cancelled coroutine, or now."""
        self._cancelled |= tags
        for tag in tags - self._on_threads:
            if tag in self._running:
                self._running[tag].cancel()
        if by_force:
            self._limiter.interrupt(tags & self._on_threads, TaskCancelled)

    def _start_more(self) -> None:
        while self._todo and self._free:
            item = self._todo.popleft()
            task = asyncio.ensure_future(self._one(self._free.pop(), item))
            self._running[item[0]] = task
        if self._stopping and not self._running and not self._todo:
            self._ended.set()

    async def _one(self, index: int, item: list[Any]) -> None:
        tag, queue_name, redelivered, parts = item
        self._runs[index].tag = tag
        self._slots.start(index, tag)
        failpoints.reach(failpoints.BEGUN)
        try:
            if tag in self._cancelled:
                # Cancelled while it waited here: the hub knows, and ends it as such.
                raise TaskCancelled
            job = self._runner.decode(Message.from_list(parts), queue_name, redelivered)
            ending = job if isinstance(job, Ending) else await self._run(job, index, tag)
        except (asyncio.CancelledError, Interrupted, TaskCancelled):
            # Stopped before its first step, or behind its last one.
            ending = Ending(endings.REQUEUED)
        if tag in self._interrupted and ending.code != "SUCCESS":
            ending = Ending(endings.REQUEUED)
        self._interrupted.discard(tag)
        self._cancelled.discard(tag)
        self._running.pop(tag, None)
        failpoints.reach(failpoints.RUN)
        self._outbox.add(tag, ending)
        self._slots.clear(index)
        self._free.append(index)
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)
        self._start_more()

    def _flush(self) -> None:
        self._flushing = False
        try:
            self._outbox.flush()
        except OSError:
            # The hub closed the line; nobody is left to tell.
            self._ended.set()

    async def _run(self, job: Job, index: int, tag: int) -> Ending:
        job.request.run = self._runs[index]
        call, limit_s = job.runnable.call, job.soft_limit_s
        if job.runnable.is_async:
            if limit_s is not None:
                call = limited_coroutine(call, limit_s)
            return await self._runner.arun(job, call)
        self._on_threads.add(tag)
        try:
            return await asyncio.to_thread(self._run_plain, job, tag)
        finally:
            self._on_threads.discard(tag)

    def _run_plain(self, job: Job, tag: int) -> Ending:
        call, limit_s, limiter = job.runnable.call, job.soft_limit_s, self._limiter
        limiter.enter(tag)
        try:
            if limit_s is None:
                return self._runner.run(job, call)
            return self._runner.run(job, lambda request: limiter.call(call, request, limit_s))
        finally:
            limiter.leave(tag)
