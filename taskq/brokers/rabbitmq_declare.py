"""Declaring taskq's objects on a RabbitMQ connection, and coping with what is there already."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

from taskq.brokers.amqp_session import (
    ACCESS_REFUSED,
    NOT_FOUND,
    PRECONDITION_FAILED,
    ChannelClosed,
    Session,
    open_session,
)
from taskq.brokers.base import DEAD_QUEUE, Declare
from taskq.brokers.rabbitmq_batch import TOPIC
from taskq.brokers.shapes import base_part, high_part, parse_shard, shards_changed
from taskq.brokers.topology import Exchange, Queue, Topology, readable_mismatch
from taskq.errors import ConfigError, TopologyMismatch
from taskq.topics import TOPICS, Binding

log = logging.getLogger("taskq.broker")

REPLY_TIMEOUT_S: Final = 5.0
"""How long one declaration may take; sends to the queue wait for it meanwhile."""


class Declarer:
    """Declares on channels of its own, because a refused declaration closes its channel.

    Attributes:
        adopted: {queue on the broker: how it differs} of work queues that someone else declared.
        strict_arguments: Whether a `taskq.*` object with other arguments is an error, whatever
            `strict` says of missing permissions.
    """

    def __init__(
        self,
        connection: Any,
        loop: asyncio.AbstractEventLoop,
        topology: Topology,
        declare: Declare,
        warned: set[str],
        strict: bool = False,
    ) -> None:
        """Prepare.

        Args:
            connection: An open connection.
            loop: The running loop.
            topology: What to declare.
            declare: How; see `BrokerOptions`.
            warned: What was warned about already; shared by all connections of a broker.
            strict: Whether a `taskq.*` object with other arguments is an error or only a warning.
        """
        self.adopted: dict[str, str] = {}
        self.strict_arguments = strict
        self._connection = connection
        self._loop = loop
        self._topology = topology
        self._declare = declare
        self._warned = warned
        self._strict = strict
        self._session: Session | None = None
        self._lock = asyncio.Lock()
        self._based = False
        self._merged: set[str] = set()
        self._sharded: set[str] = set()

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of a channel; after a refusal the next call gets a fresh channel.

        Raises:
            ChannelClosed: If the broker refuses or does not answer, or the connection is lost.
        """
        # One at a time: a refusal closes the channel, and would be taken for the answer to all
        # that is under way there.
        async with self._lock:
            session = self._session
            if session is None or not session.channel.is_open:
                session = await open_session(self._connection, self._loop, REPLY_TIMEOUT_S)
                self._session = session
            try:
                return await session.call(method, *args, **kwargs)
            except ChannelClosed as refused:
                if not refused.code:
                    # What was not answered holds up all that follows on its channel.
                    self._session = None
                raise

    async def close(self) -> None:
        """Close the channel, if there is one."""
        if self._session is not None:
            await self._session.close()

    def forget(self) -> None:
        """Declare everything again when it is asked for next."""
        self._based = False

    async def target(self, queue: str, bucket: int) -> tuple[str, int]:
        """Declare what a message needs on its way; see `rabbitmq_batch.Item`.

        Returns:
            The same, or with another queue where the one that was asked for cannot be had.

        Raises:
            ConfigError: If something does not exist and may not be created.
            ChannelClosed: If the broker refuses for another reason.
        """
        if bucket == TOPIC:
            await self.topic(queue)
            return queue, bucket
        queue = await self._sendable(queue)
        if bucket:
            await self.bucket(bucket)
        return queue, bucket

    async def topic(self, exchange: str) -> None:
        """Make a topic exchange usable; `exchange` is its name without prefix.

        Raises:
            ConfigError: If it does not exist and may not be created.
        """
        item = self._topology.topic_exchange(exchange)
        if self._declare == "create":
            try:
                await self._declare_exchange(item)
                return
            except ChannelClosed as refused:
                # One of another kind is checked below, too: what matters is that it exists.
                if refused.code not in (ACCESS_REFUSED, PRECONDITION_FAILED):
                    raise
        try:
            # Publishing to a missing exchange would cost everyone else's sends their channel.
            await self.call("exchange_declare", item.name, passive=True)
        except ChannelClosed as refused:
            if not refused.code:
                raise
            raise ConfigError(f"there is no exchange {item.name} to publish to") from refused

    async def own_queue(self, item: Queue) -> None:
        """Declare a `taskq.*` queue and bind it.

        Raises:
            TopologyMismatch: If it exists with other arguments, and this declarer is strict.
            ConfigError: If it does not exist and may not be created.
        """
        if self._declare != "create":
            await self._check(item.name)
            return
        await self._own(lambda: self._declare_queue(item))
        await self._own(lambda: self.call("queue_bind", item.name, item.exchange, item.key))

    async def work_queue(self, queue: str) -> None:
        """Make a work queue usable; `queue` is its name without prefix.

        Raises:
            ConfigError: If it does not exist and may not be created.
            ChannelClosed: If the broker refuses for another reason.
        """
        if self._declare == "never":
            return
        item = self._topology.work_queue(queue)
        if self._declare == "passive":
            await self._check(item.name)
            return
        await self.base()
        shard = parse_shard(queue)
        if shard is not None:
            await self._claim_shards(shard[0], shard[1])
        try:
            await self._declare_queue(item)
        except ChannelClosed as refused:
            await self._adopt(item, refused)
        try:
            await self.call("queue_bind", item.name, item.exchange, item.key)
        except ChannelClosed as refused:
            if refused.code != ACCESS_REFUSED:
                raise
            self._warn(f"may not bind queue={item.name}, so it gets no delayed tasks: {refused}")
        binding = self._topology.bindings.get(queue)
        if binding is not None:
            await self._subscribe(item.name, binding)

    async def _subscribe(self, name: str, binding: Binding) -> None:
        """Bind a subscriber's queue to what is published."""
        topics = self._topology.topic_exchange(TOPICS)
        await self._own(lambda: self._declare_exchange(topics))
        if binding.headers is None:
            await self._own(lambda: self.call("queue_bind", name, topics.name, binding.pattern))
            return
        matching = self._topology.headers_exchange()
        await self._own(lambda: self._declare_exchange(matching))
        await self._own(lambda: self.call("exchange_bind", matching.name, topics.name, "#"))
        wanted = dict(binding.headers)
        await self._own(lambda: self.call("queue_bind", name, matching.name, "", arguments=wanted))

    async def _sendable(self, name: str) -> str:
        """Make a queue usable, and return its name, or the queue's itself for its high part.

        A queue that someone else declared is used as it is, for its other users do not know of a
        high part; and where nothing may be declared nobody knows whether there is one.
        """
        if name == DEAD_QUEUE:
            await self.base()
            return name
        queue = base_part(name)
        if name in self._merged:
            return queue
        await self.work_queue(queue)
        if queue == name:
            return name
        if self._declare != "create" or self._topology.on_broker(queue) in self.adopted:
            self._merged.add(name)
            return queue
        await self.work_queue(name)
        return name

    async def parts(self, queue: str) -> list[str]:
        """Make a work queue usable; return where its messages are: its high part first.

        A part that others made is worked off too, whatever is known here of the queue.
        """
        high = high_part(queue)
        wanted = high if self._topology.splits(queue) else queue
        if await self._sendable(wanted) == high or await self._has_part(queue, high):
            return [high, queue]
        return [queue]

    async def _has_part(self, queue: str, high: str) -> bool:
        if not self._topology.can_split(queue):
            return False
        try:
            await self.call("queue_declare", self._topology.on_broker(high), passive=True)
        except ChannelClosed as refused:
            if refused.code in (NOT_FOUND, ACCESS_REFUSED):
                return False
            raise
        return True

    async def _claim_shards(self, queue: str, count: int) -> None:
        if queue in self._sharded:
            return
        exchange = self._topology.shards_exchange(queue, count)
        try:
            await self._declare_exchange(exchange)
        except ChannelClosed as refused:
            if refused.code != PRECONDITION_FAILED:
                raise
            raise shards_changed(queue, count, counted_shards(refused.text)) from refused
        self._sharded.add(queue)

    async def _adopt(self, item: Queue, refused: ChannelClosed) -> None:
        if refused.code == PRECONDITION_FAILED:
            difference = readable_mismatch(refused.text)
            self.adopted[item.name] = difference
            self._warn(f"using a queue that was declared elsewhere: {difference}")
            return
        if refused.code == ACCESS_REFUSED:
            # A user without the right to configure can still use what exists.
            await self._check(item.name)
            return
        raise refused

    async def _check(self, name: str) -> None:
        try:
            await self.call("queue_declare", name, passive=True)
        except ChannelClosed as refused:
            if refused.code != NOT_FOUND:
                raise
            raise ConfigError(
                f"there is no queue {name} on the broker; "
                "create it (taskq topology apply), or let taskq do it: declare='create'"
            ) from refused

    async def base(self) -> None:
        """Declare the dead letters and the exchange where delays end."""
        if self._based or self._declare == "never":
            return
        topology = self._topology
        dead, due = topology.dead_queue(), topology.due_exchange()
        if self._declare == "passive":
            await self._check(dead.name)
            return
        await self._own(lambda: self._declare_exchange(topology.dead_exchange()))
        await self._own(lambda: self._declare_queue(dead))
        await self._own(lambda: self.call("queue_bind", dead.name, dead.exchange, dead.key))
        await self._own(lambda: self._declare_exchange(due))
        self._based = True

    async def bucket(self, bucket_ms: int) -> None:
        """Declare the exchange and the queue of one delay of the grid."""
        if self._declare == "never":
            return
        queue = self._topology.delay_queue(bucket_ms)
        if self._declare == "passive":
            await self._check(queue.name)
            return
        await self.base()
        await self._own(lambda: self._declare_exchange(self._topology.delay_exchange(bucket_ms)))
        await self._own(lambda: self._declare_queue(queue))
        await self._own(lambda: self.call("queue_bind", queue.name, queue.exchange, queue.key))

    async def replay(self) -> None:
        """Declare the exchange and the queue that replayed letters pass through."""
        queue = self._topology.replay_queue()
        if self._declare != "create":
            await self._check(queue.name)
            return
        await self.base()
        await self._own(lambda: self._declare_exchange(self._topology.replay_exchange()))
        await self._own(lambda: self._declare_queue(queue))
        await self._own(lambda: self.call("queue_bind", queue.name, queue.exchange, queue.key))

    async def control(self) -> bool:
        """Declare the exchange of control requests; return whether it can be used."""
        exchange = self._topology.control_exchange()
        try:
            if self._declare == "create":
                await self._declare_exchange(exchange)
            else:
                await self.call("exchange_declare", exchange.name, passive=True)
        except ChannelClosed as refused:
            if not refused.code:
                raise
            log.info("no control requests on this broker: %s", refused)
            return False
        return True

    async def _declare_exchange(self, item: Exchange) -> None:
        await self.call(
            "exchange_declare", item.name, item.kind, durable=True, arguments=dict(item.arguments)
        )

    async def _declare_queue(self, item: Queue) -> None:
        await self.call("queue_declare", item.name, durable=True, arguments=dict(item.arguments))

    async def _own(self, step: Callable[[], Awaitable[Any]]) -> None:
        """Run one declaration of a `taskq.*` object."""
        try:
            await step()
        except ChannelClosed as refused:
            if refused.code == PRECONDITION_FAILED:
                difference = readable_mismatch(refused.text)
                if self.strict_arguments:
                    raise TopologyMismatch(
                        f"{difference}; delete it when it is empty, change the setting back, "
                        "or use another prefix"
                    ) from refused
                self._warn(f"broker object differs: {difference}")
            elif refused.code == ACCESS_REFUSED and not self._strict:
                self._warn(f"may not declare: {refused.text}")
            else:
                raise

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            log.warning("%s", text)


_SHARDS = re.compile(r"current is [^\n]*\.shards\.(\d+)'")


def counted_shards(reply: str) -> int:
    """Return the number of shards in RabbitMQ's refusal of another; 0 where it says none."""
    found = _SHARDS.search(reply)
    return int(found[1]) if found is not None else 0
