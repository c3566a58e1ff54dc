"""Reading topics in tests, and events to fill them with."""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from taskq.brokers.base import Broker
from taskq.events import Event, Watermark, read_cloudevent, to_cloudevent
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


def count_records(bootstrap: str, topic: str) -> int:
    """Return how many records a topic has, without reading them."""
    import confluent_kafka as ck

    consumer = ck.Consumer({"bootstrap.servers": bootstrap, "group.id": "count", "log_level": 0})
    try:
        found = consumer.list_topics(topic, timeout=30).topics[topic].partitions
        ends = [consumer.get_watermark_offsets(ck.TopicPartition(topic, n), 30) for n in found]
    finally:
        consumer.close()
    return sum(high - low for low, high in ends)


def read_topic(bootstrap: str, topic: str) -> list[Stored]:
    """Return all that is in a topic now, each partition in its order."""
    import confluent_kafka as ck

    consumer = ck.Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": uuid.uuid4().hex,
            "log_level": 0,
            # The last record of a transaction is a mark of Kafka's own, which no reader gets.
            "enable.partition.eof": True,
        }
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
                # Of a large topic on a busy machine: as long as there is progress.
                deadline = time.monotonic() + 60
                if message.error() is not None:
                    assert message.error().name() == "_PARTITION_EOF", message.error()
                    ends.pop(message.partition(), None)
                    continue
                headers = {name: value.decode() for name, value in message.headers() or []}
                key = (message.key() or b"").decode()
                found.append(Stored(message.partition(), key, message.value(), headers))
    finally:
        consumer.close()
    return found


class TopicReader:
    """Reads topics from their beginning, and goes on; they must exist.

    Attributes:
        found: What was read, by topic.
    """

    def __init__(self, bootstrap: str, *topics: str) -> None:
        import confluent_kafka as ck

        self.found: dict[str, list[Stored]] = {topic: [] for topic in topics}
        self._client = ck.Consumer(
            {"bootstrap.servers": bootstrap, "group.id": uuid.uuid4().hex, "log_level": 0}
        )
        known = self._client.list_topics(timeout=30).topics
        self._client.assign(
            [
                ck.TopicPartition(topic, number, ck.OFFSET_BEGINNING)
                for topic in topics
                for number in known[topic].partitions
            ]
        )

    def read(self) -> None:
        """Take what is there."""
        while messages := self._client.consume(5000, 0.3):
            for message in messages:
                if message.error() is None:
                    key = (message.key() or b"").decode()
                    stored = Stored(message.partition(), key, message.value(), {})
                    self.found[message.topic()].append(stored)

    def close(self) -> None:
        """Leave."""
        self._client.close()


def make_topics(bootstrap: str, partitions: int, *topics: str) -> None:
    """Make topics, and wait until they can be read."""
    from confluent_kafka import admin

    client = admin.AdminClient({"bootstrap.servers": bootstrap})
    new_topic: Any = vars(admin)["NewTopic"]
    wanted = [new_topic(name, num_partitions=partitions, replication_factor=1) for name in topics]
    for future in client.create_topics(wanted).values():
        future.result(60)


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
    # A server that is killed meanwhile may take minutes to be back on a busy machine.
    assert broker.publish([item], 300) == [None]


def make_topic(given: dict[str, Any], partitions: int = 3) -> str:
    """Make a topic and its dead-letter topic; return its name."""
    from taskq.events.kafka.topics import make_topics

    name = f"t-{uuid.uuid4().hex[:10]}"
    make_topics(given, {name: partitions, f"{name}.dead": 1}, 1)
    return name


def numbered(
    count: int, keys: int = 5, first: int = 1, source: str = "/taskq/a/n/1"
) -> list[Event]:
    """Return events of one source, dealt to keys in turn."""
    return [
        Event(source, n, "task.sent", 1_000_000 * n, {"task_id": f"k{n % keys}"})
        for n in range(first, first + count)
    ]


def fill(given: dict[str, Any], topic: str, what: Sequence[Event | bytes]) -> None:
    """Write events, or bytes as they are."""
    from taskq.events.kafka import Producer

    with Producer(given) as producer:
        for item in what:
            if isinstance(item, bytes):
                producer.send(topic, item)
            else:
                value = json.dumps(to_cloudevent(item)).encode()
                producer.send(topic, value, key=item.task_id)


def committed(given: dict[str, Any], group: str, topic: str) -> dict[int, int]:
    """Return the offsets that a group has committed, by partition."""
    import confluent_kafka as ck

    client = ck.Consumer({**given, "group.id": group, "log_level": 0})
    try:
        parts = client.list_topics(topic, timeout=30).topics[topic].partitions
        found = client.committed([ck.TopicPartition(topic, n) for n in parts], timeout=30)
        return {part.partition: part.offset for part in found if part.offset >= 0}
    finally:
        client.close()
