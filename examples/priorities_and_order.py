"""What goes first, what goes in order, what goes not at all: priorities, shards, pauses, deadlines.

python examples/priorities_and_order.py
"""

import time
from itertools import pairwise

from taskq import Queue, TaskExpired, TaskQ

CUSTOMERS = [f"customer-{number}" for number in range(6)]
STEPS = ["reserve", "charge", "ship", "thank"]

app = TaskQ(
    "priorities",
    routes=[("alert.*", {"priority": 9})],
    # One task of a customer at a time, in the order of the sends, on any number of workers.
    queues=[Queue("orders", shards=4, shard_key="args[0]")],
)


@app.task(name="report")
def report() -> float:
    time.sleep(0.05)
    return time.time()


@app.task(name="alert.page")
def page() -> float:
    return time.time()


@app.task(name="order.step", queue="orders")
def step(customer: str, what: str) -> tuple[float, float]:
    began = time.time()
    time.sleep(0.02)
    return began, time.time()


def main() -> None:
    # Nothing of the queue starts until it is resumed, on any worker, also one that starts later.
    app.pauses.pause_queue("default", why="showing priorities", for_s=120)
    reports = app.send_many([report.s() for _ in range(30)])
    alerts = app.send_many([page.s() for _ in range(5)])
    hurried = report.apply_async(deadline=0.5)
    time.sleep(0.6)
    print("paused:   ", [pause.name for pause in app.pauses.list()])
    app.pauses.resume_queue("default")

    # Sent last, with a priority that the route gave them, and started first.
    last_alert = max(alert.get(timeout=60) for alert in alerts)
    earlier = sum(result.get(timeout=60) - 0.05 < last_alert for result in reports)
    print(f"priority: {earlier} of 30 reports began before the last of 5 alerts")
    assert earlier <= 15, "urgent tasks waited for the others"

    # It could not start before its deadline, so it does not start at all.
    try:
        hurried.get(timeout=60)
    except TaskExpired as error:
        print("deadline: ", error)
    else:
        raise AssertionError("a task ran after its deadline")

    orders = {
        customer: app.send_many([step.s(customer, what) for what in STEPS])
        for customer in CUSTOMERS
    }
    for results in orders.values():
        runs = [result.get(timeout=60) for result in results]
        for (_, ended), (began, _) in pairwise(runs):
            assert began >= ended - 0.001, "a step began before the one before had ended"
    print(f"order:    {len(STEPS)} steps of {len(CUSTOMERS)} customers, each in its order")


if __name__ == "__main__":
    from _worker import worker_beside

    with worker_beside(__file__), app:
        main()
