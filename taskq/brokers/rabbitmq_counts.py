"""How many messages and consumers a queue of RabbitMQ has, as far as its answer can be believed.

RabbitMQ asks a quorum queue's leader, and when that does not answer within 250 ms, on a busy disk
say, it tells the client that the queue has no message and no consumer. Taken at its word, a walk
would find no dead letters, `--burst` would end before its work, and a replay would take what a
killed one left for nothing.
"""

from typing import Any, Final, NamedTuple

from taskq import clock
from taskq.brokers.amqp_session import Session

_DOUBTFUL_S: Final = 0.2
"""An answer that took less was not RabbitMQ's excuse."""
_ASKS: Final = 6
"""After so many it is the line that is slow, or a broker that nobody can ask."""


class Counts(NamedTuple):
    """What a queue holds.

    Attributes:
        ready: Messages that no consumer has.
        consumers: Consumers, with those that were cancelled and still hold messages.
    """

    ready: int
    consumers: int


async def count(session: Session, name: str) -> Counts:
    """Return what a queue holds.

    Args:
        session: An open channel; a queue that does not exist closes it.
        name: The queue, with prefix.

    Raises:
        ChannelClosed: If there is no such queue, or the broker is lost.
    """
    for _ in range(_ASKS):
        asked_s = clock.monotonic_s()
        reply: Any = await session.call("queue_declare", name, passive=True)
        counts = Counts(reply.message_count, reply.consumer_count)
        if any(counts) or clock.monotonic_s() - asked_s < _DOUBTFUL_S:
            break
    return counts
