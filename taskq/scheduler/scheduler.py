"""The scheduler's loop: beat, take over, send what is due, sleep until the next.

Any number run. Each keeps the definitions at hand; the leader also knows what has been dealt with,
sleeps until the next tick, claims it, sends it with its id as the task's, and settles it. Whoever
takes over begins at the last settled tick, and finds the claims that were left open.
"""

import logging
import threading
from typing import Any, Final

from taskq import clock
from taskq.app import TaskQ
from taskq.errors import ConfigError, ResultsUnavailable, TaskqError
from taskq.scheduler.lease import Lease, SchedulerClock
from taskq.scheduler.plan import Job, Plan
from taskq.scheduler.policy import sort_ticks
from taskq.scheduler.sending import Sender, Tick, ours
from taskq.scheduler.telling import Teller
from taskq.schedules.store import Beat, Mark, ScheduleStore

log = logging.getLogger("taskq.scheduler")

LEASE_S: Final = 10.0
_BATCH: Final = 5000
"""Ticks that are claimed, sent and settled together: their confirms are pipelined."""
_READ: Final = 1000
_RETRY_S: Final = 0.5
_LONGEST_SLEEP_S: Final = 1.0
_NEVER_MS: Final = 2**62


class Scheduler:
    """Sends the scheduled tasks of an app; see the module.

    Attributes:
        counts: Ticks by what became of them: `fired`, `skipped`, `missed`, `queued`, `refused`.
        trouble: Why nothing could be sent now; empty when it could.
        beat_at_s: Monotonic time of the last turn of the loop; for liveness.
    """

    def __init__(
        self,
        app: TaskQ,
        *,
        name: str = "",
        lease_s: float = LEASE_S,
        time: SchedulerClock | None = None,
    ) -> None:
        """Prepare a scheduler; nothing is connected yet.

        Args:
            app: The app whose schedules these are.
            name: Its name in logs; host and pid by default.
            lease_s: How long nothing is sent, at most, after a leader died.
            time: The clock; the store's by default.

        Raises:
            ConfigError: If the app has no store, or the lease is out of range.
        """
        if not 0.5 <= lease_s <= 3600:
            raise ConfigError(f"the lease is {lease_s!r} s; use 0.5 to 3600")
        self._app = app
        self._store: ScheduleStore = app.schedules.store
        self._lease = Lease(self._store, name, lease_s)
        self._time = time or SchedulerClock()
        self._plan = Plan()
        self._teller = Teller(app)
        self._sender = Sender(app, self._tell)
        self._stop = threading.Event()
        self._version = 0
        self._leading = False
        self._since_ms = 0
        self._seen_ms = 0
        self._beat_due_s = 0.0
        self._unsent: list[Tick] = []
        self._retry_at_s = 0.0
        self._unsettled: list[Mark] = []
        self.counts = self._teller.counts
        self.trouble = "starting"
        self.beat_at_s = clock.monotonic_s()

    @property
    def leading(self) -> bool:
        """Whether this one sends."""
        return self._leading

    @property
    def leader(self) -> str:
        """Name of the leader as far as it is known."""
        return self._lease.leader

    @property
    def size(self) -> int:
        """How many schedules it knows."""
        return len(self._plan.jobs)

    def lag_s(self) -> float:
        """Return by how much the oldest tick that is due is late, in seconds."""
        due = [tick.due_ms for tick in list(self._unsent)]
        return max(0.0, (self._time.now_ms() - min(due)) / 1000) if due else 0.0

    def stop(self) -> None:
        """Ask the loop to end; thread-safe."""
        self._stop.set()

    def run(self) -> None:
        """Work until `stop`; then give the lease back.

        Raises:
            ConfigError: If a declared schedule cannot be, or the store refuses.
        """
        self._declare()
        while not self._stop.is_set():
            self.beat_at_s = clock.monotonic_s()
            try:
                self._turn()
                if not self._unsent:
                    self._teller.flush()
            except ResultsUnavailable as error:
                self._away(error)
            self._stop.wait(self._pause_s())
        self._end()

    def _declare(self) -> None:
        """Make the store what the code says: once, at the start, which is what a deploy is."""
        texts = {name: entry.to_text() for name, entry in self._app.schedules.declared().items()}
        while not self._stop.is_set():
            try:
                # The store's clock, without a claim to the lease.
                self._time.set(self._lease.look().now_ms)
                done = self._store.declare(texts, self._time.now_ms())
                # Before the lease: a leader that must read 100,000 definitions first leads nobody.
                self._refresh()
            except ResultsUnavailable as error:
                self._away(error)
                self._stop.wait(_RETRY_S)
                continue
            log.info(
                "schedules declared=%d added=%d changed=%d removed=%d",
                len(texts),
                *map(len, done),
            )
            return

    def _away(self, error: TaskqError) -> None:
        if self.trouble != str(error):
            log.warning("the store of schedules does not answer, trying again: %s", error)
        self.trouble = str(error)
        self._beat_due_s = clock.monotonic_s() + min(_RETRY_S, self._lease.beat_s)
        if self._leading and not self._lease.held():
            self._resign("the store is away")

    def _turn(self) -> None:
        if clock.monotonic_s() >= self._beat_due_s:
            self._beat()
        self._settle()
        while self._leading and not self._stop.is_set():
            if not self._lease.held():
                self._beat()
                continue
            if self._unsent:
                if clock.monotonic_s() < self._retry_at_s or not self._send(self._unsent):
                    return
            elif not self._fire():
                return
            if clock.monotonic_s() >= self._beat_due_s:
                self._beat()

    def _beat(self) -> None:
        beat = self._lease.beat(self._done_ms())
        self._beat_due_s = clock.monotonic_s() + self._lease.beat_s
        self._time.set(beat.now_ms)
        self._seen_ms = max(self._seen_ms, min(beat.done_ms, self._time.now_ms()))
        if self._lease.emptied:
            self._version = 0
            if beat.token:
                self._restore()
            self._lease.emptied = False
        if beat.token and not self._leading:
            self._take_over(beat)
        elif not beat.token and self._leading:
            self._resign(f"{beat.holder or 'nobody'} leads")
        if beat.version != self._version:
            self._refresh()
        if self._leading:
            self._send_queued()
        else:
            self._plan.follow(self._seen_ms)
        if not self._unsent:
            self.trouble = ""

    def _done_ms(self) -> int:
        """Return up to when every tick was dealt with, as epoch ms; 0 when another knows better."""
        if not self._leading:
            return 0
        open_ms = [self._time.now_ms() + 1, self._plan.next_ms() or _NEVER_MS]
        open_ms += [tick.due_ms for tick in self._unsent]
        open_ms += [mark.due_ms for mark in self._unsettled]
        return min(open_ms) - 1

    def _renew(self) -> None:
        """Renew the lease in the midst of long work; what else it says is heard later."""
        if self._leading and clock.monotonic_s() >= self._beat_due_s:
            self._lease.beat()
            self._beat_due_s = clock.monotonic_s() + self._lease.beat_s

    def _take_over(self, beat: Beat) -> None:
        self._leading = True
        # What was sent since is in the store alone.
        self._version = 0
        self._refresh()
        self._since_ms = self._time.now_ms()
        log.info("leading token=%d schedules=%d", beat.token, len(self._plan.jobs))

    def _resign(self, reason: str) -> None:
        log.warning("not leading any more: %s", reason)
        self._leading = False
        # Their claims stay open: the next leader looks after them.
        self._take_back()

    def _refresh(self) -> None:
        """Read what changed; all of it at first."""
        whole = self._version == 0
        version, rows = self._store.changed(self._version)
        if whole:
            known = {row.name for row in rows}
            for name in [name for name in self._plan.jobs if name not in known]:
                del self._plan.jobs[name]
        mend = []
        for number, row in enumerate(rows, 1):
            if number % _READ == 0:
                self._renew()
            if row.cursor_ms < 0:
                log.error("schedule %r: its state is not readable; it begins anew", row.name)
                row = row._replace(cursor_ms=self._time.now_ms())
                mend.append(row)
            job = self._plan.put(row, trusted=whole)
            if job is not None:
                self._examine(job)
                self._plan.schedule(job)
        if mend and self._leading:
            self._store.restore(mend, [])
        self._version = version

    def _examine(self, job: Job) -> None:
        """Say what is wrong with a stored definition; the others go on."""
        entry = job.entry
        if entry is not None and not job.trouble:
            if entry.task in self._app.tasks or not self._app.tasks:
                return
            # Sent all the same: a worker that does not know it either makes it a dead letter.
            log.warning("schedule %r: task %r is not known here", job.row.name, entry.task)
        elif job.trouble:
            log.error("schedule %r is not sent: %s", job.row.name, job.trouble)

    def _restore(self) -> None:
        """Write back what an emptied store has lost."""
        self._take_back()
        jobs = list(self._plan.jobs.values())
        upto_ms = 0 if self._leading else self._seen_ms
        rows = [
            job.row._replace(cursor_ms=max(job.row.cursor_ms, upto_ms))
            for job in jobs
            if job.row.text
        ]
        declared = [
            job.row.name for job in jobs if job.entry is None or job.entry.source != "dynamic"
        ]
        self._store.restore(rows, declared)
        log.warning("the store of schedules was emptied; wrote back %d", len(rows))

    def _fire(self) -> bool:
        """Send what is due; return whether there may be more."""
        now_ms = self._time.now_ms()
        jobs = self._plan.take_due(now_ms, _BATCH)
        if not jobs:
            return False
        ticks: list[Tick] = []
        try:
            busy = self._sender.overlapping(jobs)
            for job in jobs:
                ticks += self._due_ticks(job, now_ms, job.row.name in busy, self._unsettled)
            self._send(ticks)
        finally:
            for job in jobs:
                self._plan.schedule(job)
        return True

    def _due_ticks(self, job: Job, now_ms: int, busy: bool, marks: list[Mark]) -> list[Tick]:
        if job.entry is None:
            return []
        found = sort_ticks(job.entry, job.row.cursor_ms, now_ms, self._since_ms)
        if found.missed:
            row = job.row
            job.row = row._replace(missed=row.missed + found.missed, cursor_ms=found.upto_ms)
            marks.append(Mark(row.name, found.upto_ms, missed=found.missed))
            self._tell("missed", row.name, found.upto_ms, count=found.missed)
        return self._sender.admit(job, found.send, busy, marks)

    def _send(self, ticks: list[Tick]) -> bool:
        """Claim, send and settle; return whether all went out. What did not is kept."""
        failed: list[Tick] = []
        for start in range(0, len(ticks), _BATCH):
            # Kept before anything can fail: their cursors are ahead of the store's by now.
            self._unsent = failed + ticks[start:]
            part = ticks[start : start + _BATCH]
            statuses = self._store.claim(
                self._lease.holder, self._lease.token, [tick.claim() for tick in part]
            )
            if statuses is None or not self._lease.held():
                self._lease.lost()
                return False
            failed += self._sender.send(ours(part, statuses), self._unsettled)
            self._unsent = failed + ticks[start + _BATCH :]
            self._settle()
        if self._unsent:
            self.trouble = "the broker does not take tasks"
            self._retry_at_s = clock.monotonic_s() + _RETRY_S
            return False
        if self.trouble:
            # What was due meanwhile is late for a reason that the policies are about.
            self._since_ms, self.trouble = self._time.now_ms(), ""
        return True

    def _send_queued(self) -> None:
        """Send ticks that waited for the run before them, where that has ended."""
        waiting = [job for job in self._plan.jobs.values() if job.row.queued_ms]
        if not waiting or self._unsent:
            return
        busy = self._sender.overlapping(waiting)
        self._send(
            [
                self._sender.tick(job, job.row.queued_ms)
                for job in waiting
                if job.row.name not in busy and not job.row.paused and job.entry is not None
            ]
        )

    def _settle(self) -> None:
        """Record what became of ticks, but let no cursor pass a tick that is not sent yet."""
        first = self._first_unsent()
        ready = [mark for mark in self._unsettled if mark.due_ms < first.get(mark.name, _NEVER_MS)]
        if ready:
            self._store.settle(ready)
            done = set(ready)
            self._unsettled = [mark for mark in self._unsettled if mark not in done]

    def _first_unsent(self) -> dict[str, int]:
        """Return the first tick of each schedule that is not sent, as epoch ms."""
        first: dict[str, int] = {}
        for tick in self._unsent:
            row = tick.job.row
            if tick.due_ms != row.queued_ms:
                first[row.name] = min(first.get(row.name, tick.due_ms), tick.due_ms)
        return first

    def _take_back(self) -> None:
        """Know nothing of ticks that are not sent, nor of later ones: they are due again."""
        first = self._first_unsent()
        self._unsettled = [
            mark for mark in self._unsettled if mark.due_ms < first.get(mark.name, _NEVER_MS)
        ]
        for tick in self._unsent:
            row = tick.job.row
            before_ms = first.get(row.name, _NEVER_MS) - 1
            tick.job.row = row._replace(cursor_ms=min(row.cursor_ms, before_ms))
        self._unsent = []

    def _pause_s(self) -> float:
        until_beat_s = max(0.0, self._beat_due_s - clock.monotonic_s())
        pause_s = min(until_beat_s, _LONGEST_SLEEP_S)
        if not self._leading:
            return pause_s
        if self._unsent:
            return min(pause_s, max(0.0, self._retry_at_s - clock.monotonic_s()))
        due_ms = self._plan.next_ms()
        return pause_s if due_ms is None else min(pause_s, self._time.wait_s(due_ms))

    def _end(self) -> None:
        try:
            self._settle()
            self._teller.flush()
            self._lease.release()
        except TaskqError as error:
            log.warning("the lease could not be given back, it runs out: %s", error)
        log.info("stopped %s", dict(self.counts))

    def _tell(self, kind: str, name: str, due_ms: int, **details: Any) -> None:
        """Count, log and announce what became of a tick; the one place that does.

        Args:
            kind: `fired`, `skipped`, `missed`, `queued` or `refused`.
            name: The schedule's name.
            due_ms: When the tick was due, as epoch ms; of several the last one.
            **details: `task_id`, `reason`, `count`.
        """
        self._teller.tell(kind, name, due_ms, details)
