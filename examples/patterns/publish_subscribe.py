"""Publish and subscribe: everybody who asked gets a message, also who was away; a broadcast.

python examples/patterns/publish_subscribe.py
"""

import threading

from taskq import TaskQ
from taskq.testing import running_worker

app = TaskQ("shop", broker="memory://", results="memory://")
got: list[str] = []
all_there = threading.Event()


def note(line: str) -> None:
    got.append(line)
    if len(got) == 7:
        all_there.set()


# Durable by name: what is published while no worker runs waits in the subscription's queue.
@app.subscribe("orders.*", name="billing")
def bill(order: dict[str, int]) -> None:
    note(f"billing {order['id']}")


@app.subscribe("orders.*", name="shipping")
def ship(order: dict[str, int]) -> None:
    note(f"shipping {order['id']}")


# Each worker that is alive gets its own copy.
@app.subscribe("settings.changed", name="reload", broadcast=True)
def reload_settings(name: str) -> None:
    note(f"reload {name}")


def main() -> None:
    for number in range(3):
        app.publish("orders.created", {"id": number})
    print("published three orders, no worker runs yet")

    with running_worker(app):
        while not app.broker.ask({"command": "ping"}, 1.0):
            pass
        app.publish("settings.changed", "currency")
        assert all_there.wait(60), got

    for line in sorted(got):
        print(line)
    wanted = [f"{name} {number}" for name in ("billing", "shipping") for number in range(3)]
    assert sorted(got) == sorted([*wanted, "reload currency"])


if __name__ == "__main__":
    with app:
        main()
