"""What only RabbitMQ does: adopted queues, refusals, returns, hostile messages."""

import logging
import time
from collections.abc import Callable
from typing import Any

import pika
import pytest
from broker_helpers import fail, ready, send, settle
from embedded_helpers import consuming, outgoing
from processes import free_port, wait_for
from servers import RabbitServer

from taskq import clock, resend
from taskq.brokers.base import DEAD_QUEUE, Broker, Delivery, Outgoing
from taskq.errors import BrokerUnavailable, ConfigError, TopologyMismatch
from taskq.message import Message

Open = Callable[..., Broker]


def test_a_queue_that_celery_declared_is_used(
    broker: Broker, channel: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """One migrates queue by queue, and a sender never fails because arguments differ."""
    channel.queue_declare("q", durable=True)

    with caplog.at_level(logging.WARNING, "taskq"):
        send(broker, outgoing(), outgoing())
        with consuming(broker, ["q"]) as hub:
            settle(hub, *hub.wait_for(2))
            send(broker, outgoing(due_ms=clock.now_ms() + 250))
            settle(hub, hub.wait_for(3)[2])

    assert len([r for r in caplog.records if "declared elsewhere" in r.getMessage()]) == 1
    assert "queue q: x-" in caplog.text
    (check,) = [c for c in broker.checks(["q"]) if c.name == "broker.queue-arguments"]
    assert check.status == "warning"
    assert "queue q" in check.detail
    broker.declare(["q"])


def test_foreign_arguments_of_a_taskq_object_are_a_readable_error(
    broker: Broker, channel: Any
) -> None:
    """A worker must stop with what differs, not run into it again and again."""
    channel.queue_declare("taskq.dead", durable=True, arguments={"x-message-ttl": 5000})

    with pytest.raises(TopologyMismatch, match=r"queue taskq.dead: x-.* taskq declares"):
        broker.declare(["q"])

    assert [c.status for c in broker.checks([]) if c.name == "broker.dead-letters"] == ["failed"]
    send(broker, outgoing())


def test_passive_declaring_names_what_is_missing(opener: Open, rabbitmq_url: str) -> None:
    """Where operators make the queues, a worker says which one they forgot."""
    opener(rabbitmq_url).declare(["there"])
    passive = opener(rabbitmq_url, declare="passive")

    passive.declare(["there"])
    with pytest.raises(ConfigError, match="there is no queue missing"):
        passive.declare(["there", "missing"])
    with consuming(passive, ["missing"]) as hub:
        wait_for(lambda: bool(hub.errors), 10, "the fatal error")
    assert isinstance(hub.errors[0], ConfigError)


def test_celerys_layout_makes_celerys_queues(opener: Open, rabbitmq_url: str, channel: Any) -> None:
    """A Celery worker that declares the queue afterwards must not get a 406."""
    send(opener(rabbitmq_url + "?layout=celery"), outgoing("celery"))

    channel.queue_declare("celery", durable=True)


def test_a_closed_port_is_unavailable_in_time(opener: Open) -> None:
    """A send never hangs."""
    broker = opener(f"amqp://127.0.0.1:{free_port()}")

    error = fail(broker, timeout_s=0.7)

    assert error.reason == "unavailable"
    assert "refused" in str(error)
    with pytest.raises(BrokerUnavailable):
        broker.depths(["q"])
    assert [check.status for check in broker.checks([])] == ["failed"]


@pytest.mark.parametrize(
    ("replace", "named"),
    [
        (("guest:guest", "guest:wrong"), "login of user 'guest'"),
        (("/t", "/nosuch"), "vhost 'nosuch"),
    ],
)
def test_a_refused_login_or_vhost_is_said_at_once(
    opener: Open, rabbitmq_url: str, replace: tuple[str, str], named: str
) -> None:
    """Retrying until the deadline would hide the reason."""
    broker = opener(rabbitmq_url.replace(*replace))

    started = time.monotonic()
    error = fail(broker, timeout_s=20)

    assert time.monotonic() - started < 10
    assert error.reason == "denied"
    assert named in str(error)
    with pytest.raises(ConfigError, match=named):
        broker.declare(["q"])
    with consuming(broker, ["q"]) as hub:
        wait_for(lambda: bool(hub.errors), 10, "the fatal error")
    assert isinstance(hub.errors[0], ConfigError)


def test_an_unroutable_send_is_an_error(opener: Open, rabbitmq_url: str) -> None:
    """Without `mandatory` RabbitMQ confirms what it throws away."""
    never = opener(rabbitmq_url, declare="never")
    good = outgoing("there")
    opener(rabbitmq_url).declare(["there"])

    errors = never.publish([outgoing("nowhere"), good, outgoing("nowhere")], 5)

    assert [error and error.reason for error in errors] == ["unroutable", None, "unroutable"]
    assert errors[0] is not None
    assert "nowhere" in str(errors[0])
    late = outgoing("there", due_ms=clock.now_ms() + 60_000)
    assert fail(never, late).reason == "unroutable"
    send(never, outgoing("there"))


def test_a_queue_that_was_deleted_meanwhile_is_made_again(broker: Broker, channel: Any) -> None:
    """The cache of declared queues must not turn an operator's mistake into lost tasks."""
    send(broker, outgoing(), outgoing(due_ms=clock.now_ms() + 60_000))
    channel.queue_delete("q")
    send(broker, outgoing(), outgoing())
    assert ready(broker) == 2

    channel.exchange_delete("taskq.delay.v1.51200")
    send(broker, outgoing(due_ms=clock.now_ms() + 60_000), outgoing())
    assert ready(broker) == 3

    channel.queue_delete("taskq.dead")
    send(broker, Outgoing("q", resend.dead(outgoing().message, "failed", "q"), dead=True))
    assert ready(broker, DEAD_QUEUE) == 1


def test_a_full_queue_nacks(broker: Broker, channel: Any) -> None:
    """Someone bounded the queue; the sender must know."""
    arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
    channel.queue_declare("q", durable=True, arguments=arguments)

    errors = [fail_or_none for _ in range(3) for fail_or_none in broker.publish([outgoing()], 5)]

    assert errors[0] is None
    assert errors[-1] is not None
    assert errors[-1].reason == "nacked"


def test_what_does_not_fit_is_refused_and_harms_nobody(broker: Broker) -> None:
    """RabbitMQ would close the connection under the other senders."""
    large = Outgoing("q", Message("t", "large", b"", {"h": "x" * 200_000}))
    huge = Outgoing("q", Message("t", "huge", b"x" * (16 * 1024 * 1024 + 1)))
    odd = Outgoing("q", Message("t", "odd", b"", {"h": object()}))

    errors = broker.publish([outgoing(), large, huge, odd, outgoing()], 20)

    assert [error and error.reason for error in errors] == [
        None,
        "refused",
        "refused",
        "refused",
        None,
    ]
    assert ready(broker) == 2


def test_bodies_of_several_frames_arrive(broker: Broker) -> None:
    """A frame holds 128 KiB; bodies may be 16 MiB."""
    bodies = [b"x" * size for size in (0, 131_064, 131_065, 700_000, 3_000_000)]
    send(broker, *[Outgoing("q", Message("t", f"i{len(b)}", b)) for b in bodies], timeout_s=30)

    with consuming(broker, ["q"]) as hub:
        got = hub.wait_for(len(bodies), 30)

    assert [delivery.message.body for delivery in got] == bodies


def test_a_user_without_rights_is_told(
    opener: Open, rabbitmq_url: str, shared_rabbitmq: RabbitServer
) -> None:
    """An exception in a callback would be a worker that sits there and consumes nothing."""
    vhost = rabbitmq_url.rpartition("/")[2]
    name = f"user-{vhost}"
    shared_rabbitmq.eval(
        f'rabbit_auth_backend_internal:add_user(<<"{name}">>, <<"pw">>, <<"tests">>),'
        f'rabbit_auth_backend_internal:set_permissions(<<"{name}">>, <<"{vhost}">>,'
        '<<"">>, <<"">>, <<"">>, <<"tests">>)'
    )
    opener(rabbitmq_url).declare(["q"])
    weak = opener(rabbitmq_url.replace("guest:guest", f"{name}:pw"))

    assert fail(weak).reason == "refused"
    with consuming(weak, ["q"]) as hub:
        wait_for(lambda: bool(hub.errors), 10, "the fatal error")
    assert isinstance(hub.errors[0], ConfigError)
    assert "failed" in [check.status for check in weak.checks(["q"])]
    shared_rabbitmq.eval(f'rabbit_auth_backend_internal:delete_user(<<"{name}">>, <<"tests">>)')


# Hostile messages

HOSTILE_HEADERS: dict[str, dict[str, Any] | None] = {
    "no headers": None,
    "no id": {"task": "t"},
    "task is a number": {"task": 1, "id": "x"},
    "id is long": {"task": "t", "id": "x" * 300},
    "id is empty": {"task": "t", "id": ""},
}


def dead_letters(broker: Broker) -> list[Message]:
    found: list[Message] = []

    def look(letter: Delivery) -> Any:
        found.append(letter.message)
        return "keep"

    broker.sweep_dead(look)
    return found


def test_malformed_messages_arrive_with_an_error(broker: Broker, channel: Any) -> None:
    """No message may kill a worker, or hang in the queue for ever."""
    broker.declare(["q"])
    for headers in HOSTILE_HEADERS.values():
        channel.basic_publish("", "q", b"\xc1\x00bad", pika.BasicProperties(headers=headers))
    hostile = pika.BasicProperties(headers={"task": "t", "id": "i"}, timestamp=2**63)
    channel.basic_publish("", "q", b"\xc1\x00bad", hostile)
    send(broker, outgoing())
    count = len(HOSTILE_HEADERS) + 1

    with consuming(broker, ["q"]) as hub:
        got = hub.wait_for(count + 1)
        assert all(delivery.error is not None for delivery in got[:count])
        assert {delivery.message.body for delivery in got[:count]} == {b"\xc1\x00bad"}
        assert got[count].error is None
        letters = [resend.dead(d.message, "malformed", "q") for d in got[:count]]
        send(broker, *[Outgoing("q", letter, dead=True) for letter in letters])
        settle(hub, *got)
        assert hub.losses == 0

    assert ready(broker) == 0
    assert [letter.body for letter in dead_letters(broker)] == [b"\xc1\x00bad"] * count


def test_a_delay_that_ends_nowhere_is_a_dead_letter(broker: Broker, channel: Any) -> None:
    """The queue was deleted while its tasks waited; they are parked, not dropped."""
    send(broker, outgoing(due_ms=clock.now_ms() + 350))
    channel.queue_delete("q")

    wait_for(lambda: ready(broker, DEAD_QUEUE) == 1, 15, "the dead letter")

    (letter,) = dead_letters(broker)
    assert letter.headers["taskq-dead-reason"] == "unroutable"
    assert letter.headers["taskq-dead-queue"] == "q"
    assert letter.headers["taskq-dead-at"] > 1_700_000_000_000
