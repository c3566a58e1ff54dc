"""Hybrid bus: commands are tasks on the broker, events go to Kafka; one call each.

Both are confirmed by the broker; the bridge carries events on, whether Kafka is there or not now.

KAFKA_BOOTSTRAP=localhost:9092 python examples/patterns/hybrid_bus.py
"""

import threading

from _kafka import PROPERTIES, new_topic

from taskq import TaskQ
from taskq.events import Event
from taskq.events.kafka import EventConsumer
from taskq.events.kafka.service import BridgeSettings, Service
from taskq.events.kafka.topics import Topics
from taskq.testing import running_worker

app = TaskQ("shop", broker="memory://", results="memory://")
topic = new_topic("orders")


@app.task(name="place_order")
def place_order(number: int) -> str:
    app.publish("order.placed", {"id": number}, to=f"kafka:{topic}", record_key=str(number))
    return f"order {number} placed"


def main() -> None:
    with running_worker(app):
        handles = [place_order.delay(number) for number in range(5)]
        for handle in handles:
            print(handle.get(timeout=60))

    # In production: taskq bridge kafka -A shop:app --bootstrap localhost:9092 --create-topics
    own = Topics(f"{topic}-tasks", f"{topic}-workers", messages=f"{topic}-messages")
    settings = BridgeSettings(PROPERTIES, own, create_topics=True, partitions=1, replication=1)
    bridge = Service(app.broker, settings)
    thread = threading.Thread(target=bridge.run)
    thread.start()
    events: list[Event] = []
    consumer = EventConsumer(PROPERTIES, topic, [topic])
    consumer.run(events.append, until=lambda: len(events) >= 5)
    consumer.close()
    bridge.stop()
    thread.join()

    for event in events:
        print(event.data["key"], event.data["payload"])
    assert sorted(event.data["payload"]["id"] for event in events) == list(range(5))


if __name__ == "__main__":
    with app:
        main()
