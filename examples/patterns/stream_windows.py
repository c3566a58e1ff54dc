"""Tumbling windows on a stream: counts and percentiles by task, late events by policy.

python examples/patterns/stream_windows.py     (TASKQ_KAFKA_BOOTSTRAP_SERVERS names Kafka)
"""

import math
import random
from collections import defaultdict
from typing import Any

from _stream_log import StreamLog, read_results

from taskq.events import Event
from taskq.events.streams import LifecycleStream, line_key, window_lines

WINDOW_S = 10
BASE_US = 1_700_000_000_000_000
COUNT = 300


def ended(source: str, number: int, at_s: float) -> Event:
    """Return the end of a run at a second of the log."""
    runtime_us = round(random.Random(number).lognormvariate(-2, 1) * 1e6)
    data = {"task_id": f"{source}{number}", "task": f"task-{number % 2}", "attempt": 1}
    at_us = BASE_US + round(at_s * 1e6)
    return Event(source, number + 1, "task.succeeded", at_us, {**data, "runtime_us": runtime_us})


def exact(events: list[Event]) -> dict[str, list[int]]:
    """Return the run times of each task and window, all of them: the batch."""
    runtimes: dict[str, list[int]] = defaultdict(list)
    size_us = WINDOW_S * 1_000_000
    for event in events:
        start_ms = event.time_us // size_us * size_us // 1000
        runtimes[f"{event.data['task']}@{start_ms}"].append(event.data["runtime_us"])
    return runtimes


def main() -> None:
    # One partition here, so that what is late can be said beforehand; each has its own time.
    log = StreamLog(partitions=1)
    punctual = [ended("/taskq/app/web-1/1", number, number / 5) for number in range(COUNT)]
    # A worker that was cut off: it tells half a minute later of its first four seconds.
    late = [ended("/taskq/app/web-2/1", number, number / 5) for number in range(20)]
    log.write([*punctual[:200], *late, *punctual[200:]])

    lines: dict[str, dict[str, Any]] = {}
    stream = LifecycleStream(log.properties, f"{log.topic}-windows", log.topic)
    for policy in ("drop", "count"):
        frame = window_lines(stream.frame, WINDOW_S, lateness_s=5, late=policy)
        stream.write(frame, f"{log.topic}-{policy}", line_key)
    stream.run(idle_s=10)

    for policy, counted in (("drop", punctual), ("count", punctual + late)):
        stored = read_results(log.properties, f"{log.topic}-{policy}", COUNT + len(late))
        # Of one task and window, the last line holds.
        lines = {line_key(line): line for line in stored}
        batch = exact(counted)
        assert lines.keys() == batch.keys()
        for key, runtimes_us in batch.items():
            assert lines[key]["succeeded"] == len(runtimes_us), (policy, key)
            middle_us = sorted(runtimes_us)[math.ceil(len(runtimes_us) / 2) - 1]
            assert abs(lines[key]["p50_s"] * 1e6 / middle_us - 1) < 0.02, (policy, key)
        assert sum(line["late"] for line in lines.values()) == len(late)
        print(f"late={policy!r}: {len(lines)} lines, {len(late)} late events, equal to the batch")


if __name__ == "__main__":
    main()
