"""What every broker promises about dead letters, shown on RabbitMQ, SQLite and memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from broker_helpers import ids, letters, settle, wait_ready
from embedded_helpers import consuming

from taskq import resend
from taskq.brokers.base import DEAD_QUEUE, Broker, Delivery, Outgoing

TESTS = Path(__file__).parents[1]
BrokerFactory = Callable[..., Broker]


def test_dead_letters_are_shown_oldest_first_and_kept(broker: Broker) -> None:
    """`taskq dead ls` looks and changes nothing."""
    sent = letters(broker, 5)
    shown: list[Delivery] = []

    def look(letter: Delivery) -> Any:
        shown.append(letter)
        return "keep"

    assert broker.sweep_dead(look) == 5
    assert ids(shown) == [one.message.id for one in sent]
    headers = shown[0].message.headers
    assert headers["taskq-dead-reason"] == "failed"
    assert headers["taskq-dead-queue"] == "q"
    assert headers["taskq-dead-attempts"] == 2
    assert shown[0].message == sent[0].message
    wait_ready(broker, 5, DEAD_QUEUE)


def test_fifty_looks_lose_no_dead_letter(broker: Broker) -> None:
    """RabbitMQ 4 drops what was delivered 20 times, unless told otherwise."""
    sent = letters(broker, 3)
    order: list[str] = []

    for _ in range(50):
        order.clear()
        assert broker.sweep_dead(lambda letter: (order.append(letter.message.id), "keep")[1]) == 3  # type: ignore[arg-type,return-value,func-returns-value]
        wait_ready(broker, 3, DEAD_QUEUE)

    assert order == [one.message.id for one in sent]


def test_dead_letters_are_removed_kept_and_sent_again(broker: Broker) -> None:
    """A replay sends first and removes then; the others stay."""
    drop, replay, keep = letters(broker, 3)

    def visit(letter: Delivery) -> Any:
        if letter.message.id == drop.message.id:
            return "remove"
        if letter.message.id == replay.message.id:
            return Outgoing("again", resend.revived(letter.message))
        return "keep"

    assert broker.sweep_dead(visit) == 3

    wait_ready(broker, 1, DEAD_QUEUE)
    with consuming(broker, ["again"]) as hub:
        (again,) = hub.wait_for(1)
        settle(hub, again)
    assert again.message.id == replay.message.id
    headers = dict(again.message.headers)
    assert headers.pop("taskq-sent") > 0, "cancels by name ask when it was sent"
    assert headers == {"taskq-replays": 1}
    left: list[str] = []
    broker.sweep_dead(lambda letter: (left.append(letter.message.id), "remove")[1])  # type: ignore[arg-type,return-value,func-returns-value]
    assert left == [keep.message.id]


def test_letters_that_arrive_during_a_sweep_wait_for_the_next(broker: Broker) -> None:
    """A replayed task that fails at once would be replayed for ever."""
    letters(broker, 2)

    def replay(letter: Delivery) -> Any:
        return Outgoing("q", letter.message, dead=True)

    assert broker.sweep_dead(replay) == 2
    wait_ready(broker, 2, DEAD_QUEUE)


def test_no_dead_letters_is_no_error(broker: Broker) -> None:
    """Nothing has failed yet, and nothing may be declared by looking."""
    assert broker.sweep_dead(lambda letter: "keep") == 0


def test_a_visitor_that_raises_keeps_the_rest(broker: Broker) -> None:
    """An operator presses Ctrl-C in the middle of a replay."""
    sent = letters(broker, 4)

    def visit(letter: Delivery) -> Any:
        if letter.message.id == sent[1].message.id:
            raise LookupError("stop")
        return "remove"

    with pytest.raises(LookupError):
        broker.sweep_dead(visit)

    wait_ready(broker, 3, DEAD_QUEUE)
