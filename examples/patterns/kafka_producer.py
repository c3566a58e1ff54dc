"""Kafka producer: idempotent and compressed; keys keep their order, headers say what is inside.

KAFKA_BOOTSTRAP=localhost:9092 python examples/patterns/kafka_producer.py
"""

from _kafka import PROPERTIES, new_topic

from taskq.events.kafka import Producer, Record, RecordConsumer


def main() -> None:
    topic = new_topic("orders")
    with Producer(PROPERTIES) as producer:
        for number in range(300):
            # Batches are made underneath; `with` waits until Kafka has all of them.
            headers = {"content-type": "text/plain"}
            producer.send(topic, str(number).encode(), key=f"shop-{number % 7}", headers=headers)

    seen: dict[str, list[int]] = {}

    def handler(record: Record) -> None:
        assert record.headers["content-type"] == "text/plain"
        seen.setdefault(record.key, []).append(int(record.value))

    consumer = RecordConsumer(PROPERTIES, topic, [topic])
    consumer.run(handler, until=lambda: consumer.handled >= 300)
    consumer.close()

    for key, numbers in sorted(seen.items()):
        print(key, numbers[:5], "...")
        assert numbers == list(range(int(key[-1]), 300, 7))


if __name__ == "__main__":
    main()
