"""Pause and resume, seek, and a replay of exactly the events between two moments.

KAFKA_BOOTSTRAP=localhost:9092 python examples/patterns/kafka_replay.py
"""

import json
import time
from datetime import UTC, datetime, timedelta

from _kafka import PROPERTIES, new_topic

from taskq.events import Event, to_cloudevent
from taskq.events.kafka import EventConsumer, Producer, replay


def main() -> None:
    topic = new_topic("events", 1)
    start = datetime.now(UTC)
    begin_us = time.time_ns() // 1000
    with Producer(PROPERTIES) as producer:
        for n in range(1, 61):
            # One event each minute, from now on.
            at_us = begin_us + n * 60_000_000
            event = Event("/taskq/shop/web/1", n, "task.sent", at_us, {"task_id": f"t{n}"})
            producer.send(topic, json.dumps(to_cloudevent(event)).encode(), key="all")

    span = replay(
        PROPERTIES,
        topic,
        since=start - timedelta(minutes=1),
        until=start + timedelta(minutes=10, seconds=30),
    )
    numbers = [event.sequence for event in span]
    print("the first ten minutes:", numbers)
    assert numbers == list(range(1, 11))

    got: list[int] = []
    consumer = EventConsumer(PROPERTIES, topic, [topic])
    consumer.run(lambda event: got.append(event.sequence), until=lambda: len(got) >= 60)
    consumer.pause()
    consumer.forget()
    consumer.seek(topic, 0, 50)
    turns = iter(range(5))
    consumer.run(lambda event: got.append(-1), until=lambda: next(turns, None) is None)
    assert len(got) == 60, "paused"
    consumer.resume()
    consumer.run(lambda event: got.append(event.sequence), until=lambda: len(got) >= 70)
    consumer.close()
    print("again from offset 50:", got[60:])
    assert got[60:] == list(range(51, 61))


if __name__ == "__main__":
    main()
