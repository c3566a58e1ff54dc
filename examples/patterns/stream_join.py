"""A join on a stream: starts with ends, every pair once; what stays alone is told after its time.

python examples/patterns/stream_join.py     (TASKQ_KAFKA_BOOTSTRAP_SERVERS names Kafka)
"""

from collections import Counter
from typing import Any

from _stream_log import StreamLog, read_results

from taskq.events import Event
from taskq.events.streams import LifecycleStream, join_runs

BASE_US = 1_700_000_000_000_000
TTL_S = 30
COUNT = 120


def both(number: int) -> tuple[Event, Event]:
    """Return the start and the end of a run, as two workers tell theirs."""
    source = f"/taskq/app/worker-{number % 2}/1"
    at_us = BASE_US + number * 100_000
    data = {"task_id": f"id-{number}", "task": "t", "attempt": 1}
    ended = {**data, "runtime_us": 1000 + number}
    return (
        Event(source, 2 * number + 1, "task.started", at_us, data),
        Event(source, 2 * number + 2, "task.succeeded", at_us + 1000 + number, ended),
    )


def main() -> None:
    pairs = [both(number) for number in range(COUNT)]
    died = {"id-17", "id-60"}
    events = [
        event for pair in pairs for event in pair if event.sequence % 2 or event.task_id not in died
    ]
    # Time goes by what happens: a minute later, in each partition.
    minute = [
        Event("/taskq/app/other/1", n + 1, "task.sent", BASE_US + 90_000_000, {"task_id": f"x{n}"})
        for n in range(60)
    ]
    log = StreamLog(partitions=4)
    # Some of it twice, as from a bridge that was killed.
    log.write([*events[:150], *events[100:], *minute])

    stream = LifecycleStream(log.properties, f"{log.topic}-join", log.topic)
    runs = join_runs(stream.frame, ttl_s=TTL_S)
    stream.write(runs, f"{log.topic}-runs", lambda run: str(run["task_id"]))
    seen: list[Any] = []
    runs.update(lambda run: log.stop_at(stream, seen, run, COUNT))
    stream.run()

    stored = read_results(log.properties, f"{log.topic}-runs", COUNT)
    assert Counter(run["task_id"] for run in stored) == Counter(f"id-{n}" for n in range(COUNT))
    durations = {run["task_id"]: run["duration_us"] for run in stored}
    for start, end in pairs:
        exact_us = None if start.task_id in died else end.time_us - start.time_us
        assert durations[start.task_id] == exact_us
    print(f"{COUNT - len(died)} pairs, each once; {len(died)} starts without an end")


if __name__ == "__main__":
    main()
