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
        serial: Number of its place in the heap.
    """

    row: Row
    entry: Entry | None
    trouble: str = ""
    due_ms: int | None = None
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
        job.serial = next(self._serials)
        job.due_ms = None
        if job.entry is None or job.trouble or job.row.paused or job.finished:
            return
        job.due_ms = job.entry.next_ms(job.row.cursor_ms)
        if job.due_ms is not None:
            heapq.heappush(self._heap, (job.due_ms, job.serial, job.row.name))
        if len(self._heap) > 2 * len(self.jobs) + _MANY:
            self._heap = [item for item in self._heap if self._is_current(item)]
            heapq.heapify(self._heap)

    def clear(self) -> None:
        """Forget when anything is due; the jobs stay."""
        self._heap.clear()
        for job in self.jobs.values():
            job.serial, job.due_ms = 0, None

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
            name = heapq.heappop(self._heap)[2]
            found.append(self.jobs[name])
        return found
