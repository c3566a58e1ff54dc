"""What streams must come to, computed plainly over a whole log; shares no code with them."""

import math
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from kafka_helpers import Stored

from taskq.errors import DecodeError
from taskq.events import Event, read_cloudevent

WORDS = {
    "task.sent": "sent",
    "task.started": "started",
    "task.succeeded": "succeeded",
    "task.failed": "failed",
    "task.retried": "retried",
}
BASE_US = 1_700_000_000_000_000


def make_log(runs: int, seed: int, *, sources: int = 6) -> list[Event]:
    """Return the events of runs as a bridge may write them: mixed, late and repeated.

    One source lags by seconds all the time and one for once by a minute, some runs have only one
    of their events, and stretches of some sources come twice.
    """
    shuffle = random.Random(seed)
    by_source: dict[str, list[tuple[int, Event]]] = defaultdict(list)
    for number in range(runs):
        source = f"/taskq/app/node-{number % sources}/1"
        at_us = BASE_US + number * 40_000
        runtime_us = round(shuffle.lognormvariate(-1.5, 1) * 1e6)
        data = {"task_id": f"id-{number}", "task": f"task-{number % 5}", "attempt": 1}
        kind = "task.failed" if number % 7 == 0 else "task.succeeded"
        delay_us = (0, 0, 0, 400_000, 4_000_000, 1_000_000)[number % sources % 6]
        if number % sources == 1 and runs // 3 < number < runs // 3 + 200:
            delay_us = 60_000_000
        both = [
            Event(source, 0, "task.started", at_us, data),
            Event(source, 0, kind, at_us + runtime_us, {**data, "runtime_us": runtime_us}),
        ]
        if number % 50 == 3:
            both.pop(number % 2)
        for event in both:
            by_source[source].append((at_us + delay_us, event))
    placed: list[tuple[int, int, Event]] = []
    for source, items in by_source.items():
        # A source is read in its own order, whatever waits.
        moment_us = 0
        numbered = []
        for sequence, (arrival_us, event) in enumerate(items, 1):
            moment_us = max(moment_us, arrival_us)
            numbered.append((moment_us, sequence, replace(event, sequence=sequence)))
        placed += numbered
        if source.endswith(("-0/1", "-4/1")):
            cut = len(numbered) // 2
            again_us = numbered[cut][0]
            repeated = [(again_us, n, e) for _, n, e in numbered[cut - 60 : cut]]
            placed = [item for item in placed if item[2].source != source]
            placed += numbered[:cut] + [(again_us - 1, 0, e) for _, _, e in repeated]
            placed += numbered[cut:]
    return [event for _, _, event in sorted(placed, key=lambda item: item[0])]


def in_partitions(stored: list[Stored]) -> Iterator[list[Event]]:
    """Yield the events of each partition in its order, without what came before or is no event."""
    parts: dict[int, list[Event]] = defaultdict(list)
    marks: dict[tuple[int, str], int] = defaultdict(int)
    for item in stored:
        try:
            event = read_cloudevent(item.value or b"")
        except DecodeError:
            continue
        if event.sequence > marks[item.partition, event.source]:
            marks[item.partition, event.source] = event.sequence
            parts[item.partition].append(event)
    yield from parts.values()


@dataclass
class Expected:
    """One task in one window, exactly."""

    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    runtimes_s: list[float] = field(default_factory=list)
    late: int = 0

    def percentile(self, share: float) -> float:
        """Return an exact percentile."""
        return sorted(self.runtimes_s)[max(1, math.ceil(share * len(self.runtimes_s))) - 1]


def lines_of_log(
    stored: list[Stored], size_s: float, lateness_s: float, *, drop: bool
) -> dict[str, Expected]:
    """Return {task@start_ms: line} of a whole log."""
    size_us, lateness_us = int(size_s * 1e6), int(lateness_s * 1e6)
    lines: dict[str, Expected] = defaultdict(Expected)
    for events in in_partitions(stored):
        newest_us = 0
        for event in events:
            if event.type not in WORDS:
                continue
            start_us = event.time_us // size_us * size_us
            line = lines[f"{event.data['task']}@{start_us // 1000}"]
            late = newest_us - lateness_us >= start_us + size_us
            newest_us = max(newest_us, event.time_us)
            line.late += late
            if late and drop:
                continue
            line.counts[WORDS[event.type]] += 1
            if "runtime_us" in event.data:
                line.runtimes_s.append(event.data["runtime_us"] / 1e6)
    return lines


def runs_of_log(stored: list[Stored], ttl_s: float) -> tuple[set[Any], set[Any]]:
    """Return the pairs (task id, start, end), and the task ids of what found no partner."""
    pairs, alone = set(), set()
    for events in in_partitions(stored):
        waiting: dict[str, tuple[int, Event]] = {}
        newest_us = 0
        for event in events:
            newest_us = max(newest_us, event.time_us)
            for task_id, (until_us, _) in list(waiting.items()):
                if until_us <= newest_us:
                    del waiting[task_id]
                    alone.add(task_id)
            if event.type not in WORDS:
                continue
            partner = waiting.pop(event.task_id, None)
            if partner is None:
                waiting[event.task_id] = newest_us + int(ttl_s * 1e6), event
            else:
                pairs.add((event.task_id, partner[1].time_us, event.time_us))
    return pairs, alone
