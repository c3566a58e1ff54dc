"""What every broker promises about replays of dead letters: RabbitMQ, SQLite and memory."""

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from broker_helpers import ids, letters, ready, settle, wait_ready
from embedded_helpers import consuming
from processes import wait_for

from taskq import resend
from taskq.brokers import rabbitmq_dead, rabbitmq_replay
from taskq.brokers.base import DEAD_QUEUE, Broker, Delivery, Outgoing
from taskq.dead import DeadLetters, Filter, Journals
from taskq.errors import ConfigError, PublishError
from taskq.message import REPLAY

BrokerFactory = Callable[..., Broker]
MANY = 10_000


def again(letter: Delivery) -> Outgoing:
    fresh = resend.revived(letter.message)
    return Outgoing("q", fresh._replace(headers={**fresh.headers, REPLAY: f"j/{fresh.id}"}))


def test_letters_go_back_to_their_queue_each_once(broker: Broker) -> None:
    """As what was sent first, but for the marks of the replay."""
    broker.declare(["q"])
    sent = letters(broker, 5)
    wait_ready(broker, 5, DEAD_QUEUE)
    prepared: list[str] = []
    gone: list[int] = []

    def pace(waiting: int) -> int:
        gone.append(waiting)
        return 2 if waiting > 1 else 1

    with broker.replay(["q"]) as replay:
        assert not replay.stranded
        count = replay.run(
            lambda one: again(one) if one.message.id != sent[2].message.id else None,
            10,
            lambda batch: prepared.extend(one.message.id for one in batch),
            pace,
        )

    wanted = [one.message.id for one in sent if one is not sent[2]]
    assert count == 4
    assert prepared == wanted
    assert gone == [4, 2]
    with consuming(broker, ["q"]) as hub:
        found = list(hub.wait_for(4, 60))
        settle(hub, *found)
    assert ids(found) == wanted
    assert found[0].message.body == sent[0].message.body
    headers = dict(found[0].message.headers)
    assert headers.pop("taskq-sent") > 0, "cancels by name ask when it was sent"
    assert headers == {"taskq-replays": 1, REPLAY: f"j/{wanted[0]}"}
    wait_ready(broker, 1, DEAD_QUEUE)


def test_an_urgent_letter_goes_where_urgent_messages_go(broker: Broker) -> None:
    """A replay that made it one of many would let it wait behind them."""
    broker.declare(["q"])
    letters(broker, 1)
    (urgent,) = [one.message._replace(priority=9) for one in letters(broker, 1)]
    assert broker.publish([Outgoing("q", urgent._replace(id="urgent"), dead=True)], 10) == [None]
    wait_ready(broker, 3, DEAD_QUEUE)
    dead = DeadLetters(broker)

    assert len(dead.replay(dead.choose())) == 3

    wait_ready(broker, 3)
    with consuming(broker, ["q"], prefetch=1) as hub:
        # Nothing is settled, so what stands behind another message does not come.
        wait_for(lambda: "urgent" in ids(hub.got), 60, "the urgent message")


def test_no_more_than_the_limit_leave_the_dead_letters(broker: Broker) -> None:
    """At a rate, letters are taken in portions, so that a killed replay has few on their way."""
    broker.declare(["q"])
    letters(broker, 5)
    wait_ready(broker, 5, DEAD_QUEUE)

    with broker.replay(["q"]) as replay:
        assert replay.run(again, 2, lambda batch: None, lambda waiting: waiting) == 2
        wait_ready(broker, 3, DEAD_QUEUE)
        assert replay.run(again, 2, lambda batch: None, lambda waiting: waiting) == 2

    wait_ready(broker, 4)
    wait_ready(broker, 1, DEAD_QUEUE)


def test_a_queue_that_is_gone_gets_nothing_unless_it_is_made(broker: Broker) -> None:
    """A typing error must not make a queue that nobody serves."""
    letters(broker, 1)
    wait_ready(broker, 1, DEAD_QUEUE)
    dead = DeadLetters(broker)

    with pytest.raises(ConfigError, match="no queue q"):
        broker.replay(["q"]).__enter__()
    with pytest.raises(ConfigError, match=r"no queue q \(1 letters\)"):
        dead.replay(dead.choose())
    assert broker.depths(["q"])["q"] is None
    wait_ready(broker, 1, DEAD_QUEUE)

    assert len(dead.replay(dead.choose(), create=True)) == 1
    wait_ready(broker, 1)


def test_a_preparation_that_fails_keeps_the_letters(broker: Broker) -> None:
    """The results store is away, so the failures cannot be forgotten: nothing may be sent."""
    broker.declare(["q"])
    letters(broker, 3)
    wait_ready(broker, 3, DEAD_QUEUE)

    def prepare(batch: Any) -> None:
        raise PublishError("id", "unavailable", "the store is away")

    with broker.replay(["q"]) as replay, pytest.raises(PublishError):
        replay.run(again, 10, prepare, lambda waiting: waiting)

    wait_ready(broker, 3, DEAD_QUEUE)
    assert ready(broker) == 0


def test_two_replays_at_once_send_each_letter_once(
    broker_factory: BrokerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two operators see the same alarm."""
    monkeypatch.setattr(rabbitmq_replay, "_OTHER_ENDS_S", 0.3)
    broker, other = broker_factory(), broker_factory()
    broker.declare(["q"])
    sent = letters(broker, 20)
    wait_ready(broker, 20, DEAD_QUEUE)

    def during(waiting: int) -> int:
        # On RabbitMQ the second is told to wait, on the others it finds nothing left to send.
        with suppress(ConfigError), other.replay(["q"]) as second:
            second.run(again, 50, lambda batch: None, lambda n: n)
        return waiting

    with broker.replay(["q"]) as replay:
        replay.run(again, 50, lambda batch: None, during)

    wait_ready(broker, 20)
    with consuming(broker, ["q"]) as hub:
        found = list(hub.wait_for(20, 60))
        settle(hub, *found)
    assert Counter(ids(found)) == Counter(one.message.id for one in sent)
    wait_ready(broker, 0, DEAD_QUEUE)


def test_letters_keep_their_order_over_pages(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Page 2 of a listing must not begin with what page 1 showed."""
    monkeypatch.setattr(rabbitmq_dead, "PAGE", 7)
    sent = [one.message.id for one in letters(broker, 50)]
    wait_ready(broker, 50, DEAD_QUEUE)
    removed = set(sent[::5])
    kept = [one for one in sent if one not in removed]
    order: list[str] = []

    def visit(letter: Delivery) -> Any:
        order.append(letter.message.id)
        return "remove" if letter.message.id in removed else "keep"

    assert broker.sweep_dead(visit) == 50
    assert order == sent
    for _ in range(3):
        wait_ready(broker, len(kept), DEAD_QUEUE)
        order.clear()
        assert broker.sweep_dead(lambda one: (order.append(one.message.id), "keep")[1]) == len(kept)  # type: ignore[arg-type,return-value,func-returns-value]
        assert order == kept


def test_ten_thousand_letters_are_replayed(broker: Broker, tmp_path: Path) -> None:
    """After an outage of a partner there are as many, and all of them must go."""
    broker.declare(["q"])
    for _ in range(MANY // 1000):
        letters(broker, 1000)
    wait_ready(broker, MANY, DEAD_QUEUE)
    dead = DeadLetters(broker, None, Journals(str(tmp_path)))
    seen: list[int] = []

    sent = dead.replay(dead.choose(Filter(reason="failed")), progress=seen.append)

    assert len(set(sent)) == MANY
    assert seen[-1] == MANY
    wait_ready(broker, MANY)
    wait_ready(broker, 0, DEAD_QUEUE)
    (journal,) = Journals(str(tmp_path)).all()
    assert set(journal.sent) == set(sent)
    assert journal.ended is not None
    assert journal.ended["ended"] == MANY
