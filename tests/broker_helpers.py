"""Short words for what tests of brokers do all the time."""

import time

from embedded_helpers import Hub, outgoing
from processes import wait_for

from taskq import resend
from taskq.brokers.base import Broker, Delivery, Outgoing, QueueDepth
from taskq.errors import PublishError, RemoteError


def send(broker: Broker, *batch: Outgoing, timeout_s: float = 10) -> None:
    """Send and check that all is durable."""
    errors = broker.publish(batch, timeout_s)
    assert errors == [None] * len(batch)


def ready(broker: Broker, queue: str = "q") -> int:
    """Return what is ready in a queue; 0 for one that does not exist."""
    depth = broker.depths([queue])[queue]
    return depth.ready if depth else 0


def depth(broker: Broker, queue: str = "q") -> QueueDepth:
    """Return the depth of a queue that exists."""
    found = broker.depths([queue])[queue]
    assert found is not None
    return found


def wait_ready(broker: Broker, count: int, queue: str = "q") -> None:
    wait_for(lambda: ready(broker, queue) == count, 15, f"{count} ready messages in {queue}")


def ids(deliveries: list[Delivery]) -> list[str]:
    return [delivery.message.id for delivery in deliveries]


def settle(hub: Hub, *deliveries: Delivery) -> None:
    hub.consumer.settle([delivery.receipt for delivery in deliveries])


def give_back(hub: Hub, *deliveries: Delivery) -> None:
    hub.consumer.settle((), [delivery.receipt for delivery in deliveries])


def fail(broker: Broker, one: Outgoing | None = None, timeout_s: float = 5) -> PublishError:
    """Send a message that must not be confirmed, and return why."""
    started = time.monotonic()
    (error,) = broker.publish([one or outgoing()], timeout_s)
    assert time.monotonic() - started < timeout_s + 1
    assert error is not None
    return error


def letters(broker: Broker, count: int) -> list[Outgoing]:
    """Send so many dead letters and return them."""
    sent = []
    for one in [outgoing("q") for _ in range(count)]:
        error = RemoteError("builtins", "ValueError", "no")
        message = resend.dead(one.message, "failed", "q", error=error, attempts=2, worker="w")
        sent.append(Outgoing("q", message, dead=True))
    send(broker, *sent)
    return sent
