"""Priorities on every broker: two queues on RabbitMQ, exact order in the embedded file."""

import asyncio
from typing import Any

import pytest
from broker_helpers import depth, give_back, ids, ready, send, settle, wait_ready
from embedded_helpers import Hub, consuming, outgoing
from processes import wait_for

from taskq import clock
from taskq.brokers.base import Broker
from taskq.brokers.shapes import QueueShape
from taskq.errors import ConfigError


def test_all_priorities_are_one_queue_to_its_users(broker: Broker) -> None:
    """Depth and purge count what is urgent and what is not; deliveries name the queue."""
    send(broker, *[outgoing(priority=p) for p in range(10)])
    wait_ready(broker, 10)

    with consuming(broker, ["q"]) as hub:
        got = hub.wait_for(10)
        assert {delivery.queue for delivery in got} == {"q"}
        assert sorted(delivery.message.priority for delivery in got) == list(range(10))
        settle(hub, *got[:4])
        give_back(hub, *got[4:])
        hub.wait_for(16)

    wait_ready(broker, 6)
    assert broker.purge("q") == 6
    assert depth(broker).ready == 0


def test_urgent_messages_arrive_though_the_hand_is_full_of_others(broker: Broker) -> None:
    """A backlog of low priority must not keep a worker from what is urgent."""
    send(broker, *[outgoing(priority=1) for _ in range(50)])

    with consuming(broker, ["q"], 5) as hub:
        hub.wait_for(5)
        urgent = outgoing(priority=9)
        send(broker, urgent)
        if not broker.url.startswith("amqp"):
            # One hand for all priorities: it is the first to come when there is room.
            settle(hub, hub.got[0])

        wait_for(lambda: urgent.message.id in ids(hub.got), 30, "the urgent message")
        assert ids(hub.got).index(urgent.message.id) == 5


def test_delayed_urgent_messages_stay_urgent(broker: Broker) -> None:
    """A retry or a schedule keeps its priority through the delay."""
    one = outgoing(priority=7, due_ms=clock.now_ms() + 300)

    with consuming(broker, ["q"]) as hub:
        send(broker, one)
        (delivery,) = hub.wait_for(1, 30)

    assert delivery.message.id == one.message.id
    assert (delivery.queue, delivery.message.priority) == ("q", 7)


def test_a_queue_that_is_held_back_gives_nothing_urgent_either(broker: Broker) -> None:
    """A pause is for the queue, whatever is in it."""
    with consuming(broker, ["q", "other"], held_back=["q"]) as hub:
        send(broker, outgoing(priority=9), outgoing(priority=0), outgoing("other", priority=9))
        hub.wait_for(1)
        send(broker, outgoing("other"))
        hub.wait_for(2)

        assert {delivery.queue for delivery in hub.got} == {"other"}
        assert ready(broker) == 2


def test_the_name_of_a_part_is_no_queue(broker: Broker) -> None:
    """It is consumed with its queue, or a worker would get only what is urgent."""
    loop = asyncio.new_event_loop()
    with pytest.raises(ConfigError):
        broker.consumer(["q.high"], 1, Hub.__new__(Hub), loop)
    loop.close()


@pytest.fixture
def embedded(broker_url: str, broker_factory: Any) -> Broker:
    """An embedded broker with aging."""
    if broker_url.startswith("amqp"):
        pytest.skip("RabbitMQ keeps urgent messages in a queue of their own")
    made: Broker = broker_factory(priority_aging=5)
    return made


def test_the_embedded_order_is_exact(embedded: Broker, broker_factory: Any) -> None:
    """Highest first, oldest first within a priority, however they came."""
    sent = [outgoing(priority=p) for p in (3, 0, 9, 3, 9, 0, 5)]
    strict = broker_factory()
    send(strict, *sent)

    with consuming(strict, ["q"]) as hub:
        got = hub.wait_for(7)

    wanted = sorted(sent, key=lambda one: -one.message.priority)
    assert ids(got) == [one.message.id for one in wanted]


def test_aging_lets_old_messages_through_a_flood(embedded: Broker) -> None:
    """One claim in five is of a lower priority, each in its turn."""
    send(embedded, *[outgoing(priority=0) for _ in range(5)])
    send(embedded, *[outgoing(priority=4) for _ in range(5)])
    send(embedded, *[outgoing(priority=9) for _ in range(100)])

    with consuming(embedded, ["q"], 1) as hub:
        for count in range(1, 51):
            hub.wait_for(count)
            settle(hub, hub.got[count - 1])

    first = [delivery.message.priority for delivery in hub.got[:50]]
    assert first.count(9) == 40
    assert (first.count(4), first.count(0)) == (5, 5)


@pytest.fixture
def amqp_channel(broker_url: str) -> Any:
    """What another program would do on RabbitMQ."""
    if not broker_url.startswith("amqp"):
        pytest.skip("only RabbitMQ is shared with other programs")
    import pika

    connection = pika.BlockingConnection(pika.URLParameters(broker_url))
    yield connection.channel()
    connection.close()


def test_an_adopted_queue_keeps_its_urgent_messages(amqp_channel: Any, broker: Broker) -> None:
    """Celery's workers know of no second queue: it would never be worked off."""
    arguments = {"x-queue-type": "classic", "x-max-priority": 10}
    amqp_channel.queue_declare("q", durable=True, arguments=arguments)

    send(broker, outgoing(priority=0), outgoing(priority=9), outgoing(priority=5))

    wait_ready(broker, 3)
    found = [amqp_channel.basic_get("q", auto_ack=True)[1].priority for _ in range(3)]
    assert found == [9, 5, None]
    with consuming(broker, ["q"]) as hub:
        send(broker, outgoing(priority=9), outgoing(priority=1))
        hub.wait_for(2)


def test_a_part_that_another_app_made_is_worked_off(amqp_channel: Any, broker_factory: Any) -> None:
    """An app that declares classic queues still takes what quorum senders put there."""
    send(broker_factory(), outgoing(priority=9), outgoing(priority=0))

    with consuming(broker_factory(queue_type="classic"), ["q"]) as hub:
        hub.wait_for(2, 30)


def test_a_queue_can_be_declared_with_priorities_of_its_own(
    amqp_channel: Any, broker_factory: Any
) -> None:
    """A classic queue that the broker itself orders, where that is worth more than safety."""
    broker = broker_factory(queues=(QueueShape("q", max_priority=9),))

    send(broker, *[outgoing(priority=p) for p in (1, 9, 5)])

    wait_ready(broker, 3)
    found = [amqp_channel.basic_get("q", auto_ack=True)[1].priority for _ in range(3)]
    assert found == [9, 5, 1]


def test_nothing_is_split_where_nothing_may_be_declared(
    amqp_channel: Any, broker_factory: Any
) -> None:
    """A sender without rights sends to the queue that it was given."""
    amqp_channel.queue_declare("q", durable=True, arguments={"x-queue-type": "quorum"})
    for declare in ("never", "passive"):
        send(broker_factory(declare=declare), outgoing(priority=9))

    assert amqp_channel.queue_declare("q", passive=True).method.message_count == 2
