"""Reading the events of a topic between two moments, without a group."""

import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from taskq.errors import DecodeError
from taskq.events.kafka.client import KafkaError, load_client, make, masked
from taskq.events.kafka.reading import BATCH, CONSUMER
from taskq.events.schema import Event, read_cloudevent
from taskq.events.watermark import Watermark

_TIMEOUT_S: Final = 30.0


def replay(
    properties: Mapping[str, Any],
    topic: str,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Iterator[Event]:
    """Yield the events of a topic between two moments, without duplicates, and end.

    Records are chosen by the time of the event itself; reading begins where Kafka's index by time
    says, and ends at what is in the topic when it begins.

    Args:
        properties: Of librdkafka; at least `bootstrap.servers`.
        topic: What to read.
        since: From then on; from the beginning when None.
        until: Before then; to the end when None.

    Raises:
        KafkaError: If Kafka does not answer, or has no such topic.
    """
    module = load_client()
    own = {**CONSUMER, **properties, "group.id": "taskq-replay"}
    client = make("Consumer", own)
    try:
        ends = _assigned(client, module, topic, since)
        marks = {partition: Watermark() for partition in ends}
        deadline = time.monotonic() + _TIMEOUT_S
        while ends:
            for record in client.consume(BATCH, 0.2):
                if record.error() is not None:
                    continue
                deadline = time.monotonic() + _TIMEOUT_S
                partition = record.partition()
                yield from _wanted(record, marks[partition], since, until)
            for place in client.position([module.TopicPartition(topic, n) for n in ends]):
                if place.offset >= ends[place.partition]:
                    del ends[place.partition]
            if time.monotonic() > deadline:
                raise KafkaError(f"nothing came from {topic} for {_TIMEOUT_S:g} s")
    except module.KafkaException as error:
        raise KafkaError(f"Kafka's consumer: {masked(error, own)}") from None
    finally:
        client.close()


def _assigned(client: Any, module: Any, topic: str, since: datetime | None) -> dict[int, int]:
    """Place the consumer, and return where each partition that has something ends."""
    found = client.list_topics(topic, timeout=_TIMEOUT_S).topics[topic]
    if not found.partitions or found.error is not None:
        raise KafkaError(f"Kafka has no topic {topic}")
    moment_ms = -2 if since is None else round(since.timestamp() * 1000)
    places = [module.TopicPartition(topic, number, moment_ms) for number in found.partitions]
    if since is not None:
        places = client.offsets_for_times(places, timeout=_TIMEOUT_S)
    ends = {}
    chosen = []
    for place in places:
        low, high = client.get_watermark_offsets(place, timeout=_TIMEOUT_S)
        begin = low if place.offset == -2 else place.offset
        if 0 <= begin < high:
            ends[place.partition] = high
            chosen.append(module.TopicPartition(topic, place.partition, begin))
    client.assign(chosen)
    return ends


def _wanted(
    record: Any, mark: Watermark, since: datetime | None, until: datetime | None
) -> Iterator[Event]:
    try:
        event = read_cloudevent(record.value() or b"")
    except DecodeError:
        return
    if not mark.new(event.source, event.sequence, contiguous=False):
        return
    early = since is not None and event.time_us < since.timestamp() * 1e6
    late = until is not None and event.time_us >= until.timestamp() * 1e6
    if not early and not late:
        yield event
