"""A send under way: its messages, and the errors they end with."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Final

from taskq import clock
from taskq.brokers import amqp_properties
from taskq.brokers.base import DEAD_QUEUE, MIN_DELAY_MS, Outgoing
from taskq.brokers.shapes import base_part
from taskq.brokers.topology import Topology, bucket_ms
from taskq.errors import EncodeError, PublishError
from taskq.message import MAX_BODY_BYTES

MAX_FRAME_BYTES: Final = 131_072
TOPIC: Final = -1
"""In the place of a bucket: `Item.queue` is an exchange, and nobody has to be bound to it."""
NOTHING_TO_DECLARE: Final = ("", 0)
"""The `Item.target` of what goes to an address that somebody else made."""
_FRAME_AND_HEADER_BYTES: Final = 8 + 12
_LATE_S: Final = 0.25
"""How much later than the deadline `wait` gives up on an I/O thread that does not run."""


class Item:
    """One message of a batch.

    Attributes:
        batch: The send it belongs to.
        index: Its place there.
        exchange: Where it is published.
        key: Its routing key.
        queue: Work queue to declare before, without prefix; `taskq.dead` stands for the
            dead letters.
        bucket: Delay bucket to declare before; 0 for none, `TOPIC` where `queue` is an exchange.
        raw: Its properties.
        body: Its body.
        returned: Why the broker sent it back as unroutable, or empty.
        redeclared: Whether its target was declared again already.
    """

    __slots__ = (
        "batch",
        "body",
        "bucket",
        "exchange",
        "index",
        "key",
        "queue",
        "raw",
        "redeclared",
        "returned",
    )

    def __init__(
        self, batch: "Batch", index: int, target: tuple[str, str, str, int], raw: bytes, body: bytes
    ) -> None:
        self.batch = batch
        self.index = index
        self.exchange, self.key, self.queue, self.bucket = target
        self.raw = raw
        self.body = body
        self.returned = ""
        self.redeclared = False

    @property
    def target(self) -> tuple[str, int]:
        """What must be declared before it is sent."""
        return self.queue, self.bucket

    def merge(self) -> None:
        """Send it to the queue itself, whose high part cannot be had."""
        self.queue, self.key = base_part(self.queue), base_part(self.key)

    @property
    def done(self) -> bool:
        """Whether nothing more needs to be done about it."""
        return self.batch.is_done(self.index)

    @property
    def task_id(self) -> str:
        """Id of its task."""
        return self.batch.ids[self.index]

    def confirm(self) -> None:
        """It is durable at the broker."""
        self.batch.settle(self.index, None)

    def fail(self, reason: str, detail: str) -> None:
        """It was not confirmed and will not be tried again."""
        self.batch.settle(self.index, PublishError(self.task_id, reason, detail))


class Batch:
    """A `Publishing`. Its messages are settled on the I/O thread.

    Attributes:
        ids: Task id of each message.
        timeout_s: How long it may take.
        deadline_s: When it ends at the latest, on the monotonic clock.
        timer: Ends it at the deadline.
    """

    def __init__(self, ids: Sequence[str], timeout_s: float) -> None:
        self.ids = ids
        self.timeout_s = timeout_s
        self.deadline_s = clock.monotonic_s() + timeout_s
        self.timer: asyncio.TimerHandle | None = None
        self._errors: list[PublishError | None] = [None] * len(ids)
        self._open = set(range(len(ids)))
        self._future: Future[list[PublishError | None]] = Future()
        if not ids:
            self._future.set_result([])

    def is_done(self, index: int) -> bool:
        """Return whether a message is settled."""
        return index not in self._open

    def settle(self, index: int, error: PublishError | None) -> None:
        """Note how a message ended; only the first call for it counts."""
        if index not in self._open:
            return
        self._open.discard(index)
        self._errors[index] = error
        if not self._open and not self._future.done():
            if self.timer is not None:
                self.timer.cancel()
            self._future.set_result(self._errors)

    def fail_rest(self, reason: str, detail: str) -> None:
        """Settle all messages that are open."""
        for index in list(self._open):
            self.settle(index, PublishError(self.ids[index], reason, detail))

    def _late(self) -> list[PublishError | None]:
        detail = "the sending thread of this process did not run in time"
        left = set(self._open)
        return [
            PublishError(self.ids[index], "timeout", detail) if index in left else error
            for index, error in enumerate(self._errors)
        ]

    def _patience_s(self) -> float:
        return max(self.deadline_s - clock.monotonic_s(), 0) + _LATE_S

    def wait(self) -> list[PublishError | None]:
        """See `Publishing`."""
        try:
            return self._future.result(self._patience_s())
        except FutureTimeout:
            return self._late()

    async def wait_async(self) -> list[PublishError | None]:
        """See `Publishing`."""
        future = asyncio.shield(asyncio.wrap_future(self._future))
        try:
            return await asyncio.wait_for(future, self._patience_s())
        except TimeoutError:
            return self._late()


def prepare(
    outgoing: Sequence[Outgoing], timeout_s: float, topology: Topology
) -> tuple[Batch, list[Item]]:
    """Encode messages in the sender's thread; those that cannot be sent fail at once."""
    batch = Batch([item.message.id for item in outgoing], timeout_s)
    items: list[Item] = []
    now_ms = clock.now_ms()
    for index, one in enumerate(outgoing):
        target = _target(one, now_ms, topology)
        try:
            raw = amqp_properties.encode(one.message)
        except (EncodeError, UnicodeEncodeError) as error:
            batch.settle(index, PublishError(one.message.id, "refused", str(error)))
            continue
        item = Item(batch, index, target, raw, one.message.body)
        oversize = _oversize(item)
        if oversize:
            item.fail("refused", oversize)
        else:
            items.append(item)
    return batch, items


def _target(one: Outgoing, now_ms: int, topology: Topology) -> tuple[str, str, str, int]:
    """Return (exchange, routing key, work queue to declare, delay bucket to declare)."""
    if one.topic:
        return topology.on_broker(one.queue) if one.queue else "", one.topic, one.queue, TOPIC
    if one.dead:
        return topology.dead, topology.on_broker(one.queue), DEAD_QUEUE, 0
    queue = topology.part_for(one.queue, one.message.priority)
    name = topology.on_broker(queue)
    delay_ms = one.due_ms - now_ms if one.due_ms else 0
    bucket = bucket_ms(delay_ms) if delay_ms >= MIN_DELAY_MS else 0
    return topology.delay(bucket) if bucket else "", name, queue, bucket


def _oversize(item: Item) -> str:
    # The broker would close the connection, and with it everyone else's sends, again and again.
    if len(item.raw) + _FRAME_AND_HEADER_BYTES > MAX_FRAME_BYTES:
        return (
            f"headers and properties take {len(item.raw):,} bytes; "
            f"they must fit in one frame of {MAX_FRAME_BYTES:,}"
        )
    if len(item.body) > MAX_BODY_BYTES:
        return f"the body takes {len(item.body):,} bytes, over the limit of {MAX_BODY_BYTES:,}"
    return ""


def prepare_reply(address: str, raw: bytes, body: bytes, timeout_s: float) -> Item:
    """Return a message to a reply address; nobody waits for its confirm."""
    return Item(Batch([""], timeout_s), 0, ("", address, *NOTHING_TO_DECLARE), raw, body)
