"""Ten records at once, those of one key in order; commits never pass one that is in hand.

KAFKA_BOOTSTRAP=localhost:9092 python examples/patterns/kafka_concurrency.py
"""

import threading
import time

from _kafka import PROPERTIES, new_topic

from taskq.events.kafka import Producer, Record, RecordConsumer


def main() -> None:
    topic = new_topic("readings")
    with Producer(PROPERTIES) as producer:
        for number in range(400):
            producer.send(topic, str(number).encode(), key=f"sensor-{number % 20}")
    seen: dict[str, list[int]] = {}
    busy: list[int] = []
    lock = threading.Lock()
    active = 0

    def handler(record: Record) -> None:
        nonlocal active
        with lock:
            active += 1
            busy.append(active)
        time.sleep(0.002)
        with lock:
            active -= 1
            seen.setdefault(record.key, []).append(int(record.value))

    consumer = RecordConsumer(PROPERTIES, topic, [topic], concurrency=10)
    consumer.run(handler, until=lambda: consumer.handled >= 400)
    consumer.close()

    print(f"{len(seen)} keys, up to {max(busy)} at once")
    assert all(numbers == sorted(numbers) for numbers in seen.values())
    assert sum(map(len, seen.values())) == 400
    assert 1 < max(busy) <= 10


if __name__ == "__main__":
    main()
