"""Staged pipeline on a stream: filter, transform, enrich; equal to a batch over the same log.

python examples/patterns/stream_pipeline.py     (TASKQ_KAFKA_BOOTSTRAP_SERVERS names Kafka)
"""

from typing import Any

from _stream_log import StreamLog, read_results

from taskq.events import Event
from taskq.events.streams import LifecycleStream

TEAMS = {"orders.charge": "payments", "orders.ship": "logistics"}
Row = dict[str, Any]


def is_failure(row: Row) -> bool:
    """Stage 1, filter: what somebody should look at."""
    return bool(row["type"] == "task.failed")


def to_incident(row: Row) -> Row:
    """Stage 2, transform: only what the reader needs."""
    return {"id": row["task_id"], "task": row["task"], "took_ms": row["runtime_us"] // 1000}


def with_team(incident: Row) -> Row:
    """Stage 3, enrich: from a table of our own."""
    return {**incident, "team": TEAMS.get(incident["task"], "nobody")}


def run(number: int) -> list[Event]:
    """Return the events of a run; every fourth fails."""
    task = ("orders.charge", "orders.ship", "orders.thank")[number % 3]
    data = {"task_id": f"id-{number}", "task": task, "attempt": 1}
    ended = {**data, "runtime_us": 1000 * number}
    kind = "task.succeeded" if number % 4 else "task.failed"
    return [
        Event("/taskq/orders/web-1/1", 2 * number + 1, "task.started", 1000 * number, data),
        Event("/taskq/orders/web-1/1", 2 * number + 2, kind, 2000 * number, ended),
    ]


def main() -> None:
    events = [event for number in range(200) for event in run(number)]
    log = StreamLog(partitions=4)
    # A bridge that was killed sends its last events again.
    log.write(events[:300])
    log.write(events[200:])

    stream = LifecycleStream(log.properties, f"{log.topic}-incidents", log.topic)
    incidents = stream.frame.filter(is_failure).apply(to_incident).apply(with_team)
    stream.write(incidents, f"{log.topic}-incidents", lambda incident: str(incident["id"]))
    seen: list[Row] = []
    incidents.update(lambda incident: log.stop_at(stream, seen, incident, 50))
    stream.run()

    batch = [
        {
            "id": event.task_id,
            "task": event.data["task"],
            "took_ms": event.data["runtime_us"] // 1000,
            "team": TEAMS.get(event.data["task"], "nobody"),
        }
        for event in events
        if event.type == "task.failed"
    ]
    stored = read_results(log.properties, f"{log.topic}-incidents", len(batch))
    assert sorted(stored, key=str) == sorted(batch, key=str)
    assert stream.duplicates, "nothing came twice: that shows less than it should"
    print(
        f"{len(stored)} incidents of {len(events)} events, {stream.duplicates} duplicates dropped"
    )


if __name__ == "__main__":
    main()
