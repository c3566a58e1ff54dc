"""Retry topics: what fails waits there, longer each time, and at last is a dead letter.

KAFKA_BOOTSTRAP=localhost:9092 python examples/patterns/kafka_retry_topics.py
"""

import time

from _kafka import PROPERTIES, new_topic

from taskq.events.kafka import Producer, Record, RecordConsumer, RetryTopics

BEGIN_S = time.monotonic()


def main() -> None:
    topic = new_topic("orders", 1)
    with Producer(PROPERTIES) as producer:
        for name in ("poison", "shaky", "good"):
            producer.send(topic, name.encode(), key=name)
    story: list[tuple[str, int]] = []
    letters: list[Record] = []

    def handler(record: Record) -> None:
        name = record.value.decode()
        print(f"{time.monotonic() - BEGIN_S:4.1f} s  {name}, attempt {record.attempts + 1}")
        story.append((name, record.attempts + 1))
        if name == "poison" or (name == "shaky" and record.attempts == 0):
            raise ConnectionError("no answer")

    consumer = RecordConsumer(PROPERTIES, "shop", [topic], retries=RetryTopics([0.5, 1.5]))
    consumer.run(handler, until=lambda: consumer.dead == 1)
    consumer.close()
    dead = RecordConsumer(PROPERTIES, "undertaker", [f"{topic}.dead"])
    dead.run(letters.append, until=lambda: bool(letters))
    dead.close()

    print("dead letter:", letters[0].key, dict(letters[0].headers))
    # `good` did not wait for what was in front of it.
    assert story[:3] == [("poison", 1), ("shaky", 1), ("good", 1)]
    assert sorted(story[3:]) == [("poison", 2), ("poison", 3), ("shaky", 2)]
    assert letters[0].headers["taskq-attempts"] == "3"
    assert letters[0].headers["taskq-error"] == "ConnectionError: no answer"


if __name__ == "__main__":
    main()
