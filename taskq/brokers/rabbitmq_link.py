"""One queue of a consumer: its channel, its credit, and which deliveries are settled."""

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

from taskq.brokers.amqp_connection import StockConnection
from taskq.brokers.amqp_session import Session, open_session
from taskq.brokers.shapes import parse_shard


class Ledger:
    """Which delivery tags of one channel are settled; pure.

    `floor` is the highest tag up to which everything is settled, so that one acknowledgement with
    `multiple` covers them all.
    """

    def __init__(self) -> None:
        self.floor = 0
        self.delivered = 0
        self._above: set[int] = set()

    @property
    def unsettled(self) -> int:
        """How many deliveries are in the worker's hands."""
        return self.delivered - self.floor - len(self._above)

    def note(self, tag: int) -> bool:
        """Note a delivery as settled; False when it is so already, or was never delivered."""
        if tag <= self.floor or tag > self.delivered or tag in self._above:
            return False
        self._above.add(tag)
        return True

    def advance(self) -> int:
        """Raise the floor as far as it goes, and return it."""
        above, floor = self._above, self.floor
        while floor + 1 in above:
            floor += 1
            above.remove(floor)
        self.floor = floor
        return floor


class Link:
    """Consumes one queue on one channel.

    Attributes:
        queue: Its name without prefix.
        ledger: Its settlements.
        ordered: Whether it is a shard: one message at a time, and none overtakes another.
        left: Whether it closed its channel and is to be replaced.
        task: What grants its credit now, or did last.
        name: The queue's name on the broker.
    """

    def __init__(
        self,
        connection: StockConnection,
        session: Session,
        queue: str,
        name: str,
        receive: Callable[["Link", int, bool, bytes, bytes], None],
        ordered: bool = False,
    ) -> None:
        self.queue = queue
        self.ordered = ordered
        self.left = False
        self.task: asyncio.Task[None] | None = None
        self.name = name
        self.ledger = Ledger()
        self._connection = connection
        self._session = session
        self._receive = receive
        self._tag = ""
        self._granted = 0
        self._wanted = 0
        self._done: list[int] = []
        self._returned: list[int] = []
        self._moved = asyncio.Event()
        self._lock = asyncio.Lock()

    def deliver(self, tag: int, redelivered: bool, raw: bytes, body: bytes) -> None:
        """Take one delivery from the connection."""
        if self.left:
            # The closing channel takes it back, to be the first of the next one.
            return
        self.ledger.delivered = tag
        self._receive(self, tag, redelivered, raw, body)

    def wish(self, prefetch: int) -> None:
        """Say what `grant` shall end with: so many unsettled messages, 0 for none."""
        self._wanted = prefetch
        self._moved.set()

    @property
    def satisfied(self) -> bool:
        """Whether it consumes with what was wished for last."""
        return self._granted == self._wanted

    async def grant(self) -> None:
        """Consume with as many unsettled messages as was wished for.

        The credit of a running consumer cannot be changed, so another takes its place on the same
        channel; what is under way to the old one still counts as delivered. The new one
        waits until the worker holds less than its credit.

        Raises:
            ChannelClosed: If the channel ends meanwhile.
        """
        async with self._lock:
            while not self.satisfied:
                await self._swap()

    async def _swap(self) -> None:
        wanted = self._wanted
        if self._tag and self.ordered:
            if not wanted:
                await self._leave()
            else:
                self._granted = wanted
            return
        if self._tag:
            tag, self._tag, self._granted = self._tag, "", 0
            await self._session.call("basic_cancel", tag)
            self._connection.forget(self._session.channel, tag)
        if not wanted:
            return
        while self.ledger.unsettled >= wanted == self._wanted:
            self._moved.clear()
            await self._moved.wait()
        if wanted != self._wanted:
            return
        await self._session.call("basic_qos", prefetch_count=1 if self.ordered else wanted)
        self._tag, self._granted = f"taskq.{uuid.uuid4().hex}", wanted
        await self._consume(self._tag)

    async def _leave(self) -> None:
        """Close the channel once nothing is in hand: what arrives meanwhile goes back in order.

        A consumer that is only cancelled keeps what it holds while the next one goes on.
        """
        while self.ledger.unsettled and not self._wanted:
            self._moved.clear()
            await self._moved.wait()
        if not self._wanted:
            self.left, self._tag, self._granted = True, "", 0
            self.keep_order()
            await self._session.close()

    def keep_order(self) -> None:
        """Have a shard's channel close as it is: pika would cancel its consumer first.

        RabbitMQ makes another consumer the active one at the cancel, and returns what this one
        holds only at the close: the next task would overtake it.
        """
        if self.ordered:
            getattr(self._session.channel, "_consumers", {}).clear()

    async def _consume(self, tag: str) -> None:
        channel = self._session.channel

        def consume(callback: Callable[..., Any]) -> None:
            self._connection.consume(channel, self.name, tag, self.deliver, callback)

        await self._session.request(consume)

    def settle(self, tag: int, back: bool) -> None:
        """Settle one delivery with the next `flush`; of several settlements the first counts."""
        if self.ledger.note(tag):
            (self._returned if back else self._done).append(tag)

    def flush(self) -> None:
        """Acknowledge and give back what was settled; nothing when the channel is gone."""
        returned, self._returned = self._returned, []
        done, self._done = self._done, []
        channel = self._session.channel
        if not channel.is_open:
            return
        floor = self.ledger.advance()
        # First of all: the acknowledgement of a range would take these along.
        for tag in returned:
            channel.basic_nack(tag, requeue=True)
        upto = max((tag for tag in done if tag <= floor), default=0)
        if upto:
            self._connection.ack(channel, upto, multiple=True)
        for tag in done:
            if tag > floor:
                self._connection.ack(channel, tag)
        self._moved.set()


async def open_link(
    connection: StockConnection,
    loop: asyncio.AbstractEventLoop,
    queue: str,
    name: str,
    receive: Callable[[Link, int, bool, bytes, bytes], None],
    on_close: Callable[[str], None],
) -> Link:
    """Open the channel of one queue.

    Args:
        connection: An open connection.
        loop: The running loop.
        queue: Name without prefix.
        name: Name on the broker.
        receive: Called with each delivery.
        on_close: Called when channel or consumer ended, with the reason.
    """
    session = await open_session(connection, loop)
    link = Link(connection, session, queue, name, receive, parse_shard(queue) is not None)
    session.closed.add_done_callback(
        lambda done: None if link.left else on_close(str(done.result()))
    )
    session.channel.add_on_cancel_callback(
        lambda _: on_close(f"RabbitMQ cancelled the consumer of queue {name}; was it deleted?")
    )
    return link
