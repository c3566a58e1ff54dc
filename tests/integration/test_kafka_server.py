"""Kafka for the tests, tested."""

import uuid

import pytest
from kafka_server import GivenKafka, KafkaServer, MockKafka

confluent_kafka = pytest.importorskip("confluent_kafka")


def _produce(bootstrap: str, topic: str, values: list[bytes]) -> None:
    producer = confluent_kafka.Producer({"bootstrap.servers": bootstrap, "acks": "all"})
    for value in values:
        producer.produce(topic, value)
    assert producer.flush(60) == 0


def _read(bootstrap: str, topic: str, count: int) -> list[bytes]:
    consumer = confluent_kafka.Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": uuid.uuid4().hex,
            "auto.offset.reset": "earliest",
        }
    )
    try:
        consumer.subscribe([topic])
        found: list[bytes] = []
        for _ in range(600):
            if len(found) >= count:
                break
            found += [m.value() for m in consumer.consume(100, 0.1) if m.error() is None]
        return found
    finally:
        consumer.close()


def test_produces_and_consumes(any_kafka: KafkaServer | GivenKafka | MockKafka) -> None:
    """Whichever cluster this is: what is produced can be read."""
    topic = f"t{uuid.uuid4().hex[:8]}"
    _produce(any_kafka.bootstrap, topic, [b"a", b"b"])

    assert sorted(_read(any_kafka.bootstrap, topic, 2)) == [b"a", b"b"]
