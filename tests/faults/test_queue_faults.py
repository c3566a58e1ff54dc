"""Queues that are deleted, purged, or declared otherwise, and tasks that outlast a timeout."""

import re
from pathlib import Path
from typing import Any

import pika
import pytest
from conftest import LONG
from fleet import POOLS, Fleet, until
from servers import RabbitServer


def admin(fleet: Fleet) -> Any:
    """Return a channel of another program's."""
    return pika.BlockingConnection(pika.URLParameters(fleet.broker)).channel()


def test_a_task_longer_than_the_brokers_patience_runs_once(
    node_fleet: Fleet, node: RabbitServer
) -> None:
    """`consumer_timeout` closes the channel and delivers again what is running here."""
    node.eval("application:set_env(rabbit, consumer_timeout, 2000)")
    node.eval("application:set_env(rabbit, channel_tick_interval, 500)")
    worker = node_fleet.start(slots=2)

    handle = node_fleet.send("nap", 8.0, "once")

    assert handle.get(timeout=60) == "once"
    # It is the timeout that was tested, and others are served after it.
    assert "not consuming why=" in worker.log()
    assert node_fleet.send("add", 1, 2).get(timeout=60) == 3
    until(lambda: node_fleet.ready() == 0, "an empty queue", 60)
    assert len(node_fleet.runs(handle.id)) == 1
    assert worker.term(60) == 0


def test_a_queue_deleted_or_purged_underneath_is_used_on(vhost_fleet: Fleet) -> None:
    """What was in it is gone by somebody's order; worker and senders go on by themselves."""
    worker = vhost_fleet.start(slots=2)
    assert vhost_fleet.send("add", 1, 2).get(timeout=30) == 3
    channel = admin(vhost_fleet)

    channel.queue_delete("default")
    # RabbitMQ itself may lose what is sent to a quorum queue while it is deleted and made again.
    worker.until_log("consuming queues=", count=2, timeout_s=60)
    assert vhost_fleet.send("add", 2, 2).get(timeout=60) == 4

    vhost_fleet.send_many("nap", 50, 0.2)
    channel.queue_purge("default")
    assert vhost_fleet.send("add", 3, 2).get(timeout=60) == 5
    assert worker.process.poll() is None
    assert "Traceback" not in worker.log()
    channel.connection.close()


def test_a_taskq_queue_declared_otherwise_ends_the_worker_with_78(vhost_fleet: Fleet) -> None:
    """A readable difference, once, instead of a crash loop."""
    channel = admin(vhost_fleet)
    channel.queue_declare("taskq.dead", durable=True, arguments={"x-max-length": 7})
    channel.connection.close()

    worker = vhost_fleet.start(ready=False)

    assert worker.wait(60) == 78
    assert re.search(r"taskq\.dead.*x-", worker.log())
    assert "Traceback" not in worker.log()


@pytest.mark.parametrize("pool", POOLS if LONG else POOLS[:2])
def test_heartbeats_go_on_under_a_task_that_holds_the_lock(
    rabbitmq_url: str, redis_url: str, tmp_path: Path, pool: str
) -> None:
    """User code runs in other processes than the hub; only `solo` shares the lock with it."""
    heartbeat = 60 if pool == "solo" else 1
    fleet = Fleet(tmp_path, f"{rabbitmq_url}?heartbeat={heartbeat}", redis_url)
    try:
        worker = fleet.start(pool=pool, slots=1)
        handle = fleet.send("hold_lock", 6.0)

        assert handle.get(timeout=90) == "done"
        assert len(fleet.runs(handle.id)) == 1
        assert "not consuming" not in worker.log()
    finally:
        fleet.close()
