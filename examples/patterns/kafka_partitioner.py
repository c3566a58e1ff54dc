"""Own partitioner: urgent orders have a partition, and so a consumer, of their own.

KAFKA_BOOTSTRAP=localhost:9092 python examples/patterns/kafka_partitioner.py
"""

import zlib

from _kafka import PROPERTIES, new_topic

from taskq.events.kafka import Producer, Record, RecordConsumer


def by_priority(key: str, partitions: int) -> int:
    if key.startswith("urgent"):
        return 0
    return 1 + zlib.crc32(key.encode()) % (partitions - 1)


def main() -> None:
    topic = new_topic("orders", 4)
    with Producer(PROPERTIES, partitioner=by_priority) as producer:
        for number in range(40):
            kind = "urgent" if number % 10 == 0 else "usual"
            producer.send(topic, b"order", key=f"{kind}-{number}")

    places: dict[str, set[int]] = {"urgent": set(), "usual": set()}

    def handler(record: Record) -> None:
        places[record.key.partition("-")[0]].add(record.partition)

    consumer = RecordConsumer(PROPERTIES, topic, [topic])
    consumer.run(handler, until=lambda: consumer.handled >= 40)
    consumer.close()
    print(places)
    assert places["urgent"] == {0}
    assert 0 not in places["usual"]


if __name__ == "__main__":
    main()
