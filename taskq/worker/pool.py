"""The executors of a worker: who gets which work, who is replaced, what a death costs."""

import asyncio
import logging
import os
import time
from collections.abc import Iterator
from typing import Protocol

from taskq.config import WorkerSettings
from taskq.worker.child import Child
from taskq.worker.endings import Ending
from taskq.worker.held import Held
from taskq.worker.launcher import AnyLauncher, describe_status
from taskq.worker.overrun import overrun
from taskq.worker.ready import Ready
from taskq.worker.window import Pace

log = logging.getLogger("taskq.worker.pool")

_BUSY_S = 0.05
_STATUS_WAIT_S = 0.5
_QUARANTINE_S = 1.0
_DEAF_S = 5.0
_MAX_EARLY_DEATHS = 5
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class PoolEvents(Protocol):
    """Whom the pool tells what happened; all on the hub's loop."""

    def finished(self, outcomes: list[tuple[Held, Ending]]) -> None:
        """Runs ended."""

    def returned(self, batch: list[Held]) -> None:
        """Unstarted work came back and can go to another executor."""

    def executor_lost(self, batch: list[Held], detail: str) -> None:
        """An executor died while it ran these."""

    def timed_out(self, held: Held) -> None:
        """A task passed its hard limit."""

    def to_count(self, batch: list[Held]) -> None:
        """These have a place in an executor; count their starts, then let them run."""

    def room(self) -> None:
        """An executor can take work."""

    def fatal(self, error: Exception) -> None:
        """Executors cannot be started."""


def layout(settings: WorkerSettings) -> tuple[int, int]:
    """Return how many executors there are, and how many tasks each runs at once."""
    total = settings.concurrency or os.cpu_count() or 1
    if settings.pool == "solo":
        return 1, 1
    if settings.pool == "process":
        return total, 1
    executors = min(settings.executors, total)
    return executors, -(-total // executors)


class Pool:
    """Keeps executors alive and their windows filled."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        launcher: AnyLauncher,
        settings: WorkerSettings,
        pace: Pace,
        events: PoolEvents,
    ) -> None:
        self.children: list[Child] = []
        self.size, self.count = layout(settings)
        self._loop = loop
        self._launcher = launcher
        self._settings = settings
        self._pace = pace
        self._events = events
        self._launching = 0
        self._early_deaths = 0
        self._stopping = False
        self._statuses: dict[int, int] = {}
        self._lost: dict[int, list[Held]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        launcher.on_exit = self._exited

    @property
    def slots(self) -> int:
        """How many tasks run at once in all executors."""
        return self.size * self.count

    def start(self) -> None:
        """Launch what is missing."""
        living = sum(1 for child in self.children if not child.retiring)
        for _ in range(self.size - living - self._launching):
            self._launch(0.0)

    def _launch(self, wait_s: float) -> None:
        self._launching += 1
        task = self._loop.create_task(self._launch_later(wait_s))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _launch_later(self, wait_s: float) -> None:
        if wait_s:
            await asyncio.sleep(wait_s)
        try:
            launched = await self._launcher.launch(self._settings.pool, self.count)
        except OSError as error:
            self._launching -= 1
            if not self._stopping:
                self._events.fatal(error)
            return
        self._launching -= 1
        child = Child(
            self._loop,
            launched,
            self.count,
            self._outcomes,
            self._back,
            self._hello,
            self._death,
        )
        self.children.append(child)
        if self._stopping:
            child.stop()

    def dispatch(self, ready: Ready) -> None:
        """Fill windows from the front of `ready`; void deliveries are dropped."""
        for child in sorted(self.children, key=lambda child: len(child.held)):
            if not ready:
                return
            if not child.ready or child.retiring or child.taking_back:
                continue
            if self._fill(child, ready):
                limit = self._settings.max_tasks_per_child
                if limit and child.given >= limit:
                    # It works off what it holds; `_wind_up` starts its successor.
                    log.info("replacing executor pid=%d why=max_tasks_per_child", child.pid)
                    child.retiring = True

    def _fill(self, child: Child, ready: Ready) -> bool:
        """Give an executor what it has room for; whether it got anything."""
        room = self._room(child)
        batch: list[Held] = []
        counting: list[Held] = []
        while ready and len(batch) + len(counting) < room:
            held = ready.pop()
            if held.void:
                continue
            if held.suspect and len(child.held) + len(batch) >= child.count:
                # Into a free slot only, and counted first: what waits behind a task that kills its
                # worker must not be charged with a start.
                ready.extendleft([held])
                break
            if held.suspect and not held.counted:
                child.reserve(held)
                counting.append(held)
            else:
                batch.append(held)
        if batch:
            child.give(batch)
        if counting:
            self._events.to_count(counting)
        return bool(batch or counting)

    def _room(self, child: Child) -> int:
        window = child.count
        if len(child.held) < child.count or not self._oldest_s(child) > _BUSY_S:
            window = self._pace.window(child.count)
        # Filled up only when half of what may wait there is done: topped up after each batch of
        # outcomes, work would go round in batches that get smaller and smaller (40 us a task more).
        if len(child.held) >= child.count + (window - child.count + 1) // 2:
            return 0
        room = window - len(child.held)
        limit = self._settings.max_tasks_per_child
        return min(room, limit - child.given) if limit else room

    def _oldest_s(self, child: Child) -> float:
        """Return for how long the longest running task runs, in seconds; 0 when idle."""
        starts = [start for tag, start in child.slots.running() if tag in child.held]
        return (time.monotonic_ns() - min(starts)) / 1e9 if starts else 0.0

    def running(self) -> Iterator[tuple[Child, Held, float]]:
        """Yield (executor, delivery, seconds since its start) of every running task."""
        now = time.monotonic_ns()
        for child in list(self.children):
            if child.dead:
                continue
            for tag, start in child.slots.running():
                held = child.held.get(tag)
                if held is not None:
                    yield child, held, (now - start) / 1e9

    def idle_slots(self) -> int:
        """Return how many more tasks could start now."""
        return sum(
            max(0, child.count - len(child.held))
            for child in self.children
            if child.ready and not child.retiring
        )

    def ready(self) -> bool:
        """Return whether at least one executor takes work."""
        return any(child.ready and not child.retiring for child in self.children)

    def tick(self) -> None:
        """Enforce hard limits, take back hoarded work, replace large executors."""
        for child, held in list(overrun(self.children)):
            self.stop_task(child, held)
        idle = self.idle_slots()
        for child in list(self.children):
            hoards = len(child.held) > child.count and self._oldest_s(child) > _BUSY_S
            if hoards and (idle or self._oldest_s(child) > 1):
                child.take_back()
            if child.retiring and not child.held:
                self._end(child)

    def check_memory(self) -> None:
        """Replace executors above `max_memory_per_child_mb`."""
        limit_mb = self._settings.max_memory_per_child_mb
        if not limit_mb:
            return
        for child in list(self.children):
            if child.pid and not child.retiring and _rss_mb(child.pid) > limit_mb:
                self.retire(child, "max_memory_per_child_mb")

    def stop_task(self, child: Child, held: Held) -> None:
        """End a running task from outside; `PoolEvents.timed_out` follows.

        Args:
            child: The executor that runs it.
            held: Its delivery.
        """
        held.limit_hit = True
        if not child.pid:
            # Solo: nobody is left to end the task, so the process goes and the broker redelivers.
            log.error("%s, in the solo pool task=%s", held.overrun, held.delivery.message.task)
            os._exit(75)
        if self._settings.pool == "process":
            child.kill()
            return
        # Its neighbours in the same process go on; the executor is replaced around them.
        child.held.pop(held.tag, None)
        child.quarantined.add(held.tag)
        child.cancel([held.tag])
        self._events.timed_out(held)
        self.retire(child, "a task was stopped")
        self._loop.call_later(_QUARANTINE_S, self._end, child)
        child.ping()
        self._loop.call_later(_DEAF_S, self._end_deaf, child)

    def _end_deaf(self, child: Child) -> None:
        """Kill an executor whose interpreter, or loop, the stopped task does not let go of.

        Its neighbours would never go on there: they are lost, and tried again elsewhere.
        """
        if child.deaf and not child.dead:
            log.warning("killing executor pid=%d why=a stopped task blocks it", child.pid)
            child.kill()

    def retire(self, child: Child, why: str) -> None:
        """Replace an executor: it finishes what runs, the rest goes to others."""
        if child.retiring:
            return
        log.info("replacing executor pid=%d why=%s tasks=%d", child.pid, why, child.given)
        child.retiring = True
        if len(child.held) > child.count:
            child.take_back()
        if not self._stopping:
            self.start()
        if not child.held:
            self._end(child)

    def retire_all(self, why: str) -> None:
        """Replace every executor without a gap."""
        for child in list(self.children):
            self.retire(child, why)

    def _end(self, child: Child) -> None:
        if child.dead or child.held:
            return
        if child.quarantined:
            child.kill()
        else:
            child.stop()

    def stop_all(self) -> None:
        """Ask every executor to end when what it runs is done."""
        self._stopping = True
        for child in self.children:
            child.stop()

    def kill_all(self) -> None:
        """End every executor at once; solo's, which has no process of its own, is interrupted."""
        self._stopping = True
        for child in self.children:
            if child.pid:
                child.kill()
            else:
                child.cancel(list(child.held))

    def close(self) -> None:
        """End the launcher, and with it whatever is left."""
        self._stopping = True
        for child in list(self.children):
            child.kill()
        self._launcher.close()

    def _hello(self, child: Child) -> None:
        self._early_deaths = 0
        log.debug("executor ready pid=%d", child.pid)
        self._events.room()

    def _outcomes(self, child: Child, outcomes: list[tuple[Held, Ending]]) -> None:
        if outcomes:
            self._pace.ran([ending.runtime_us for _, ending in outcomes])
            self._events.finished(outcomes)
        if child.retiring:
            self._wind_up(child)

    def _back(self, child: Child, batch: list[Held]) -> None:
        self._events.returned(batch)
        if child.retiring:
            self._wind_up(child)

    def _wind_up(self, child: Child) -> None:
        if len(child.held) < child.count and not self._stopping:
            # Not before a slot of it is free: no more tasks should run at once than were asked for.
            self.start()
        if not child.held:
            self._end(child)

    def _death(self, child: Child) -> None:
        self.children.remove(child)
        tags = {tag for tag, _ in child.slots.running()}
        running = [held for held in child.held.values() if held.tag in tags]
        waiting = [held for held in child.held.values() if held.tag not in tags]
        child.held = {}
        for held in waiting:
            held.child = None
        if waiting:
            self._events.returned(waiting)
        status = self._statuses.pop(child.pid, None)
        if running and status is None and child.pid:
            # The template tells the exit status in a moment; the record should name it.
            self._lost[child.pid] = running
            self._loop.call_later(_STATUS_WAIT_S, self._report_lost, child.pid, "died")
        elif running:
            self._report(running, "died" if status is None else describe_status(status))
        if not self._stopping:
            self._replace(child)

    def _replace(self, child: Child) -> None:
        early = not child.ready
        self._early_deaths += 1 if early else 0
        if self._early_deaths >= _MAX_EARLY_DEATHS:
            self._events.fatal(
                RuntimeError(f"{_MAX_EARLY_DEATHS} executors in a row died before they were ready")
            )
            return
        missing = self.size - self._launching
        missing -= sum(1 for other in self.children if not other.retiring)
        for _ in range(missing):
            self._launch(0.1 * 2**self._early_deaths if early else 0.0)

    def _exited(self, pid: int, status: int) -> None:
        if status:
            log.warning("executor ended pid=%d how=%s", pid, describe_status(status))
        if pid in self._lost:
            self._report_lost(pid, describe_status(status))
        elif any(child.pid == pid for child in self.children):
            self._statuses[pid] = status

    def _report_lost(self, pid: int, detail: str) -> None:
        running = self._lost.pop(pid, None)
        if running:
            self._report(running, detail)

    def _report(self, running: list[Held], detail: str) -> None:
        for held in running:
            if held.limit_hit:
                self._events.timed_out(held)
        lost = [held for held in running if not held.limit_hit]
        if lost:
            self._events.executor_lost(lost, detail)


def _rss_mb(pid: int) -> float:
    """Return the resident memory of a process in MB; 0 where it cannot be read."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES / 1e6
    except (OSError, IndexError, ValueError):
        return 0.0
