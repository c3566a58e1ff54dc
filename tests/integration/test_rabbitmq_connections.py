"""Connections to RabbitMQ that end, hang, or are blocked."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from broker_helpers import ready, send, settle
from embedded_helpers import consuming, outgoing
from processes import free_port, wait_for
from servers import RabbitServer

from taskq.brokers import amqp_session
from taskq.brokers.amqp_connection import StockConnection
from taskq.brokers.base import Broker

Open = Callable[..., Broker]


def test_hostile_control_requests_are_ignored(broker: Broker, channel: Any) -> None:
    """Anyone who may publish can send there."""
    with consuming(broker, ["q"]) as hub:
        wait_for(lambda: bool(hub.connections), 15, "the consumer")
        for body in (b"", b"\xc1", b"\x90", b"\x81\xa7command\x01", b"x" * 100_000):
            channel.basic_publish("taskq.control", "", body)
        # The sink of this test raises KeyError for a request like this one, had it no command.
        answers = broker.ask({"command": "ping"}, 0.7)

        assert answers == [{"echo": "ping"}]
        assert hub.losses == 0


def test_the_next_url_is_used_when_the_first_is_down(opener: Open, rabbitmq_url: str) -> None:
    """A cluster behind a list of its nodes."""
    broker = opener(f"amqp://127.0.0.1:{free_port()};{rabbitmq_url}")

    send(broker, outgoing())
    with consuming(broker, ["q"]) as hub:
        settle(hub, *hub.wait_for(1))

    assert ready(broker) == 0


def test_a_queue_deleted_under_a_consumer_is_made_again(broker: Broker, channel: Any) -> None:
    """Otherwise the worker sits there with no consumer and no error."""
    with consuming(broker, ["q"]) as hub:
        wait_for(lambda: bool(hub.connections), 15, "the consumer")
        send(broker, outgoing())
        hub.wait_for(1)

        channel.queue_delete("q")
        wait_for(lambda: hub.losses == 1 and hub.connections[-1][0], 15, "the consumer again")
        send(broker, outgoing())
        hub.wait_for(2)

        assert [up for up, _ in hub.connections] == [True, False, True]
        assert "cancelled" in hub.connections[1][1]


def test_stock_pika_does_the_same(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way out when a later pika lacks the private names of the fast connection."""
    monkeypatch.setattr(amqp_session, "connection_class", StockConnection)
    sent = [outgoing() for _ in range(200)]
    send(broker, *sent)

    with consuming(broker, ["q"], 50) as hub:
        seen = 0
        while seen < 200:
            fresh = hub.wait_for(seen + 1)[seen:]
            settle(hub, *fresh)
            seen += len(fresh)

    assert [d.message for d in hub.got] == [one.message for one in sent]
    assert ready(broker) == 0


def test_a_broker_that_is_killed_loses_no_confirmed_message(
    opener: Open, private_rabbitmq: RabbitServer
) -> None:
    """Confirmed means durable; unconfirmed is sent again; consumers come back by themselves."""
    broker = opener(private_rabbitmq.url)
    broker.declare(["q"])
    seen: set[str] = set()
    sent: list[str] = []

    with consuming(broker, ["q"], 200) as hub:
        underway = []
        for number in range(60):
            if number == 30:
                # What is sent to a broker that stands still is written and never confirmed.
                private_rabbitmq.eval("[dets:sync(Table) || Table <- dets:all()]")
                private_rabbitmq.pause()
            if number == 40:
                private_rabbitmq.kill(settle=False)
            batch = [outgoing() for _ in range(50)]
            sent += [one.message.id for one in batch]
            underway.append(broker.submit(batch, 90))
            if number in (10, 20):
                hub.wait_for(100)
                settle(hub, *hub.got[:100])
        private_rabbitmq.start()
        errors = [error for publishing in underway for error in publishing.wait()]
        assert errors == [None] * len(sent)
        assert hub.losses == 1
        done = 0

        def settle_new() -> bool:
            nonlocal done
            fresh = hub.got[done:]
            done += len(fresh)
            settle(hub, *fresh)
            seen.update(delivery.message.id for delivery in fresh)
            return seen >= set(sent)

        wait_for(settle_new, 60, "every confirmed message")
        assert hub.connections[0][0]
        assert hub.connections[-1][0]

    wait_for(lambda: ready(broker) == 0, 15, "an empty queue")


def test_an_alarm_blocks_senders_and_not_consumers(
    opener: Open, private_rabbitmq: RabbitServer
) -> None:
    """A full broker must still be emptied; its senders are told why they wait."""
    broker = opener(private_rabbitmq.url)
    extra = outgoing("other")
    send(broker, *[outgoing() for _ in range(20)])

    with consuming(broker, ["q"], 5) as hub:
        hub.wait_for(5)
        private_rabbitmq.eval("vm_memory_monitor:set_vm_memory_high_watermark(0.0)")
        reasons: list[str] = []

        def is_blocked() -> bool:
            # The alarm takes a moment to reach the connection.
            reasons.extend(e.reason for e in broker.publish([extra], 1.5) if e is not None)
            return bool(reasons)

        wait_for(is_blocked, 20, "the alarm")
        assert reasons == ["blocked"]
        settled = 0
        while settled < 20:
            fresh = hub.wait_for(settled + 1)[settled:]
            settle(hub, *fresh)
            settled += len(fresh)
        (check,) = [c for c in broker.checks(["q"]) if c.name == "broker.alarms"]
        assert check.status == "failed"

        waiting = broker.submit([outgoing()], 30)
        private_rabbitmq.eval("vm_memory_monitor:set_vm_memory_high_watermark(0.8)")
        assert waiting.wait() == [None]


def test_a_silent_broker_hangs_nobody(opener: Open, private_rabbitmq: RabbitServer) -> None:
    """No FIN, no answer: sends end at their deadline, and closing is bounded."""
    broker = opener(private_rabbitmq.url)
    send(broker, outgoing())

    with consuming(broker, ["q"]) as hub:
        hub.wait_for(1)
        private_rabbitmq.pause()
        try:
            reasons: list[str] = []

            def is_silent() -> bool:
                # A stop reaches the threads of the broker one after the other.
                errors = broker.publish([outgoing("other")], 0.7)
                reasons.extend(error.reason for error in errors if error is not None)
                return bool(reasons)

            wait_for(is_silent, 20, "silence")
            assert reasons == ["timeout"]
            started = time.monotonic()
            hub.close()
            broker.close()
            assert time.monotonic() - started < 10
        finally:
            private_rabbitmq.resume()
