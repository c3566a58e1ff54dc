"""Order per key under several workers, of which one is killed; and another number of shards."""

import signal

from fleet import Fleet, until

from taskq import Queue, TaskQ
from taskq.result import AsyncResult


def client(fleet: Fleet, shards: int) -> TaskQ:
    """Return an app as a sender has it."""
    queue = Queue("orders", shards=shards, shard_key="args[0]")
    return TaskQ("client", broker=fleet.broker, results=fleet.results, queues=[queue])


def send_steps(app: TaskQ, keys: int, steps: range) -> list[AsyncResult[object]]:
    """Send the steps of every key, one key's after the other's."""
    with app.batch():
        return [
            app.send_task("step", (f"k{key}", number), queue="orders")
            for number in steps
            for key in range(keys)
        ]


def assert_in_order(fleet: Fleet, keys: int, steps: int) -> None:
    """Each key's runs are its steps in order; one that ran twice did so at its place."""
    runs = sorted(fleet.runs(), key=lambda run: run.at_s)
    for key in range(keys):
        told = [run.word.split(":") for run in runs]
        numbers = [int(number) for name, number in told if name == f"k{key}"]
        assert sorted(set(numbers)) == list(range(steps)), f"k{key}: {numbers}"
        assert numbers == sorted(numbers), f"k{key}: {numbers}"


def test_each_key_keeps_its_order_though_a_worker_is_killed(fleet: Fleet) -> None:
    """The next worker goes on with what the dead one had, before anything behind it."""
    workers = [fleet.start(app="shard_app:app", slots=3) for _ in range(2)]
    with client(fleet, 4) as app:
        handles = send_steps(app, 8, range(10))
        fleet.until_runs(10, timeout_s=40)

        workers[0].signal(signal.SIGKILL)
        fleet.until_runs(30, timeout_s=60)
        third = fleet.start(app="shard_app:app", slots=3)
        # A deploy: the worker hands its shards over while it works.
        workers[1].term(60)

        fleet.settled(handles, 90)
    assert_in_order(fleet, 8, 10)
    assert third.process.poll() is None


def test_another_number_of_shards_is_an_error_until_it_is_moved(fleet: Fleet) -> None:
    """A worker with the new number refuses to start and says what to do; then all goes on."""
    with client(fleet, 4) as app:
        handles = send_steps(app, 6, range(3))
    refused = fleet.start(app="shard_app:app", env={"SHARDS": "5"}, ready=False)
    assert refused.wait(60) == 78
    assert "taskq queues reshard orders" in refused.log()

    with client(fleet, 5) as app:
        assert app.broker.reshard("orders", 5) == 18
        handles += send_steps(app, 6, range(3, 6))
        # As another program would send it: to the queue's own name, with nothing about shards.
        foreign = fleet.send("step", "foreign", 0, queue="orders")
        fleet.start(app="shard_app:app", env={"SHARDS": "5"})

        fleet.settled([*handles, foreign], 90)
    assert_in_order(fleet, 6, 6)
    until(lambda: fleet.ready("orders") == 0, "an empty queue", 30)
