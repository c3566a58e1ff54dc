"""What every broker promises about deliveries, shown on RabbitMQ, SQLite and memory."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from broker_helpers import depth, give_back, ids, ready, send, settle, wait_ready
from embedded_helpers import consuming, outgoing
from processes import wait_for

from taskq import clock
from taskq.brokers.base import Broker, Outgoing
from taskq.message import Message

TESTS = Path(__file__).parents[1]
BrokerFactory = Callable[..., Broker]


def test_a_message_arrives_as_it_was_sent(broker: Broker) -> None:
    """Everything that steers a task must survive the way."""
    headers = {
        "retries": 2,
        "taskq-due": 1_700_000_000_000,
        "timelimit": [30, None],
        "custom": {"text": "é", "flag": True, "data": b"\x00\xff", "none": None, "big": 2**62},
    }
    message = Message(
        "t.run", "the-id", b"\x00body\xff", headers, "application/json", "utf-8", 4, "other", "back"
    )
    send(broker, Outgoing("q", message))

    with consuming(broker, ["q"]) as hub:
        (delivery,) = hub.wait_for(1)

    assert delivery.message == message
    assert delivery.queue == "q"
    assert delivery.error is None
    assert not delivery.redelivered
    assert delivery.deliveries == 0


def test_priority_is_zero_by_default_and_kept(broker: Broker) -> None:
    """Celery sends 0 always; a missing one means the same."""
    send(broker, outgoing(), outgoing(priority=9))

    with consuming(broker, ["q"]) as hub:
        got = hub.wait_for(2)

    assert sorted(delivery.message.priority for delivery in got) == [0, 9]


def test_each_message_goes_to_one_of_two_consumers(broker: Broker) -> None:
    """Two workers share a queue; neither runs what the other has."""
    sent = [outgoing() for _ in range(40)]

    with consuming(broker, ["q"], 20) as one, consuming(broker, ["q"], 20) as other:
        wait_for(lambda: bool(one.connections and other.connections), 15, "both consumers")
        send(broker, *sent)
        wait_for(lambda: len(one.got) + len(other.got) >= 40, 15, "40 deliveries")
        settle(one, *one.got)
        settle(other, *other.got)

        assert sorted(ids(one.got) + ids(other.got)) == sorted(o.message.id for o in sent)

    assert ready(broker) == 0


def test_messages_of_one_queue_keep_their_order(broker: Broker) -> None:
    """Equal priority, nothing returned: first in, first out."""
    sent = [outgoing() for _ in range(300)]
    send(broker, *sent)

    with consuming(broker, ["q"], 1000) as hub:
        hub.wait_for(300)

        assert ids(hub.got) == [one.message.id for one in sent]


def test_an_acknowledgement_is_final(broker: Broker) -> None:
    """A task that is done must not come back with the next worker."""
    send(broker, *[outgoing() for _ in range(5)])
    with consuming(broker, ["q"]) as hub:
        got = hub.wait_for(5)
        settle(hub, *got[:1], *got[2:4])

    with consuming(broker, ["q"]) as second:
        back = second.wait_for(2)

        assert sorted(ids(back)) == sorted([got[1].message.id, got[4].message.id])
        settle(second, *back)

    assert ready(broker) == 0


def test_what_is_unsettled_comes_back_after_a_close(broker: Broker) -> None:
    """A worker that stops gives back what it has not finished."""
    sent = [outgoing() for _ in range(10)]
    send(broker, *sent)
    with consuming(broker, ["q"]) as hub:
        hub.wait_for(10)

    with consuming(broker, ["q"]) as second:
        assert sorted(ids(second.wait_for(10))) == sorted(one.message.id for one in sent)


HOLDER = """
import sys
from embedded_helpers import consuming
from taskq.brokers import open_broker
from taskq.brokers.base import BrokerOptions
broker = open_broker(sys.argv[1], BrokerOptions(lease_s=1.0))
with consuming(broker, ["q"]) as hub:
    hub.wait_for(3)
    print("holding", flush=True)
    sys.stdin.readline()
"""


def test_what_is_unsettled_comes_back_after_a_kill(
    broker_url: str, broker_factory: BrokerFactory
) -> None:
    """SIGKILL leaves no time to give anything back: the broker must notice by itself."""
    if broker_url.startswith("memory"):
        # There is no other process that could be killed.
        return
    broker = broker_factory(lease_s=1.0)
    sent = [outgoing() for _ in range(3)]
    send(broker, *sent)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    pipe = subprocess.PIPE
    argv = [sys.executable, "-c", HOLDER, broker_url]
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True, env=env) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holding\n"
        holder.kill()

    with consuming(broker, ["q"]) as hub:
        got = hub.wait_for(3, 30)

        assert sorted(ids(got)) == sorted(one.message.id for one in sent)
        assert all(delivery.redelivered for delivery in got)
        settle(hub, *got)


def test_what_is_returned_is_delivered_again(broker: Broker) -> None:
    """Unstarted tasks of a busy worker go to a sibling at once."""
    send(broker, *[outgoing() for _ in range(4)])

    with consuming(broker, ["q"]) as hub:
        first = list(hub.wait_for(4))
        give_back(hub, *first[:2])
        hub.wait_for(6)

        assert sorted(ids(hub.got[4:])) == sorted(ids(first[:2]))
        settle(hub, *hub.got[2:])

    assert ready(broker) == 0


def test_settling_twice_is_harmless(broker: Broker) -> None:
    """A batch that failed half-way is settled again as a whole."""
    send(broker, *[outgoing() for _ in range(6)])

    with consuming(broker, ["q"]) as hub:
        got = list(hub.wait_for(6))
        for _ in range(3):
            settle(hub, *got[3:], *got[:2])
        give_back(hub, *got[:2])
        settle(hub, got[2])
        send(broker, outgoing())
        hub.wait_for(7)

        assert hub.losses == 0
        assert len(hub.got) == 7
        settle(hub, hub.got[6])

    assert ready(broker) == 0


def test_receipts_of_another_consumer_are_void(broker: Broker) -> None:
    """A worker that reconnected still holds receipts from before."""
    send(broker, outgoing())
    with consuming(broker, ["q"]) as hub:
        (old,) = hub.wait_for(1)

    with consuming(broker, ["q"]) as second:
        (again,) = list(second.wait_for(1))
        hub.consumer.settle([old.receipt])
        send(broker, outgoing())
        second.wait_for(2)
        assert again.message.id == old.message.id

    assert ready(broker) == 2


def test_settlements_from_many_threads_all_count(broker: Broker) -> None:
    """`settle` is the one method that is called off the loop."""
    send(broker, *[outgoing() for _ in range(400)])

    with consuming(broker, ["q"], 1000) as hub:
        got = list(hub.wait_for(400))
        threads = [
            threading.Thread(target=lambda part=got[n::4]: [settle(hub, d) for d in part])
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert ready(broker) == 0


def test_prefetch_is_a_bound(broker: Broker) -> None:
    """A worker never holds what it cannot start soon."""
    send(broker, *[outgoing() for _ in range(10)])

    with consuming(broker, ["q"], 3) as hub:
        hub.wait_for(3)
        wait_ready(broker, 7)
        assert len(hub.got) == 3

        settle(hub, hub.got[1])
        hub.wait_for(4)
        wait_ready(broker, 6)
        assert len(hub.got) == 4


def test_each_queue_gets_at_least_one(broker: Broker) -> None:
    """A queue without credit would starve behind a long task of another."""
    send(broker, *[outgoing(queue) for queue in ("a", "b", "c")])

    with consuming(broker, ["a", "b", "c"], 1) as hub:
        for number in range(3):
            settle(hub, hub.wait_for(number + 1)[number])

        assert {delivery.queue for delivery in hub.got} == {"a", "b", "c"}


def test_prefetch_can_grow_and_shrink(broker: Broker) -> None:
    """The automatic prefetch follows the measured run time."""
    send(broker, *[outgoing() for _ in range(30)])

    with consuming(broker, ["q"], 1) as hub:
        settle(hub, hub.wait_for(1)[0])
        hub.wait_for(2)
        hub.call(hub.consumer.resize, 10)
        hub.wait_for(10)
        wait_for(lambda: ready(broker) <= 20, 15, "more to be taken")
        hub.call(hub.consumer.resize, 2)
        settled = 1
        while len(hub.got) < 30:
            settle(hub, hub.got[settled])
            settled += 1
            seen = settled
            wait_for(lambda seen=seen: len(hub.got) > seen, 15, "the next delivery")
        settle(hub, *hub.got)

        assert len(set(ids(hub.got))) == 30
        assert hub.losses == 0

    assert ready(broker) == 0


def test_a_paused_consumer_takes_nothing_and_can_settle(broker: Broker) -> None:
    """Consuming pauses while results cannot be stored, and goes on by itself."""
    send(broker, outgoing())

    with consuming(broker, ["q"], 5) as hub:
        hub.wait_for(1)
        hub.call(hub.consumer.pause)
        settle(hub, hub.got[0])
        if broker.url.startswith("amqp"):
            # The pause is over the wire, and RabbitMQ counts consumers with unsettled messages.
            wait_for(lambda: depth(broker).consumers == 0, 15, "the pause")
        send(broker, *[outgoing() for _ in range(3)])
        wait_ready(broker, 3)
        assert len(hub.got) == 1

        hub.call(hub.consumer.resume)
        hub.wait_for(4)
        settle(hub, *hub.got)

    assert ready(broker) == 0


def test_the_brokers_own_headers_are_not_sent_on(broker: Broker) -> None:
    """A delayed message has been dead-lettered inside RabbitMQ; a retry must not carry that."""
    send(broker, outgoing(due_ms=clock.now_ms() + 250))

    with consuming(broker, ["q"]) as hub:
        (delivery,) = hub.wait_for(1)
        send(broker, replace(outgoing(), message=delivery.message))
        settle(hub, delivery)
        again = hub.wait_for(2)[1]

    assert delivery.message.headers == again.message.headers == {}
    assert again.message == delivery.message


def test_a_queue_that_is_held_back_gives_nothing_and_the_others_go_on(broker: Broker) -> None:
    """A paused queue must not stop its neighbours, and loses nothing."""
    with consuming(broker, ["q", "other"]) as hub:
        wait_for(lambda: bool(hub.connections), 15, "a consumer")
        hub.call(hub.consumer.hold, ["q"])
        wait_for(lambda: depth(broker).consumers == (0 if is_amqp(broker) else 1), 15, "the hold")
        held_back = [outgoing() for _ in range(3)]
        send(broker, *held_back, outgoing("other"))
        hub.wait_for(1)
        send(broker, outgoing("other"))
        hub.wait_for(2)

        assert {delivery.queue for delivery in hub.got} == {"other"}
        assert ready(broker) == 3

        hub.call(hub.consumer.pause)
        hub.call(hub.consumer.resume)
        send(broker, outgoing("other"))
        hub.wait_for(3)
        assert {delivery.queue for delivery in hub.got} == {"other"}, "a resume is not a release"

        hub.call(hub.consumer.hold, [])
        hub.wait_for(6)
        assert ids(hub.got[3:]) == [one.message.id for one in held_back]


def test_a_consumer_can_be_told_what_to_hold_back_before_it_starts(broker: Broker) -> None:
    """A worker that starts while a queue is paused takes nothing of it, not even for a moment."""
    send(broker, outgoing(), outgoing("other"))

    with consuming(broker, ["q", "other"], held_back=["q"]) as hub:
        hub.wait_for(1)
        send(broker, outgoing("other"))
        hub.wait_for(2)

        assert {delivery.queue for delivery in hub.got} == {"other"}
        assert ready(broker) == 1


def is_amqp(broker: Broker) -> bool:
    return broker.url.startswith("amqp")
