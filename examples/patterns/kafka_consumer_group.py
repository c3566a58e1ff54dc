"""Consumer group: an offset is committed after the work; who fails in the middle loses nothing.

KAFKA_BOOTSTRAP=localhost:9092 python examples/patterns/kafka_consumer_group.py
"""

import json

from _kafka import PROPERTIES, new_topic

from taskq.events import Event, to_cloudevent
from taskq.events.kafka import EventConsumer, Producer


def main() -> None:
    topic = new_topic("events")
    events = [
        Event("/taskq/shop/web/1", n, "task.sent", n, {"task_id": f"t{n % 5}"})
        for n in range(1, 101)
    ]
    with Producer(PROPERTIES) as producer:
        # The last ones twice, as a bridge that was killed sends them.
        for event in [*events, *events[80:]]:
            producer.send(topic, json.dumps(to_cloudevent(event)).encode(), key=event.task_id)
    counted: set[int] = set()

    def fragile(event: Event) -> None:
        if len(counted) == 30:
            raise OSError("the database is away")
        counted.add(event.sequence)

    first = EventConsumer(PROPERTIES, topic, [topic])
    try:
        first.run(fragile)
    except OSError as error:
        print("the first member ends:", error)
    first.close()

    second = EventConsumer(PROPERTIES, topic, [topic])
    second.run(lambda event: counted.add(event.sequence), until=lambda: len(counted) == 100)
    second.close()
    print(f"the first took {first.handled}, the second {second.handled}")
    assert first.handled + second.handled == 100


if __name__ == "__main__":
    main()
