"""Numbers per task and tumbling window of event time; late events by policy; pure."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from taskq.events.schema import Event

_GROWTH: Final = math.log(1.02)
_SHARES: Final = (50, 95, 99)
COUNTED: Final[Mapping[str, str]] = {
    "task.sent": "sent",
    "task.started": "started",
    "task.succeeded": "succeeded",
    "task.failed": "failed",
    "task.rejected": "failed",
    "task.retried": "retried",
    "task.dead_lettered": "dead",
}
"""Types of events that a line counts, and the word that it counts them under."""


class Histogram:
    """Run times in buckets that grow by 2 %, so that a percentile is off by 1 % at most."""

    def __init__(self, buckets: Mapping[int, int] | None = None) -> None:
        self._buckets: Counter[int] = Counter(buckets)

    @property
    def buckets(self) -> Mapping[int, int]:
        """How many values each bucket holds; two histograms add up bucket by bucket."""
        return self._buckets

    def add(self, value: float) -> None:
        """Count a value above 0."""
        self._buckets[math.floor(math.log(max(value, 1e-9)) / _GROWTH)] += 1

    def percentile(self, share: float) -> float | None:
        """Return the value below which this share (0 to 1) of the values lies; None without any."""
        return self.percentiles((share,))[0]

    def percentiles(self, shares: Sequence[float]) -> list[float | None]:
        """Return several at once; the shares ascend. See `percentile`."""
        total = sum(self._buckets.values())
        found: list[float | None] = []
        wanted = [max(1, math.ceil(share * total)) for share in shares]
        below = 0
        for bucket in sorted(self._buckets):
            below += self._buckets[bucket]
            while len(found) < len(wanted) and wanted[len(found)] <= below:
                found.append(math.exp((bucket + 0.5) * _GROWTH))
        return found + [None] * (len(wanted) - len(found))


@dataclass(slots=True)
class Line:
    """One task in one window.

    Attributes:
        start_us: Where the window begins, as epoch microseconds.
        size_us: How long it is.
        task: Name of the task.
        counts: By word: sent, started, succeeded, failed, retried, dead.
        runtimes: Of attempts that ended, in seconds.
    """

    start_us: int
    size_us: int
    task: str
    counts: Counter[str] = field(default_factory=Counter)
    runtimes: Histogram = field(default_factory=Histogram)

    def add(self, kind: str, runtime_us: object) -> None:
        """Count an event.

        Args:
            kind: Its type; one of `COUNTED`.
            runtime_us: Of the attempt that it ended, in microseconds; anything else is left out.
        """
        self.counts[COUNTED[kind]] += 1
        if isinstance(runtime_us, int) and runtime_us > 0:
            self.runtimes.add(runtime_us / 1e6)

    def to_state(self) -> dict[str, Any]:
        """Return what it has counted, to be kept as JSON; see `from_state`."""
        buckets = {str(number): count for number, count in self.runtimes.buckets.items()}
        return {"counts": dict(self.counts), "buckets": buckets}

    @classmethod
    def from_state(cls, start_us: int, size_us: int, task: str, state: Mapping[str, Any]) -> "Line":
        """Return a line that goes on from what `to_state` gave.

        Args:
            start_us: Where the window begins, as epoch microseconds.
            size_us: How long it is.
            task: Name of the task.
            state: From `to_state`; empty for a new line.
        """
        buckets = {int(number): count for number, count in state.get("buckets", {}).items()}
        counts = Counter(state.get("counts", {}))
        return cls(start_us, size_us, task, counts, Histogram(buckets))

    def summary(self) -> dict[str, Any]:
        """Return the line as plain values; times in seconds, rates for each second."""
        ended = self.counts["succeeded"] + self.counts["failed"] + self.counts["retried"]
        bad = ended - self.counts["succeeded"]
        found = self.runtimes.percentiles([share / 100 for share in _SHARES])
        return {
            "start_ms": self.start_us // 1000,
            "window_s": self.size_us / 1e6,
            "task": self.task,
            **{word: self.counts[word] for word in COUNTED.values()},
            "failure_rate": round(bad / ended, 4) if ended else 0.0,
            **{
                f"p{share}_s": None if value is None else round(value, 6)
                for share, value in zip(_SHARES, found, strict=True)
            },
        }


class TumblingWindows:
    """Sorts events into windows by their own time and closes a window when it is over.

    A window is over when an event says that time has gone past its end by the allowed lateness.
    What comes later still is counted as late and left out: its window was given out already.

    Attributes:
        late: Events that came after their window had been closed.
    """

    def __init__(self, size_s: float, lateness_s: float = 5.0) -> None:
        """Begin.

        Args:
            size_s: Length of a window, in seconds.
            lateness_s: How much later than the newest an event may come, in seconds.
        """
        self.late = 0
        self._size_us = max(1, round(size_s * 1e6))
        self._lateness_us = round(lateness_s * 1e6)
        self._open: dict[int, dict[str, Line]] = {}
        self._closed_until = -(2**63)
        self._newest = -(2**63)

    def add(self, event: Event) -> list[Line]:
        """Take an event; return the lines of windows that it closes, oldest first."""
        task = event.data.get("task")
        if event.type not in COUNTED or not task:
            return []
        start = event.time_us // self._size_us * self._size_us
        if start < self._closed_until:
            self.late += 1
            return []
        tasks = self._open.setdefault(start, {})
        line = tasks.get(task)
        if line is None:
            line = tasks[task] = Line(start, self._size_us, task)
        line.add(event.type, event.data.get("runtime_us"))
        if event.time_us > self._newest:
            self._newest = event.time_us
            return self._close(self._newest - self._lateness_us)
        return []

    def flush(self, until_us: int | None = None) -> list[Line]:
        """Close the windows that end before a moment, or all; return their lines."""
        return self._close(2**63 if until_us is None else until_us)

    def _close(self, until_us: int) -> list[Line]:
        over = sorted(start for start in self._open if start + self._size_us <= until_us)
        lines = [line for start in over for line in _sorted(self._open.pop(start))]
        if over:
            self._closed_until = max(self._closed_until, over[-1] + self._size_us)
        return lines


def _sorted(tasks: Mapping[str, Line]) -> Iterator[Line]:
    return (tasks[name] for name in sorted(tasks))


def lines_of(events: Iterable[Event], size_s: float) -> list[Line]:
    """Return the lines of events that are all there: nothing is late."""
    windows = TumblingWindows(size_s, lateness_s=2**40)
    lines = [line for event in events for line in windows.add(event)]
    return lines + windows.flush()
