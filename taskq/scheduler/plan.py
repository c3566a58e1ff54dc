"""What is due next, of any number of schedules: a heap; pure but for what is asked of schedules."""

import heapq
from dataclasses import dataclass
from itertools import count
from typing import Final

from taskq.errors import ConfigError
from taskq.schedules.entry import Entry
from taskq.schedules.store import Row

_MANY: Final = 1000


@dataclass(slots=True)
class Job:
    """A schedule in a scheduler's hands.

    Attributes:
        row: What is known of it; the leader's is ahead of the store's.
        entry: Its definition; None when the stored text cannot be read.
        trouble: Why it is not sent; empty when it is.
        due_ms: When it is due next, as epoch ms; None for never.
        after_ms: Since when it is not due until then, as epoch ms; -1 before that was asked.
        serial: Number of its place in the heap; 0 for none.
    """

    row: Row
    entry: Entry | None
    trouble: str = ""
    due_ms: int | None = None
    after_ms: int = -1
    serial: int = 0

    @property
    def finished(self) -> bool:
        """Whether as many ticks were sent as there may be."""
        entry = self.entry
        return entry is not None and 0 < entry.max_runs <= self.row.fired


class Plan:
    """All jobs of an app, and the order in which they are due."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self._heap: list[tuple[int, int, str]] = []
        self._serials = count(1)

    def put(self, row: Row, *, trusted: bool) -> Job | None:
        """Take a row that changed; return its job, or None where it is a removed one's.

        Args:
            row: The row.
            trusted: Whether its cursor holds, and not what is known here.
        """
        old = self.jobs.get(row.name)
        if not row.text:
            self.jobs.pop(row.name, None)
            return None
        if old is not None and not trusted and old.row.cursor_ms > row.cursor_ms:
            # The store has not heard of the latest yet.
            row = old.row._replace(text=row.text, paused=row.paused)
        if old is not None and old.entry is not None and old.row.text == row.text:
            old.row = row
            return old
        entry, trouble = None, ""
        try:
            entry = Entry.from_text(row.name, row.text).bound()
        except ConfigError as error:
            trouble = str(error)
        job = self.jobs[row.name] = Job(row, entry, trouble)
        return job

    def schedule(self, job: Job) -> None:
        """Find out when a job is due next, and put it in its place."""
        if job.entry is None or job.trouble or job.row.paused or job.finished:
            job.serial, job.due_ms, job.after_ms = 0, None, -1
            return
        cursor_ms = job.row.cursor_ms
        # To find the next of 100,000 takes longer than a lease has left when its holder has died.
        if job.serial and job.after_ms <= cursor_ms < (job.due_ms or -1):
            return
        self._place(job, job.entry, cursor_ms)

    def _place(self, job: Job, entry: Entry, after_ms: int) -> None:
        job.serial = next(self._serials)
        job.after_ms, job.due_ms = after_ms, entry.next_ms(after_ms)
        if job.due_ms is not None:
            heapq.heappush(self._heap, (job.due_ms, job.serial, job.row.name))
        if len(self._heap) > 2 * len(self.jobs) + _MANY:
            self._heap = [item for item in self._heap if self._is_current(item)]
            heapq.heapify(self._heap)

    def follow(self, done_ms: int) -> None:
        """Pass over what another has dealt with, so that who takes over need not find it out then.

        Args:
            done_ms: Every tick up to here was dealt with, as epoch ms.
        """
        while (due_ms := self.next_ms()) is not None and due_ms <= done_ms:
            job = self.jobs[heapq.heappop(self._heap)[2]]
            if job.entry is not None:
                self._place(job, job.entry, due_ms)

    def _is_current(self, item: tuple[int, int, str]) -> bool:
        job = self.jobs.get(item[2])
        return job is not None and job.serial == item[1]

    def next_ms(self) -> int | None:
        """Return when the next job is due, as epoch ms; None for never."""
        while self._heap and not self._is_current(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take_due(self, now_ms: int, limit: int) -> list[Job]:
        """Take at most so many jobs that are due; `schedule` puts each back."""
        found: list[Job] = []
        while len(found) < limit:
            due_ms = self.next_ms()
            if due_ms is None or due_ms > now_ms:
                break
            job = self.jobs[heapq.heappop(self._heap)[2]]
            job.serial = 0
            found.append(job)
        return found
