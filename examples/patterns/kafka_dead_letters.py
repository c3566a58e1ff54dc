"""A record that Kafka refuses goes to the dead-letter topic, with the reason in its headers.

What fails for a while, a broker that restarts say, is sent again underneath, in order.

KAFKA_BOOTSTRAP=localhost:9092 python examples/patterns/kafka_dead_letters.py
"""

from _kafka import PROPERTIES, new_topic

from taskq.events.kafka import Producer, Record, RecordConsumer


def main() -> None:
    topic = new_topic("photos")
    with Producer({**PROPERTIES, "message.max.bytes": 10_000}, dead_letters=True) as producer:
        producer.send(topic, b"small", key="cat")
        producer.send(topic, b"x" * 50_000, key="whale")
        producer.send(topic, b"small", key="dog")

    found: dict[str, Record] = {}

    def handler(record: Record) -> None:
        found[record.key] = record

    consumer = RecordConsumer(PROPERTIES, topic, [topic, f"{topic}.dead"])
    consumer.run(handler, until=lambda: len(found) >= 3)
    consumer.close()
    headers = found["whale"].headers
    print(headers["taskq-error"], headers["taskq-bytes"])
    assert "MSG_SIZE_TOO_LARGE" in headers["taskq-error"]
    assert headers["taskq-bytes"] == "50000"
    assert found["cat"].value == found["dog"].value == b"small"


if __name__ == "__main__":
    main()
