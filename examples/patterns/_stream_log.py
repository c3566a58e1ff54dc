"""A lifecycle log for the patterns on streams: a topic of its own, filled without a bridge."""

import json
import os
import time
import uuid
from collections.abc import Iterable
from typing import Any

from taskq.events import Event, to_cloudevent
from taskq.events.kafka import Producer, load_client
from taskq.events.kafka.client import read_environment
from taskq.events.kafka.topics import Topics, create
from taskq.events.streams import LifecycleStream

PATIENCE_S = 120


class StreamLog:
    """A topic with lifecycle events.

    Attributes:
        properties: Of Kafka's client, from TASKQ_KAFKA_* variables.
        topic: Its name.
    """

    def __init__(self, partitions: int) -> None:
        self.properties = read_environment(os.environ)
        self.topic = f"taskq-pattern-{uuid.uuid4().hex[:8]}"
        create(self.properties, Topics(self.topic, f"{self.topic}-workers"), partitions, -1)
        self._producer = Producer(self.properties)

    def write(self, events: Iterable[Event]) -> None:
        """Append events as the bridge writes them."""
        for event in events:
            body = json.dumps(to_cloudevent(event)).encode()
            self._producer.send(self.topic, body, key=event.task_id)
        self._producer.flush()

    def stop_at(self, stream: LifecycleStream, seen: list[Any], item: Any, count: int) -> None:
        """Collect what a stream gives; the last one ends it, what it does then is committed."""
        seen.append(item)
        if len(seen) >= count:
            stream.stop()


def read_results(properties: dict[str, str], topic: str, count: int) -> list[dict[str, Any]]:
    """Return the records of a topic that were committed, once there are so many."""
    kafka = load_client()
    reader = kafka.Consumer(
        {**properties, "group.id": uuid.uuid4().hex, "isolation.level": "read_committed"}
    )
    partitions = reader.list_topics(topic, timeout=30).topics[topic].partitions
    reader.assign([kafka.TopicPartition(topic, n, kafka.OFFSET_BEGINNING) for n in partitions])
    found: list[dict[str, Any]] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(found) < count and time.monotonic() < deadline:
        found += _values(reader.consume(500, 1.0))
    # One too many must show, too.
    found += _values(reader.consume(500, 1.0))
    reader.close()
    return found


def _values(messages: list[Any]) -> list[dict[str, Any]]:
    return [json.loads(message.value()) for message in messages if message.error() is None]
