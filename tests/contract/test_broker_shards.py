"""Shards on every broker: one task at a time, in order; another number of them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from broker_helpers import give_back, ids, ready, send, settle
from embedded_helpers import Hub, consuming, outgoing
from processes import wait_for

from taskq.brokers.base import Broker, Outgoing
from taskq.brokers.shapes import shard_for, shard_name
from taskq.errors import ConfigError, ShardsChanged
from taskq.message import SHARD_KEY

BrokerFactory = Callable[..., Broker]
SHARD = shard_name("q", 2, 0)


def keyed(key: str, count: int = 2) -> Outgoing:
    """Return a message of a key, on its way to its shard."""
    one = outgoing(shard_for("q", key, count))
    return replace(one, message=one.message.with_headers(taskq_shard=key))


def test_one_task_of_a_shard_is_in_hand_at_a_time(broker: Broker) -> None:
    """However many workers there are, and however much each would take."""
    sent = [outgoing(SHARD) for _ in range(6)]

    with consuming(broker, [SHARD], 100) as one, consuming(broker, [SHARD], 100) as other:
        wait_for(lambda: bool(one.connections and other.connections), 30, "both consumers")
        send(broker, *sent)
        done: list[str] = []
        for count in range(1, 7):
            wait_for(lambda n=count: len(one.got) + len(other.got) >= n, 30, f"task {count}")
            assert len(one.got) + len(other.got) == count
            hub = one if len(one.got) > sum(i in ids(one.got) for i in done) else other
            done.append(hub.got[-1].message.id)
            settle(hub, hub.got[-1])

    assert done == [one.message.id for one in sent]
    assert ready(broker, SHARD) == 0


def test_a_shard_keeps_its_order_when_its_worker_goes(broker: Broker) -> None:
    """What the first one had is the first that the next one gets, and nothing overtakes it."""
    sent = [outgoing(SHARD) for _ in range(4)]

    with consuming(broker, [SHARD]) as first:
        send(broker, *sent)
        first.wait_for(1, 30)
        with consuming(broker, [SHARD]) as second:
            wait_for(lambda: bool(second.connections), 30, "the second consumer")
            first.close()
            for count in range(1, 5):
                second.wait_for(count, 30)
                settle(second, second.got[count - 1])

            assert ids(second.got) == [one.message.id for one in sent]
            assert second.got[0].message.id == first.got[0].message.id


def test_what_is_given_back_comes_first_again(broker: Broker) -> None:
    """A worker that stops before a task started must not let the next one overtake it."""
    sent = [outgoing(SHARD) for _ in range(3)]

    with consuming(broker, [SHARD]) as hub:
        send(broker, *sent)
        hub.wait_for(1, 30)
        give_back(hub, hub.got[0])
        hub.wait_for(2, 30)
        settle(hub, hub.got[1])
        hub.wait_for(3, 30)

        assert ids(hub.got) == [sent[0].message.id, sent[0].message.id, sent[1].message.id]


def test_a_shard_that_is_held_back_goes_on_in_order(broker: Broker) -> None:
    """A pause lets the task in hand end, and takes nothing else."""
    sent = [outgoing(SHARD) for _ in range(3)]
    with consuming(broker, [SHARD, "other"]) as hub:
        send(broker, *sent)
        hub.wait_for(1, 30)
        hub.call(hub.consumer.hold, [SHARD])
        settle(hub, hub.got[0])
        send(broker, outgoing("other"))
        wait_for(lambda: got_other(hub), 30, "a delivery of the other queue")
        assert len(mine(hub)) == 1
        hub.call(hub.consumer.hold, [])
        for count in (2, 3):
            wait_for(lambda n=count: len(mine(hub)) == n, 30, f"task {count}")
            settle(hub, mine(hub)[-1])

        assert ids(mine(hub)) == [one.message.id for one in sent]


def mine(hub: Hub) -> list[Any]:
    return [delivery for delivery in hub.got if delivery.queue == SHARD]


def got_other(hub: Hub) -> bool:
    return any(delivery.queue == "other" for delivery in hub.got)


def test_another_number_of_shards_is_refused(broker_factory: BrokerFactory) -> None:
    """Two layouts at once would run equal keys side by side; nothing is lost meanwhile."""
    send(broker_factory(), keyed("a"))
    other = broker_factory()

    (error,) = other.publish([keyed("a", 3)], 20)

    assert error is not None
    assert "has 2 shards" in str(error)
    assert "taskq queues reshard q" in str(error)
    hub = Hub()
    hub.consumer = other.consumer([shard_name("q", 3, 1)], 1, hub, hub.loop)
    hub.call(hub.consumer.start)
    wait_for(lambda: bool(hub.errors), 30, "the refusal")
    assert isinstance(hub.errors[0], ShardsChanged)
    hub.end()
    assert sum(ready(other, shard_name("q", 2, n)) for n in (0, 1)) == 1


def test_a_reshard_moves_everything_in_order(broker_factory: BrokerFactory) -> None:
    """Equal keys keep their order, and a second run finds nothing to do."""
    sent = [keyed(str(number % 10)) for number in range(60)]
    broker = broker_factory()
    send(broker, *sent)

    assert broker.reshard("q", 5) == 60
    assert broker.reshard("q", 5) == 0

    fresh = broker_factory()
    names = [shard_name("q", 5, index) for index in range(5)]
    assert sum(ready(fresh, name) for name in names) == 60
    send(fresh, keyed("3", 5))
    with consuming(fresh, names) as hub:
        settled = 0
        while settled < 61:
            hub.wait_for(settled + 1, 30)
            # What arrives between these lines belongs to the next round.
            batch = hub.got[settled:]
            settle(hub, *batch)
            settled += len(batch)
    for key in map(str, range(10)):
        got = [d.message.id for d in hub.got if d.message.headers[SHARD_KEY] == key]
        wanted = [one.message.id for one in sent if one.message.headers[SHARD_KEY] == key]
        assert got[: len(wanted)] == wanted
        assert {d.queue for d in hub.got if d.message.headers[SHARD_KEY] == key} == {
            shard_for("q", key, 5)
        }


def test_a_reshard_waits_for_nobody(broker: Broker) -> None:
    """A worker that holds a task of an old shard is told about, and nothing is moved."""
    send(broker, keyed("a"), keyed("b"))
    names = [shard_name("q", 2, index) for index in range(2)]
    with consuming(broker, names) as hub:
        hub.wait_for(1, 30)

        with pytest.raises(ConfigError, match="stop them"):
            broker.reshard("q", 5)
