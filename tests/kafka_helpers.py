"""Reading topics in tests, and events to fill them with."""

import json
import time
import uuid
from dataclasses import dataclass
from typing import Any

from taskq.brokers.base import Broker
from taskq.events import Event, Watermark, read_cloudevent
from taskq.events.bus import Recorder


@dataclass(frozen=True)
class Stored:
    """A record of a topic."""

    partition: int
    key: str
    value: bytes
    headers: dict[str, str]

    @property
    def event(self) -> Event:
        """Its value as an event."""
        return read_cloudevent(self.value)

    @property
    def json(self) -> Any:
        """Its value as JSON."""
        return json.loads(self.value)


def read_topic(bootstrap: str, topic: str) -> list[Stored]:
    """Return all that is in a topic now, each partition in its order."""
    import confluent_kafka as ck

    consumer = ck.Consumer(
        {"bootstrap.servers": bootstrap, "group.id": uuid.uuid4().hex, "log_level": 0}
    )
    found: list[Stored] = []
    try:
        metadata = consumer.list_topics(topic, timeout=30).topics[topic]
        ends = {}
        for number in metadata.partitions:
            low, high = consumer.get_watermark_offsets(ck.TopicPartition(topic, number), 30)
            if high > low:
                ends[number] = high
        if not ends:
            return []
        consumer.assign([ck.TopicPartition(topic, n, ck.OFFSET_BEGINNING) for n in ends])
        deadline = time.monotonic() + 60
        while ends:
            assert time.monotonic() < deadline, f"{topic} could not be read to its end"
            for message in consumer.consume(1000, 0.2):
                assert message.error() is None, message.error()
                headers = {name: value.decode() for name, value in message.headers() or []}
                key = (message.key() or b"").decode()
                found.append(Stored(message.partition(), key, message.value(), headers))
                if message.offset() + 1 >= ends.get(message.partition(), 1 << 62):
                    del ends[message.partition()]
    finally:
        consumer.close()
    return found


def deduplicated(stored: list[Stored]) -> list[Event]:
    """Return events as a consumer sees them: those above the watermark of source and partition."""
    marks: dict[int, Watermark] = {}
    kept = []
    for item in stored:
        event = item.event
        mark = marks.setdefault(item.partition, Watermark())
        if mark.new(event.source, event.sequence, contiguous=False):
            kept.append(event)
    return kept


def publish_runs(broker: Broker, recorder: Recorder, names: list[str]) -> None:
    """Publish the events of two attempts of each named task in one batch."""
    for name in names:
        now = time.time_ns() // 1000
        for kind, begun in (("task.sent", 0), ("task.retried", now), ("task.succeeded", now)):
            retries = 1 if kind == "task.succeeded" else 0
            recorder.add([(kind, now, begun, name, "t", "q", retries, "", "", begun and 5, None)])
    item = recorder.take()
    assert item is not None
    assert broker.publish([item], 60) == [None]
