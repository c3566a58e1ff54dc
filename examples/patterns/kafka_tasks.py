"""Tasks from a topic: each record becomes a task; a record that comes again does not run again.

KAFKA_BOOTSTRAP=localhost:9092 python examples/patterns/kafka_tasks.py
"""

import json
import threading
import time
from typing import Any

from _kafka import PROPERTIES, new_topic

from taskq import TaskQ
from taskq.events.kafka import Producer
from taskq.intake import IntakeService
from taskq.testing import running_worker

app = TaskQ("shop", broker="memory://", results="memory://")
topic = new_topic("orders")
paid: list[str] = []


# What an order is, is its number: the second record of an order is a duplicate.
@app.on_kafka(topic, group=f"{topic}-shop", idempotency_key="order['id']", bind=True, name="pay")
def pay(self: Any, order: dict[str, str]) -> None:
    paid.append(order["id"])
    print(order["id"], "from offset", self.request.headers["kafka-offset"])


def main() -> None:
    with Producer(PROPERTIES) as producer:
        for number in [*range(10), *range(5)]:
            value = json.dumps({"id": f"order-{number}"}).encode()
            producer.send(topic, value, key=f"order-{number}")

    # In production: taskq bridge from-kafka -A shop:app --bootstrap localhost:9092
    service = IntakeService(app, PROPERTIES, (), 0)
    thread = threading.Thread(target=service.run)
    with running_worker(app):
        thread.start()
        while "taskq_intake_sent_total 15" not in service.metrics():
            time.sleep(0.05)
        service.stop()
        thread.join()
        while (depth := app.broker.depths(["default"])["default"]) and depth.ready:
            time.sleep(0.05)
    assert sorted(paid) == sorted(f"order-{number}" for number in range(10)), paid


if __name__ == "__main__":
    with app:
        main()
