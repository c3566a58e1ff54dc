"""Queues that are bounded in length or in time: what is dropped becomes a dead letter."""

from collections.abc import Callable
from typing import Any

import pytest
from broker_helpers import depth, ready, send, settle, wait_ready
from embedded_helpers import consuming, outgoing
from processes import wait_for

from taskq import clock
from taskq.brokers.base import DEAD_QUEUE, Broker, Delivery
from taskq.brokers.shapes import DROP_HEAD, QueueShape
from taskq.dead.letter import DeadLetter, read_letter

BrokerFactory = Callable[..., Broker]
TEN = QueueShape("q", max_length=10)
TEN_NEWEST = QueueShape("q", max_length=10, overflow=DROP_HEAD)
SHORT = QueueShape("q", message_ttl_ms=700)


def buried(broker: Broker, count: int) -> list[DeadLetter]:
    """Wait for so many dead letters and return them, oldest first."""
    wait_ready(broker, count, DEAD_QUEUE)
    found: list[DeadLetter] = []

    def look(delivery: Delivery) -> Any:
        found.append(read_letter(delivery))
        return "keep"

    assert broker.sweep_dead(look) == count
    return found


def test_a_full_queue_refuses_at_the_send(broker_factory: BrokerFactory) -> None:
    """And what it confirmed is there: nothing is dropped behind the sender's back."""
    broker = broker_factory(queues=(TEN,))

    # RabbitMQ may take a few more: its quorum queues look at their length a moment later.
    errors = [broker.publish([outgoing()], 10)[0] for _ in range(40)]
    taken = [error for error in errors if error is None]

    assert 10 <= len(taken) < 40
    assert {error.reason for error in errors if error is not None} == {"nacked"}
    wait_ready(broker, len(taken))
    assert ready(broker, DEAD_QUEUE) == 0


@pytest.mark.parametrize("broker_url", ["sqlite", "memory"], indirect=True)
def test_a_batch_fills_the_room_that_there_is(broker_factory: BrokerFactory) -> None:
    """Each message of a batch is answered by itself; RabbitMQ takes what is under way at once."""
    broker = broker_factory(queues=(TEN,))

    errors = broker.publish([outgoing() for _ in range(8)], 10)
    more = broker.publish([outgoing() for _ in range(200)], 10)

    assert errors == [None] * 8
    assert [error is None for error in more] == [True] * 2 + [False] * 198
    assert ready(broker) == 10


def test_a_delayed_message_is_taken_by_a_full_queue(broker_factory: BrokerFactory) -> None:
    """It waits in the delay, where a retry is, until there is room."""
    broker = broker_factory(queues=(TEN,))
    while broker.publish([outgoing()], 10)[0] is None:
        pass
    late = outgoing(due_ms=clock.now_ms() + 500)
    send(broker, late)

    with consuming(broker, ["q"]) as hub:
        seen: set[str] = set()

        def came() -> bool:
            got = hub.wait_for(1, 60)
            for delivery in list(got):
                if delivery.message.id not in seen:
                    seen.add(delivery.message.id)
                    settle(hub, delivery)
            return late.message.id in seen

        wait_for(came, 120, "the delayed message")


def test_the_oldest_of_a_full_queue_become_dead_letters(broker_factory: BrokerFactory) -> None:
    """Where the newest are worth most: nothing vanishes, the reason is there."""
    broker = broker_factory(queues=(TEN_NEWEST,))
    sent = [outgoing() for _ in range(15)]

    for one in sent:
        send(broker, one)

    letters = buried(broker, 5)
    assert [letter.id for letter in letters] == [one.message.id for one in sent[:5]]
    assert {(letter.reason, letter.queue) for letter in letters} == {("queue_full", "q")}
    assert [letter.message.body for letter in letters] == [one.message.body for one in sent[:5]]
    wait_ready(broker, 10)


def test_what_waits_for_too_long_becomes_a_dead_letter(broker_factory: BrokerFactory) -> None:
    """It is not run: a price that is an hour old, say."""
    broker = broker_factory(queues=(SHORT,))
    sent = [outgoing() for _ in range(3)]
    send(broker, *sent)
    send(broker, outgoing("other"))

    # The embedded broker looks when somebody takes from the queue, RabbitMQ by itself.
    wait_for(lambda: _expired(broker), 60, "the end of the messages' time")

    letters = buried(broker, 3)
    assert sorted(letter.id for letter in letters) == sorted(one.message.id for one in sent)
    assert {(letter.reason, letter.queue) for letter in letters} == {("message_ttl", "q")}
    assert depth(broker, "other").ready == 1


def _expired(broker: Broker) -> bool:
    if ready(broker, DEAD_QUEUE) == 3:
        return True
    with consuming(broker, ["q"]) as hub:
        # One that comes before its time is over goes back when the consumer closes.
        wait_for(lambda: bool(hub.connections), 30, "the consumer")
    return ready(broker, DEAD_QUEUE) == 3


def test_the_time_of_a_delayed_message_begins_when_it_is_due(
    broker_factory: BrokerFactory,
) -> None:
    """A delay that is longer than the queue's time must not lose every message."""
    broker = broker_factory(queues=(QueueShape("q", message_ttl_ms=60_000),))
    late = outgoing(due_ms=clock.now_ms() + 300)
    send(broker, late)

    with consuming(broker, ["q"]) as hub:
        (delivery,) = hub.wait_for(1, 60)

    assert delivery.message.id == late.message.id
    assert ready(broker, DEAD_QUEUE) == 0


@pytest.mark.parametrize("broker_url", ["amqp"], indirect=True)
def test_the_urgent_part_of_a_bounded_queue_is_bounded_too(broker_factory: BrokerFactory) -> None:
    """Its messages are those that must not pile up unseen."""
    broker = broker_factory(queues=(TEN,))

    errors = [broker.publish([outgoing(priority=9)], 10)[0] for _ in range(40)]

    assert any(error is not None and error.reason == "nacked" for error in errors)
