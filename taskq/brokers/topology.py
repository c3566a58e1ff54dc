"""The objects taskq keeps on RabbitMQ: names, arguments and the grid of delays, as pure data.

Delayed messages wait in queues whose messages all have the same time to live, so nothing blocks at
a queue's head, and dead-letter into `taskq.due`, which routes by the name of the work queue. All
`taskq.*` queues are quorum queues with at-least-once dead-lettering: with classic queues, or with
the default strategy, a broker that is killed loses confirmed messages on this hop.
"""

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from taskq.brokers.base import DEAD_QUEUE, MIN_DELAY_MS
from taskq.brokers.shapes import (
    DROP_HEAD,
    QueueShape,
    base_part,
    goes_high,
    high_part,
    parse_shard,
)
from taskq.topics import AWAY_MS, HEADERS, Binding

DELIVERY_LIMIT: Final = 1000
"""Backstop of work queues; the count includes prefetched messages that never started."""
DEAD_DELIVERY_LIMIT: Final = 1_000_000
"""RabbitMQ 4 drops a message after 20 deliveries by default: after 20 looks at a dead letter."""
_HOUR_MS: Final = 3_600_000
_HORIZON_MS: Final = 366 * 86_400_000

Arguments = Mapping[str, Any]


def _grid() -> tuple[int, ...]:
    values = [MIN_DELAY_MS * step for step in range(1, 8)]
    octave = MIN_DELAY_MS
    while 8 * octave <= _HORIZON_MS:
        steps: tuple[int, ...] = tuple(range(8, 16)) if 8 * octave < _HOUR_MS else (8, 12)
        values += [step * octave for step in steps if step * octave <= _HORIZON_MS]
        octave *= 2
    return tuple(values)


GRID: Final = _grid()
"""Delays for which there can be a queue, in milliseconds, ascending: 0.1 s to 366 days."""


def bucket_ms(delay_ms: int) -> int:
    """Return the longest delay of the grid that is not longer than `delay_ms`; 0 for none.

    Rounding down means that a message comes early, never late; the worker sends the rest on.
    """
    index = bisect_right(GRID, delay_ms)
    return GRID[index - 1] if index else 0


@dataclass(frozen=True, slots=True)
class Exchange:
    """An exchange to declare; durable."""

    name: str
    kind: Literal["direct", "fanout", "topic", "headers"]
    arguments: Arguments


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue to declare, durable, and what it is bound to.

    Attributes:
        name: Name on the broker, prefix included.
        arguments: The arguments of its declaration.
        exchange: Exchange it is bound to.
        key: Routing key of the binding.
    """

    name: str
    arguments: Arguments
    exchange: str
    key: str = ""


class Topology:
    """The names and declarations below one prefix.

    Attributes:
        prefix: Put before every name.
        bindings: What queues of subscribers get, by queue.
    """

    def __init__(
        self,
        prefix: str = "",
        queue_type: Literal["quorum", "classic"] = "quorum",
        dead_ttl_s: int = 14 * 86400,
        layout: Literal["taskq", "celery"] = "taskq",
        queues: Sequence[QueueShape] = (),
    ) -> None:
        self.prefix = prefix
        self._queue_type = queue_type
        self._dead_ttl_s = dead_ttl_s
        self._layout = layout
        self._shapes = {shape.name: shape for shape in queues}
        self.bindings: dict[str, Binding] = {}

    @property
    def due(self) -> str:
        """Exchange where delays end; routes by the name of the work queue."""
        return f"{self.prefix}taskq.due"

    @property
    def dead(self) -> str:
        """Name of the exchange and of the queue of dead letters."""
        return self.prefix + DEAD_QUEUE

    @property
    def replay(self) -> str:
        """Name of the exchange and of the queue that replayed letters pass through."""
        return f"{self.prefix}taskq.replay"

    @property
    def control(self) -> str:
        """Fanout exchange of control requests."""
        return f"{self.prefix}taskq.control"

    def delay(self, bucket: int) -> str:
        """Name of the exchange and of the queue of one delay of the grid."""
        return f"{self.prefix}taskq.delay.v1.{bucket}"

    def on_broker(self, queue: str) -> str:
        """Return a queue's name with the prefix."""
        return self.prefix + queue

    def off_broker(self, name: str) -> str:
        """Return a name without the prefix."""
        return name.removeprefix(self.prefix)

    def part_for(self, queue: str, priority: int) -> str:
        """Return the queue that a message goes to: urgent ones go to the high part.

        Quorum queues know no priorities before RabbitMQ 4, and two after.
        """
        return high_part(queue) if goes_high(priority) and self.splits(queue) else queue

    def splits(self, queue: str) -> bool:
        """Return whether a queue is given a high part: a quorum queue that is not a shard."""
        return self._queue_type == "quorum" and self.can_split(queue)

    def can_split(self, queue: str) -> bool:
        """Return whether a queue may have a high part that another app made."""
        if self._layout == "celery" or parse_shard(queue) is not None:
            return False
        shape = self._shapes.get(queue)
        return shape is None or not shape.max_priority

    def dead_exchange(self) -> Exchange:
        """Exchange of dead letters; a fanout, so any routing key arrives."""
        return Exchange(self.dead, "fanout", {})

    def due_exchange(self) -> Exchange:
        """Exchange where delays end; what it cannot route becomes a dead letter."""
        return Exchange(self.due, "direct", {"alternate-exchange": self.dead})

    def control_exchange(self) -> Exchange:
        """Exchange of control requests."""
        return Exchange(self.control, "fanout", {})

    def topic_exchange(self, exchange: str) -> Exchange:
        """Exchange of events, or of what is published; `exchange` is its name without prefix."""
        return Exchange(self.prefix + exchange, "topic", {})

    def headers_exchange(self) -> Exchange:
        """Exchange that matches headers of what is published."""
        return Exchange(self.prefix + HEADERS, "headers", {})

    def event_queue(self, queue: str, exchange: str, max_bytes: int) -> Queue:
        """Durable queue of one reader of events; of several processes one reads at a time.

        Args:
            queue: Its name without prefix.
            exchange: What it is bound to, prefix included.
            max_bytes: Beyond this the oldest batches are dropped.
        """
        arguments = {
            "x-queue-type": "quorum",
            "x-single-active-consumer": True,
            "x-max-length-bytes": max_bytes,
            "x-overflow": "drop-head",
            "x-delivery-limit": DEAD_DELIVERY_LIMIT,
        }
        return Queue(self.prefix + queue, arguments, exchange, "#")

    def shards_exchange(self, queue: str, count: int) -> Exchange:
        """Exchange that nobody uses: its alternate's name says how many shards a queue has.

        RabbitMQ refuses to declare it with another number, so that no sender and no worker can
        use another layout than the one whose messages are there.
        """
        name = f"{self.prefix}{queue}.shards"
        return Exchange(name, "fanout", {"alternate-exchange": f"{name}.{count}"})

    def delay_exchange(self, bucket: int) -> Exchange:
        """Exchange of one delay; a fanout, so the routing key stays the work queue's name."""
        return Exchange(self.delay(bucket), "fanout", {})

    def dead_queue(self) -> Queue:
        """Queue of dead letters."""
        arguments = {
            "x-queue-type": "quorum",
            "x-message-ttl": self._dead_ttl_s * 1000,
            "x-delivery-limit": DEAD_DELIVERY_LIMIT,
        }
        return Queue(self.dead, arguments, self.dead)

    def replay_exchange(self) -> Exchange:
        """Exchange of replayed letters; a fanout, so the routing key stays the work queue's."""
        return Exchange(self.replay, "fanout", {})

    def replay_queue(self) -> Queue:
        """Queue from which RabbitMQ itself moves a rejected message on to its work queue."""
        arguments = {
            "x-queue-type": "quorum",
            "x-delivery-limit": DEAD_DELIVERY_LIMIT,
            "x-dead-letter-exchange": self.due,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }
        return Queue(self.replay, arguments, self.replay)

    def delay_queue(self, bucket: int) -> Queue:
        """Queue whose messages all wait `bucket` milliseconds."""
        arguments = {
            "x-queue-type": "quorum",
            "x-message-ttl": bucket,
            "x-dead-letter-exchange": self.due,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }
        return Queue(self.delay(bucket), arguments, self.delay(bucket))

    def work_queue(self, queue: str) -> Queue:
        """Queue of tasks; bound to `taskq.due`, where delays end."""
        name = self.on_broker(queue)
        binding = self.bindings.get(queue)
        if binding is not None and binding.broadcast:
            gone = {"x-expires": AWAY_MS, "x-dead-letter-exchange": self.dead}
            return Queue(name, {"x-queue-type": "classic", **gone}, self.due, name)
        arguments = dict(self._work_arguments(queue))
        shape = self._shapes.get(base_part(queue))
        if shape is not None and shape.is_limited:
            arguments.update(_limits(shape, quorum=arguments.get("x-queue-type") == "quorum"))
            arguments.setdefault("x-dead-letter-exchange", self.dead)
        return Queue(name, arguments, self.due, name)

    def _work_arguments(self, queue: str) -> Arguments:
        shape, ordered = self._shapes.get(queue), parse_shard(queue) is not None
        if shape is not None and shape.max_priority:
            return {
                "x-queue-type": "classic",
                "x-max-priority": shape.max_priority,
                "x-dead-letter-exchange": self.dead,
            }
        if self._layout == "celery" and not ordered:
            # Celery declares its queues without arguments and would stop at a mismatch.
            return {}
        if self._queue_type == "classic":
            classic = {"x-queue-type": "classic", "x-dead-letter-exchange": self.dead}
            return {**classic, "x-single-active-consumer": True} if ordered else classic
        usual = {
            "x-queue-type": "quorum",
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-dead-letter-exchange": self.dead,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }
        return {**usual, "x-single-active-consumer": True} if ordered else usual


def _limits(shape: QueueShape, quorum: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if shape.message_ttl_ms:
        found["x-message-ttl"] = shape.message_ttl_ms
    if shape.max_length:
        drops = shape.overflow == DROP_HEAD
        found["x-max-length"] = shape.max_length
        found["x-overflow"] = "drop-head" if drops else "reject-publish"
        if quorum and drops:
            # RabbitMQ does not offer at-least-once for a queue that drops its head.
            found["x-dead-letter-strategy"] = "at-most-once"
    return found


_INEQUIVALENT = re.compile(
    r"inequivalent arg '(?P<name>[^']*)' for (?P<kind>queue|exchange) '(?P<object>[^']*)'"
    r".*?received (?P<ours>.+?) but current is (?P<theirs>.+?)$",
    re.DOTALL,
)


def readable_mismatch(reply: str) -> str:
    """Return RabbitMQ's 406 as a line that says what is where, and what taskq declares.

    RabbitMQ names one difference at a time.
    """
    found = _INEQUIVALENT.search(reply)
    if found is None:
        return reply
    theirs, ours = (_bare(found[side]) for side in ("theirs", "ours"))
    return (
        f"{found['kind']} {found['object']}: {found['name']} is {theirs} on the broker, "
        f"taskq declares {ours}"
    )


def _bare(text: str) -> str:
    """Return `the value '5' of type 'long'`, `'5'` or `none` as it is meant."""
    quoted = re.search(r"'([^']*)'", text)
    return quoted[1] if quoted else text
