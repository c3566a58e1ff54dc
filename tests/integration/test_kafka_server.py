"""Kafka for the tests, tested: other tests trust that it keeps what it acknowledged."""

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


def test_a_killed_kafka_comes_back_with_its_data(private_kafka: KafkaServer) -> None:
    """The fault tests of the bridge count on it: same port, same data."""
    _produce(private_kafka.bootstrap, "kept", [b"1", b"2", b"3"])
    private_kafka.kill()
    assert private_kafka.pid is None

    private_kafka.start()

    assert sorted(_read(private_kafka.bootstrap, "kept", 3)) == [b"1", b"2", b"3"]
