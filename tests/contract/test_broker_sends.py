"""What every broker promises about sends, delays, depths and control."""

import asyncio
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from broker_helpers import ids, letters, ready, send, settle, wait_ready
from embedded_helpers import consuming, outgoing
from forks import in_child
from processes import wait_for

from taskq import clock
from taskq.brokers import open_broker
from taskq.brokers.base import DEAD_QUEUE, Broker, BrokerOptions, QueueDepth
from taskq.errors import ConfigError, PublishError

TESTS = Path(__file__).parents[1]
BrokerFactory = Callable[..., Broker]


def test_a_delay_is_neither_early_nor_late(broker: Broker) -> None:
    """A broker may be early by what its grid rounds off; the worker waits for the rest."""
    delays_ms = (150, 450, 900)
    due_ms = {}
    for delay_ms in delays_ms:
        one = outgoing(due_ms=clock.now_ms() + delay_ms)
        due_ms[one.message.id] = one.due_ms
        send(broker, one)
    arrived = {}

    with consuming(broker, ["q"]) as hub:
        while len(arrived) < len(delays_ms):
            for delivery in hub.wait_for(len(arrived) + 1):
                arrived.setdefault(delivery.message.id, clock.now_ms())

    for task_id, moment_ms in arrived.items():
        assert -150 <= moment_ms - due_ms[task_id] < 2500


def test_a_delayed_message_is_not_ready(broker: Broker) -> None:
    """Depth counts what a worker could take now."""
    send(broker, outgoing(due_ms=clock.now_ms() + 60_000), outgoing())

    wait_ready(broker, 1)

    assert broker.due_within(0.01) == 0
    wait_for(lambda: broker.due_within(61) == 1, 10, "one delayed message")


def test_a_moment_that_has_passed_is_now(broker: Broker) -> None:
    """`eta` in the past, and clocks that differ."""
    send(broker, outgoing(due_ms=1), outgoing(due_ms=clock.now_ms() + 5))

    with consuming(broker, ["q"]) as hub:
        hub.wait_for(2)


def test_depth_is_none_for_a_missing_queue(broker: Broker) -> None:
    """`queues ls` must tell an empty queue from one that nobody made."""
    send(broker, outgoing("here"))

    depths = broker.depths(["here", "nowhere", DEAD_QUEUE])

    assert depths["nowhere"] is None
    assert isinstance(depths["here"], QueueDepth)
    assert depths["here"].ready == 1
    assert depths[DEAD_QUEUE] is not None


def test_declared_queues_exist(broker: Broker) -> None:
    """A worker that starts first makes the queues that clients look for."""
    broker.declare(["one", "two"])

    assert broker.depths(["one", "two"]).values() != [None, None]
    assert ready(broker, "one") == 0


def test_a_purge_takes_what_is_ready_and_nothing_else(broker: Broker) -> None:
    """Tasks that run are not purged under their workers' hands."""
    send(broker, *[outgoing() for _ in range(5)], outgoing("other"))
    with consuming(broker, ["q"], 2) as hub:
        hub.wait_for(2)
        wait_ready(broker, 3)

        assert broker.purge("q") == 3
        assert ready(broker, "other") == 1

    wait_ready(broker, 2)


def test_a_missing_queue_cannot_be_purged(broker: Broker) -> None:
    """A misspelt name must not look like an empty queue."""
    with pytest.raises(ConfigError, match="no-such-queue"):
        broker.purge("no-such-queue")


def test_control_requests_are_answered_by_every_consumer(broker: Broker) -> None:
    """`taskq inspect` asks all workers at once."""
    with consuming(broker, ["q"]) as one, consuming(broker, ["q"]) as other:
        wait_for(lambda: bool(one.connections and other.connections), 15, "both consumers")

        answers = broker.ask({"command": "ping", "n": 1}, 1.0)
        silent = broker.ask({"command": "hush"}, 0.3)

    assert answers == [{"echo": "ping"}] * 2
    assert silent == []


def test_nobody_answers_where_nobody_listens(broker: Broker) -> None:
    """`taskq inspect` before the first worker: an empty list, no error."""
    assert broker.ask({"command": "ping"}, 0.2) == []


def test_ten_thousand_messages_in_a_pipeline(broker: Broker) -> None:
    """`send_many`: confirms are waited for together; each message arrives once."""
    sent = [outgoing() for _ in range(10_000)]
    seen: list[str] = []

    underway = [broker.submit(sent[at : at + 1000], 60) for at in range(0, 10_000, 1000)]
    errors = [error for publishing in underway for error in publishing.wait()]
    assert errors == [None] * 10_000
    with consuming(broker, ["q"], 500) as hub:
        while len(seen) < 10_000:
            got = hub.wait_for(len(seen) + 1, 60)
            fresh = got[len(seen) :]
            seen += ids(fresh)
            settle(hub, *fresh)

    assert seen == [one.message.id for one in sent]
    assert ready(broker) == 0


def test_a_send_can_be_awaited(broker: Broker) -> None:
    """`adelay` must not block the caller's loop."""

    async def run() -> list[PublishError | None]:
        return await broker.submit([outgoing(), outgoing()], 10).wait_async()

    assert asyncio.run(run()) == [None, None]
    assert ready(broker) == 2


def test_an_empty_batch_is_done_at_once(broker: Broker) -> None:
    """`send_many([])`."""
    assert broker.publish([], 10) == []


def test_a_prefix_separates_two_applications(broker_factory: BrokerFactory) -> None:
    """Two environments on one server share neither queues nor dead letters."""
    blue, green = broker_factory(prefix="blue."), broker_factory(prefix="green.")
    send(blue, outgoing(), outgoing(due_ms=clock.now_ms() + 200))
    letters(blue, 1)

    assert ready(green) == 0
    assert green.sweep_dead(lambda letter: "keep") == 0
    with consuming(blue, ["q"]) as hub:
        got = hub.wait_for(2)
        assert {delivery.queue for delivery in got} == {"q"}


def test_a_forked_child_sends_with_connections_of_its_own(broker: Broker) -> None:
    """Frames of two processes in one socket would break both."""
    send(broker, outgoing())
    if broker.url.startswith("memory"):
        # A child has a memory of its own.
        return

    in_child(lambda: send(broker, *[outgoing() for _ in range(20)]))
    send(broker, *[outgoing() for _ in range(20)])

    assert ready(broker) == 41


def test_closing_twice_is_harmless(broker_url: str) -> None:
    """Exit handlers and context managers both close."""
    broker = open_broker(broker_url, BrokerOptions())
    send(broker, outgoing())

    broker.close()
    broker.close()


def test_closing_a_consumer_twice_is_harmless(broker: Broker) -> None:
    """The hub closes it in order, and again when it unwinds."""
    with consuming(broker, ["q"]) as hub:
        wait_for(lambda: bool(hub.connections), 15, "the consumer")
        hub.close()


def test_the_doctor_finds_nothing_wrong(broker: Broker) -> None:
    """Every check that fails here would be a false alarm for everyone."""
    broker.declare(["q"])

    checks = broker.checks(["q"])

    assert checks
    assert [check for check in checks if check.status != "ok"] == []


def test_only_looking_creates_no_queue(broker_factory: BrokerFactory) -> None:
    """`declare='passive'` for a vhost whose objects an operator makes."""
    passive = broker_factory(declare="passive")

    (error,) = passive.publish([outgoing()], 5)

    assert isinstance(error, PublishError)
    assert error.reason == "unroutable"
    assert broker_factory().depths(["q"])["q"] is None


@pytest.mark.parametrize("name", ["", "a b", "a/b", "x" * 201, "\u00fcml\u00e4ut"])
def test_a_worker_of_a_queue_that_cannot_be_is_refused(broker: Broker, name: str) -> None:
    """`-Q 'mail, bulk'` would wait for ever on a queue that nobody can send to."""
    with pytest.raises(ConfigError, match="queue name"):
        broker.declare([name])
    with pytest.raises(ConfigError, match="queue name"), closing(asyncio.new_event_loop()) as loop:
        broker.consumer([name], 1, None, loop)  # type: ignore[arg-type]


def test_a_prefix_that_cannot_begin_a_name_is_refused(broker_factory: BrokerFactory) -> None:
    """Every queue of the app would be one that cannot be."""
    for prefix in ("a b", "a/", "x" * 51):
        with pytest.raises(ConfigError, match="prefix"):
            broker_factory(prefix=prefix)
