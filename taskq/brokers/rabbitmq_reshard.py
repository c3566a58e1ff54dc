"""Moving what waits in a queue's shards on RabbitMQ into another number of them."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from taskq.brokers.amqp_properties import read_message
from taskq.brokers.amqp_session import NOT_FOUND, PRECONDITION_FAILED, ChannelClosed, open_session
from taskq.brokers.base import Outgoing
from taskq.brokers.rabbitmq_admin import Probe
from taskq.brokers.rabbitmq_declare import Declarer, counted_shards
from taskq.brokers.shapes import shard_for, shard_name
from taskq.brokers.topology import Topology
from taskq.errors import ConfigError, PublishError
from taskq.message import SHARD_KEY, Message
from taskq.resend import strip_broker_headers

_PAGE: Final = 500
_IDLE_S: Final = 0.5

Pour = Callable[[str, Callable[[Message], Outgoing]], Awaitable[int]]
"""Empties a queue, given its name on the broker and where each message goes."""


class Layout:
    """What the broker knows of a queue's shards, on one connection.

    A marker exchange holds the number of shards, a second one the number before the last move.
    """

    def __init__(self, declarer: Declarer, topology: Topology, queue: str) -> None:
        self._declarer = declarer
        self._topology = topology
        self._queue = queue

    async def begin(self, count: int) -> list[str]:
        """Return the shards to move from, and note that the move begins.

        Those of the move before are among them: its senders may have been slow to hear of it.
        """
        before, there = await self._number("moving", 0), await self._number("shards", count)
        if there not in (0, count):
            if before:
                await self._declarer.call("exchange_delete", self._name("moving"))
            await self._declare("moving", there)
        numbers = dict.fromkeys(n for n in (before, there) if n not in (0, count))
        return [
            self._topology.on_broker(shard_name(self._queue, number, index))
            for number in numbers
            for index in range(number)
        ]

    async def change(self, count: int) -> None:
        """Say that there are so many from now on."""
        await self._declarer.call("exchange_delete", self._name("shards"))
        await self._declare("shards", count)

    async def redirect(self, old: list[str]) -> None:
        """Have what is delayed on its way to an old shard arrive in the queue's own name."""
        await self._declarer.work_queue(self._queue)
        own, due = self._topology.on_broker(self._queue), self._topology.due
        for name in old:
            await self._declarer.call("queue_bind", own, due, name)
            await self._declarer.call("queue_unbind", name, due, name)

    def _name(self, kind: str) -> str:
        return f"{self._topology.prefix}{self._queue}.{kind}"

    async def _declare(self, kind: str, count: int) -> None:
        arguments = self._topology.shards_exchange(self._queue, count).arguments
        name = self._name(kind)
        await self._declarer.call(
            "exchange_declare", name, "fanout", durable=True, arguments=dict(arguments)
        )

    async def _number(self, kind: str, count: int) -> int:
        """Return a marker's number, 0 when there is no such marker."""
        try:
            await self._declarer.call("exchange_declare", self._name(kind), passive=True)
            await self._declare(kind, count)
        except ChannelClosed as refused:
            if refused.code == NOT_FOUND:
                return 0
            if refused.code != PRECONDITION_FAILED:
                raise
            return counted_shards(refused.text)
        return count


async def reshard(
    layout: Layout, probe: Probe, pour: Pour, topology: Topology, queue: str, count: int
) -> int:
    """Say that a queue has another number of shards, then move what waits in the old ones.

    Each is emptied from its oldest message on, so equal keys keep their order. The old shards stay,
    empty, for RabbitMQ deletes no quorum queue on condition that nothing is in it. Run again, this
    takes up a move that was cut off, and what a sender that had not heard of it sent there.

    Args:
        layout: Of the queue.
        probe: Asks for depths.
        pour: Empties a queue.
        topology: Names.
        queue: Name without prefix.
        count: The new number of shards.

    Raises:
        ConfigError: If workers still consume the old ones.
        PublishError: If a message was not confirmed in its new place; it is still in the old one.
    """
    names = []
    for name in await layout.begin(count):
        depth = await probe.depth(name)
        if depth is not None and depth.consumers > 0:
            raise ConfigError(
                f"workers still consume queue {queue}; stop them, then run this again"
            )
        if depth is not None:
            names.append(name)
    if names:
        await layout.change(count)
        await layout.redirect(names)

    def place(message: Message) -> Outgoing:
        key = message.headers.get(SHARD_KEY)
        shard = shard_for(queue, key if isinstance(key, str) else message.id, count)
        return Outgoing(shard, _fresh(message))

    return sum([await pour(name, place) for name in names])


async def pour_out(
    connection: Any,
    loop: asyncio.AbstractEventLoop,
    publish: Callable[[Sequence[Outgoing]], Sequence[PublishError | None]],
    name: str,
    place: Callable[[Message], Outgoing],
) -> int:
    """Send everything in a queue somewhere else, in order; return how many messages.

    Args:
        connection: Of its own.
        loop: The running loop.
        publish: Sends and waits; called on another thread.
        name: The queue's name on the broker.
        place: Says where a message goes.

    Raises:
        PublishError: If one was not confirmed; it and what is behind it stay.
    """
    session, probe = await open_session(connection, loop), Probe(connection, loop)
    arrived: list[tuple[int, bytes, bytes]] = []
    more = asyncio.Event()

    def on_delivery(tag: int, _: bool, raw: bytes, body: bytes) -> None:
        arrived.append((tag, raw, body))
        more.set()

    def consume(callback: Any) -> None:
        connection.consume(session.channel, name, "taskq.reshard", on_delivery, callback)

    await session.call("basic_qos", prefetch_count=_PAGE)
    await session.request(consume)
    moved = 0
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(more.wait(), _IDLE_S)
        more.clear()
        batch = arrived[:]
        arrived.clear()
        if batch:
            sent = [place(read_message(raw, body)[0]) for _, raw, body in batch]
            errors = await asyncio.to_thread(publish, sent)
            for error in errors:
                if error is not None:
                    raise error
            connection.ack(session.channel, batch[-1][0], multiple=True)
            moved += len(batch)
            continue
        depth = await probe.depth(name)
        if depth is None or not depth.ready:
            await session.close()
            return moved


def _fresh(message: Message) -> Message:
    return message._replace(headers=strip_broker_headers(message.headers))
