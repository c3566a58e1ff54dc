"""How many lifecycle events a second one core reads from Kafka: decoded, duplicates dropped.

KAFKA_BOOTSTRAP=localhost:9092 python benchmarks/kafka_consumer.py [--events 200000]

Counts CPU time of this process with the client's threads, so that a busy machine changes little.
"""

import argparse
import json
import os
import time
import uuid
from collections.abc import Iterator

from taskq.events import Event, Watermark, read_cloudevent, to_cloudevent
from taskq.events.kafka import EventConsumer, Producer
from taskq.events.kafka.topics import make_topics

BOOTSTRAP = os.environ.get("KAFKA_BOOTSTRAP", "localhost:9092")
PROPERTIES = {"bootstrap.servers": BOOTSTRAP}


def made(count: int) -> Iterator[Event]:
    """Yield events as a worker tells them, each tenth twice."""
    for number in range(1, count + 1):
        data = {
            "app": "shop",
            "worker": "web-1",
            "task_id": f"01932f5c-7a3e-7c11-9a55-{number:012x}",
            "task": "mail.send",
            "queue": "mail",
            "attempt": 1,
            "state": "SUCCESS",
            "runtime_us": 1234,
        }
        yield Event("/taskq/shop/web-1/7f3a-a1b2c3d4e5f6", number, "task.succeeded", number, data)


def read_all(consumer: EventConsumer, taken: list[int], count: int) -> None:
    """Read until each event came, and each duplicate was dropped."""
    consumer.run(
        lambda event: taken.append(event.sequence),
        until=lambda: len(taken) + consumer.duplicates >= count * 11 // 10,
    )


def main() -> None:
    """Print events per second of CPU, three times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=200_000)
    count = parser.parse_args().events
    topic = f"bench-{uuid.uuid4().hex[:8]}"
    make_topics(PROPERTIES, {topic: 3}, 1)
    values = []
    with Producer(PROPERTIES) as producer:
        for event in made(count):
            value = json.dumps(to_cloudevent(event)).encode()
            values.append(value)
            producer.send(topic, value, key=event.task_id)
            if event.sequence % 10 == 0:
                producer.send(topic, value, key=event.task_id)
    print(f"{count} events of {len(values[0])} bytes, a tenth twice")
    for _ in range(3):
        mark = Watermark()
        begun = time.process_time()
        kept = 0
        for value in values:
            event = read_cloudevent(value)
            kept += mark.new(event.source, event.sequence, contiguous=False)
        spent = time.process_time() - begun
        assert kept == count
        print(f"decode and watermark alone: {count / spent:,.0f} events/s of CPU")
        taken: list[int] = []
        consumer = EventConsumer(PROPERTIES, uuid.uuid4().hex, [topic])
        begun = time.process_time()
        read_all(consumer, taken, count)
        spent = time.process_time() - begun
        consumer.close()
        assert len(taken) == count
        print(f"EventConsumer from Kafka:   {count * 1.1 / spent:,.0f} events/s of CPU")


if __name__ == "__main__":
    main()
