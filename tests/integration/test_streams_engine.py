"""What Quix Streams itself does with the lifecycle log: why windows and joins are taskq's own.

When one of these fails after an upgrade, the engine may have become fit: then the own code can go.
"""

import json
import time
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from kafka_helpers import make_topics, read_topic
from kafka_server import GivenKafka, KafkaServer

from taskq.events import Event, to_cloudevent

pytest.importorskip("quixstreams")

from taskq.events.streams import LifecycleStream, window_lines
from taskq.events.streams.windows import line_key

Kafka = KafkaServer | GivenKafka
# The engine's own topics have the events' times, and Kafka deletes what is old.
BASE_US = time.time_ns() // 1000 // 60_000_000 * 60_000_000 - 3_600_000_000
IDLE_S = 6.0
pytestmark = pytest.mark.timeout(300)


def started(number: int, at_s: float, task: str = "t") -> Event:
    data = {"task_id": f"id-{number}", "task": task, "attempt": 1}
    at_us = BASE_US + round(at_s * 1e6)
    return Event(f"/taskq/app/node/{number}", 1, "task.started", at_us, data)


@pytest.fixture
def write(shared_kafka: Kafka) -> Callable[..., None]:
    """Writes events into a partition of a topic."""
    from confluent_kafka import Producer as Client

    client = Client({"bootstrap.servers": shared_kafka.bootstrap})

    def produce(topic: str, partition: int, *events: Event) -> None:
        for event in events:
            value = json.dumps(to_cloudevent(event)).encode()
            client.produce(topic, value, key=event.task_id, partition=partition)
        assert client.flush(60) == 0

    return produce


@pytest.fixture
def new_log(shared_kafka: Kafka) -> Callable[[int], str]:
    """Makes a log of so many partitions, and topics for what comes of it."""

    def make(partitions: int) -> str:
        name = f"t-{uuid.uuid4().hex[:10]}"
        make_topics(shared_kafka.bootstrap, partitions, name, f"{name}-theirs", f"{name}-ours")
        return name

    return make


def run_both(properties: dict[str, Any], topic: str, late: list[int]) -> None:
    """Run the engine's windows of a minute, and ours, to the end of the log; in one process."""
    stream = LifecycleStream(properties, f"g-{topic}", topic, member="one")

    def note(value: Any, key: Any, at_ms: int, *_: Any) -> bool:
        late.append(minute_of(at_ms))
        return False

    rows = stream.frame.group_by("task", name="theirs")
    windows = rows.tumbling_window(60_000, 5_000, on_late=note).count().final("partition")
    stream.write(windows, f"{topic}-theirs", lambda window: str(window["start"]))
    stream.write(window_lines(stream.frame, 60, 5), f"{topic}-ours", line_key)
    stream.run(idle_s=IDLE_S)


def minute_of(at_ms: int) -> int:
    return (at_ms * 1000 - BASE_US) // 60_000_000


def test_the_engine_loses_late_events_and_calls_late_what_another_partition_is_ahead_of(
    shared_kafka: Kafka, new_log: Callable[[int], str], write: Callable[..., None]
) -> None:
    """One partition of the log is read ahead of the other, as after an outage: ours stay exact."""
    bootstrap = shared_kafka.bootstrap
    properties = {"bootstrap.servers": bootstrap, "log_level": 0}
    topic = new_log(2)
    late: list[int] = []
    # Partition 0 runs ahead by ten minutes; one event of its first minute comes a little late.
    write(topic, 0, started(1, 10), started(2, 70), started(3, 58))
    write(topic, 0, *(started(10 + n, 60.0 * n) for n in range(2, 10)))
    run_both(properties, topic, late)
    # Partition 1 has the same minutes, in order: none of it is late there.
    write(topic, 1, *(started(30 + n, 60.0 * n + 1) for n in range(10)))
    run_both(properties, topic, late)

    windows = [record.json for record in read_topic(bootstrap, f"{topic}-theirs")]
    theirs = Counter({minute_of(w["start"]): 0 for w in windows})
    for window in windows:
        theirs[minute_of(window["start"])] += window["value"]
    ours = {minute_of(r.json["start_ms"]): r.json for r in read_topic(bootstrap, f"{topic}-ours")}

    # Three events fall into the first minute. The one at 58 s is taken into a window that was
    # given out at 70 s: it is neither called late nor ever counted.
    assert theirs[0] + late.count(0) == 2, "the engine accounts for it: mark_late may go"
    assert (ours[0]["started"], ours[0]["late"]) == (2, 1)
    assert late.count(1) == 1, "the engine waits for slow partitions: group_by may come first"
    assert ours[1]["started"] == 2
    assert sum(line["started"] + line["late"] for line in ours.values()) == 21


def test_the_engine_does_not_join_a_topic_with_itself(
    shared_kafka: Kafka, new_log: Callable[[int], str]
) -> None:
    """Starts and ends lie in one log, so that they stay in order."""
    stream = LifecycleStream({"bootstrap.servers": shared_kafka.bootstrap}, "g", new_log(1))
    begun = stream.frame.filter(lambda row: row["type"] == "task.started")
    ended = stream.frame.filter(lambda row: row["type"] == "task.succeeded")

    with pytest.raises(ValueError, match="same topic"):
        begun.join_interval(ended, how="left", grace_ms=60_000, backward_ms=60_000)
