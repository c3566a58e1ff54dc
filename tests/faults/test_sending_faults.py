"""Sends while the connection fails in every way: confirmed, or `PublishError` in time."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest
from broker_helpers import ready, send
from embedded_helpers import outgoing
from processes import wait_for
from servers import RabbitServer

from taskq.brokers import open_broker
from taskq.brokers.base import Broker, BrokerOptions
from taskq.errors import PublishError
from taskq.torture.proxy import Proxy

Open = Callable[..., Broker]
SLACK_S = 5.0
"""How much later than its deadline a send may return on a machine that does other things too."""


@pytest.fixture
def opener() -> Iterator[Open]:
    opened: list[Broker] = []

    def make(url: str, **options: Any) -> Broker:
        opened.append(open_broker(url, BrokerOptions(**options)))
        return opened[-1]

    yield make
    for broker in opened:
        broker.close()


@pytest.fixture
def line(shared_rabbitmq: RabbitServer, new_proxy: Callable[[int], Proxy]) -> Proxy:
    """A proxy in front of the shared RabbitMQ."""
    return new_proxy(shared_rabbitmq.port)


@pytest.fixture
def far(opener: Open, line: Proxy, rabbitmq_url: str) -> Broker:
    """A broker behind the proxy, which has sent something already."""
    vhost = rabbitmq_url.rpartition("/")[2]
    # A heartbeat that will not help anybody within the test.
    broker = opener(f"amqp://127.0.0.1:{line.port}/{vhost}?heartbeat=300")
    send(broker, outgoing(), timeout_s=30)
    return broker


def attempt(broker: Broker, timeout_s: float, queue: str = "q") -> PublishError | None:
    """Send one message; it must end in time, whatever happens."""
    started = time.monotonic()
    (error,) = broker.publish([outgoing(queue)], timeout_s)
    assert time.monotonic() - started < timeout_s + SLACK_S
    return error


def until_sent(broker: Broker, timeout_s: float = 2.0, queue: str = "q") -> int:
    """Send until one is confirmed, and return how many were not."""
    deadline = time.monotonic() + 60
    failed = 0
    while attempt(broker, timeout_s, queue) is not None:
        failed += 1
        assert time.monotonic() < deadline
    return failed


def test_a_half_open_connection_costs_one_send(
    far: Broker, line: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """It is replaced as soon as a send has timed out, long before any heartbeat notices."""
    line.forget_old()
    before = line.accepted

    first = attempt(far, 2)

    assert first is not None
    assert first.reason == "timeout"
    # 30 s to connect and be confirmed on a busy machine; the old connection would time out too.
    assert attempt(far, 30) is None
    assert line.accepted == before + 1
    # Such as pika stumbling over a socket that is gone.
    assert not [record for record in caplog.records if record.name == "asyncio"]


def test_others_sends_go_out_on_the_next_connection(far: Broker, line: Proxy) -> None:
    """Only the one whose time is over fails; those that may take longer are sent again."""
    line.forget_old()
    patient = [far.submit([outgoing()], 60) for _ in range(5)]

    assert attempt(far, 2) is not None

    assert [publishing.wait() for publishing in patient] == [[None]] * 5


@pytest.mark.parametrize("up", [True, False])
def test_a_line_that_is_silent_in_one_direction_hangs_no_send(
    far: Broker, line: Proxy, up: bool
) -> None:
    """Lost requests and lost answers look the same to the sender."""
    line.silence(up=up, down=not up)
    assert attempt(far, 1) is not None
    assert attempt(far, 1) is not None

    line.speak()

    until_sent(far)


def test_resets_lose_nothing_that_has_time(far: Broker, line: Proxy) -> None:
    """RST every now and then: unconfirmed messages are sent again under their ids."""
    underway = []
    for _ in range(8):
        underway.append(far.submit([outgoing() for _ in range(100)], 90))
        line.reset()

    errors = [error for publishing in underway for error in publishing.wait()]

    assert errors == [None] * 800
    assert ready(far) >= 800


def test_a_slow_line_is_not_cut(far: Broker, line: Proxy) -> None:
    """Answers after 0.3 s are answers: no connection is given up that works."""
    before = line.accepted
    line.slow(0.1)

    for _ in range(3):
        assert attempt(far, 30) is None

    assert line.accepted == before


def test_a_declaration_without_an_answer_holds_nothing_up(far: Broker, line: Proxy) -> None:
    """A new queue whose declaration was swallowed can be sent to as soon as the line is back."""
    line.forget_old()
    assert attempt(far, 1, "new") is not None

    assert attempt(far, 30, "new") is None


def test_a_refused_declaration_fails_no_other(
    opener: Open, rabbitmq_url: str, private_names: list[str]
) -> None:
    """Each refusal closes a channel; whoever declares there at the same time is not to blame."""
    other = pika.BlockingConnection(pika.URLParameters(rabbitmq_url))
    channel = other.channel()
    for name in private_names[::2]:
        # Only its own connection may use such a queue.
        channel.queue_declare(name, exclusive=True)
    broker = opener(rabbitmq_url)

    underway = [broker.submit([outgoing(name)], 60) for name in private_names]
    errors = [publishing.wait()[0] for publishing in underway]

    reasons = [None if error is None else error.reason for error in errors]
    assert reasons == ["refused", None] * (len(private_names) // 2)
    for name, error in zip(private_names, errors, strict=True):
        assert error is None or name in str(error)
    other.close()


@pytest.fixture
def private_names() -> list[str]:
    return [f"q{number}" for number in range(20)]


def test_a_broker_that_stands_still_or_is_full_hangs_no_send(
    opener: Open, node: RabbitServer
) -> None:
    """SIGSTOP: the kernel takes connections for it, and nobody answers. An alarm: it says so."""
    broker = opener(node.url)
    send(broker, outgoing(), timeout_s=30)
    node.pause()
    try:
        errors = [attempt(broker, 1) for _ in range(3)]
    finally:
        node.resume()

    # A stop reaches the threads of a broker one after the other: the first may still get through.
    assert all(error is not None for error in errors[1:])
    until_sent(broker)

    alarm = "{{resource_limit, disk, node()}, []}"
    node.eval(f"rabbit_alarm:set_alarm({alarm})")
    reasons: list[str] = []

    def is_blocked() -> bool:
        error = attempt(broker, 1)
        reasons.append("" if error is None else error.reason)
        return reasons[-1] == "blocked"

    wait_for(is_blocked, 30, "the alarm")

    node.eval("rabbit_alarm:clear_alarm({resource_limit, disk, node()})")

    until_sent(broker)
