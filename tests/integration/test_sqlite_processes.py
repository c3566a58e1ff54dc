"""Several processes on one file: killed, stopped and forked ones."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from embedded_helpers import consuming, outgoing
from processes import wait_for

from taskq.brokers import open_broker
from taskq.brokers.base import Broker, BrokerOptions, QueueDepth
from taskq.embedded import liveness

TESTS = Path(__file__).parents[1]

CLAIMER = """
import sys
from embedded_helpers import consuming
from taskq.brokers import open_broker
from taskq.brokers.base import BrokerOptions
from taskq.embedded import liveness
url, count, lease_s, known = sys.argv[1:]
if known == "unknown":
    liveness._place = lambda: "another boot"
broker = open_broker(url, BrokerOptions(lease_s=float(lease_s)))
with consuming(broker, ["q"], int(count)) as hub:
    hub.wait_for(int(count))
    print("claimed", flush=True)
    sys.stdin.readline()
broker.close()
"""


@contextmanager
def claimer(
    url: str, count: int, lease_s: float, known: str = "known"
) -> Iterator["subprocess.Popen[str]"]:
    """Run a process that has claimed so many messages and keeps them."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    process = subprocess.Popen(
        [sys.executable, "-c", CLAIMER, url, str(count), str(lease_s), known],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "claimed\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/q.db"


@pytest.fixture
def broker(url: str) -> Iterator[Broker]:
    opened = open_broker(url, BrokerOptions(lease_s=1.0))
    yield opened
    opened.close()


def test_the_messages_of_a_killed_worker_come_back_at_once(url: str, broker: Broker) -> None:
    """Nobody waits for a lease of 30 s when the process is known to be dead."""
    broker.publish([outgoing() for _ in range(5)], 5.0)
    with claimer(url, 3, 3600.0) as process:
        process.kill()
        process.wait()
        began = time.monotonic()
        with consuming(broker, ["q"]) as hub:
            hub.wait_for(5)

    assert time.monotonic() - began < 10
    tries = sorted((d.deliveries, d.redelivered) for d in hub.got)
    assert tries == [(0, False)] * 2 + [(1, True)] * 3


def test_the_messages_of_a_silent_worker_come_back_after_its_lease(
    url: str, broker: Broker
) -> None:
    """Where the process cannot be seen (another container), the lease decides, and not before."""
    broker.publish([outgoing() for _ in range(3)], 5.0)
    with claimer(url, 3, 2.0, "unknown") as process, consuming(broker, ["q"]) as hub:
        wait_for(lambda: bool(hub.connections), 10, "the second worker")
        process.kill()
        process.wait()
        began = time.monotonic()
        hub.wait_for(3)
        took_s = time.monotonic() - began

    assert 1.0 < took_s < 10
    assert [delivery.deliveries for delivery in hub.got] == [1, 1, 1]


def test_a_stopped_worker_loses_its_messages_and_learns_it(url: str, broker: Broker) -> None:
    """A process that slept through its lease must not settle what is another's by now."""
    broker.publish([outgoing() for _ in range(3)], 5.0)
    with claimer(url, 3, 1.0) as process, consuming(broker, ["q"]) as hub:
        wait_for(lambda: bool(hub.connections), 10, "the second worker")
        process.send_signal(signal.SIGSTOP)
        hub.wait_for(3)
        process.send_signal(signal.SIGCONT)
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.wait(20) == 0
        assert broker.depths(["q"]) == {"q": QueueDepth(0, 3, 0, 1)}
        hub.consumer.settle([delivery.receipt for delivery in hub.got])

    assert broker.depths(["q"]) == {"q": QueueDepth(0, 0, 0, 0)}


def test_a_worker_that_lost_its_lease_forgets_its_deliveries(url: str, broker: Broker) -> None:
    """After `Sink.lost` its receipts are void, and it takes messages again."""
    broker.publish([outgoing() for _ in range(2)], 5.0)
    with consuming(broker, ["q"]) as hub:
        old = list(hub.wait_for(2))
        with broker._database.writing(5.0) as connection:  # type: ignore[attr-defined]
            connection.execute("UPDATE messages SET state = 0, owner = NULL, deliveries = 1")
            connection.execute("DELETE FROM consumers")
        new = hub.wait_for(4)[2:]
        assert {d.receipt for d in old}.isdisjoint(d.receipt for d in new)
        hub.consumer.settle([delivery.receipt for delivery in old])
        assert hub.losses == 1
        assert broker.depths(["q"]) == {"q": QueueDepth(0, 2, 0, 1)}
        hub.consumer.settle([delivery.receipt for delivery in new])

    assert broker.depths(["q"]) == {"q": QueueDepth(0, 0, 0, 0)}


def test_a_worker_far_from_the_end_of_its_lease_is_left_alone(url: str, broker: Broker) -> None:
    """A living worker keeps its messages for any number of leases."""
    broker.publish([outgoing() for _ in range(3)], 5.0)
    with claimer(url, 3, 1.0, "unknown"), consuming(broker, ["q"]) as hub:
        began = time.monotonic()
        wait_for(lambda: time.monotonic() - began > 3.5, 10, "three leases and a half")
        assert hub.got == []
        assert broker.depths(["q"]) == {"q": QueueDepth(0, 3, 0, 2)}


SENDER = """
import sys
from taskq.brokers import open_broker
from taskq.brokers.base import BrokerOptions, Outgoing
from taskq.body import encode_call
broker = open_broker(sys.argv[1], BrokerOptions())
for n in range(100):
    message = encode_call("t", f"{sys.argv[2]}-{n}", (), {})
    assert broker.publish([Outgoing("q", message)], 20.0) == [None]
broker.close()
"""


def test_processes_that_create_and_fill_a_file_together_lose_nothing(
    url: str, broker: Broker
) -> None:
    """All workers of a fleet may start at the same moment, on a file that is not there yet."""
    senders = [subprocess.Popen([sys.executable, "-c", SENDER, url, str(n)]) for n in range(4)]
    with consuming(broker, ["q"], 50) as one, consuming(broker, ["q"], 50) as two:
        deadline = time.monotonic() + 60
        seen: list[str] = []
        while len(seen) < 400 and time.monotonic() < deadline:
            for hub in (one, two):
                batch, hub.got[:] = list(hub.got), []
                seen += [delivery.message.id for delivery in batch]
                hub.consumer.settle([delivery.receipt for delivery in batch])
            time.sleep(0.01)
    assert [sender.wait(30) for sender in senders] == [0, 0, 0, 0]

    assert sorted(seen) == sorted(f"{p}-{n}" for p in range(4) for n in range(100))
    assert broker.depths(["q"]) == {"q": QueueDepth(0, 0, 0, 0)}


def test_this_process_is_alive_to_itself() -> None:
    """The tests above would pass for the wrong reason if nobody were ever alive."""
    assert not liveness.is_dead(liveness.this_process())
