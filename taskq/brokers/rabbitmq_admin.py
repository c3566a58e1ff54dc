"""Looking at a RabbitMQ broker without the management plugin."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from taskq.brokers.amqp_connection import StockConnection
from taskq.brokers.amqp_session import (
    ACCESS_REFUSED,
    NOT_FOUND,
    ChannelClosed,
    Session,
    open_session,
)
from taskq.brokers.base import DEAD_QUEUE, Check, QueueDepth
from taskq.brokers.rabbitmq_counts import count
from taskq.brokers.rabbitmq_declare import Declarer
from taskq.brokers.shapes import high_part
from taskq.brokers.topology import GRID, Topology
from taskq.errors import ConfigError, TopologyMismatch

OLDEST_VERSION: Final = (3, 10)
_BLOCKED_PROBE_S: Final = 0.3


class Probe:
    """Asks for queues; a missing one closes the channel, so it opens another."""

    def __init__(self, connection: StockConnection, loop: asyncio.AbstractEventLoop) -> None:
        self._connection = connection
        self._loop = loop
        self._session: Session | None = None

    async def depth(self, name: str) -> QueueDepth | None:
        """Return the depth of a queue, None when there is none of that name."""
        if self._session is None:
            self._session = await open_session(self._connection, self._loop)
        try:
            counts = await count(self._session, name)
        except ChannelClosed as refused:
            self._session = None
            if refused.code != NOT_FOUND:
                raise
            return None
        return QueueDepth(counts.ready, consumers=counts.consumers)


async def depth_of(probe: Probe, topology: Topology, queue: str) -> QueueDepth | None:
    """Return the depth of a queue together with its high part; None when there is none."""
    own = await probe.depth(topology.on_broker(queue))
    if own is None or queue == DEAD_QUEUE or not topology.can_split(queue):
        return own
    high = await probe.depth(topology.on_broker(high_part(queue)))
    return own if high is None else QueueDepth(own.ready + high.ready, consumers=own.consumers)


async def due_within(
    connection: StockConnection,
    loop: asyncio.AbstractEventLoop,
    topology: Topology,
    horizon_s: float,
) -> int:
    """Return how many messages wait in the delay queues that end within the horizon."""
    probe = Probe(connection, loop)
    total = 0
    for bucket in GRID:
        if bucket > horizon_s * 1000:
            break
        depth = await probe.depth(topology.delay(bucket))
        total += depth.ready if depth else 0
    return total


async def purge(
    connection: StockConnection, loop: asyncio.AbstractEventLoop, topology: Topology, queue: str
) -> int:
    """Delete what is ready in a queue and its high part; return how many messages that were.

    Raises:
        ConfigError: If there is no such queue.
    """
    purged = await _purge(connection, loop, topology.on_broker(queue))
    high = topology.on_broker(high_part(queue))
    splits = queue != DEAD_QUEUE and topology.can_split(queue)
    if splits and await Probe(connection, loop).depth(high) is not None:
        purged += await _purge(connection, loop, high)
    return purged


async def _purge(connection: StockConnection, loop: asyncio.AbstractEventLoop, name: str) -> int:
    session = await open_session(connection, loop)
    try:
        reply = await session.call("queue_purge", name)
    except ChannelClosed as refused:
        if refused.code != NOT_FOUND:
            raise
        raise ConfigError(f"there is no queue {name} on the broker") from refused
    return int(reply.message_count)


async def checks(
    connection: StockConnection,
    loop: asyncio.AbstractEventLoop,
    topology: Topology,
    declarer: Declarer,
    queues: Sequence[str],
) -> list[Check]:
    """Examine a broker that answers."""
    return [
        Check("broker.reachable", "ok", f"connected to {connection.params.host}"),
        check_version(str((connection.server_properties or {}).get("version", ""))),
        await _dead_letters(declarer),
        await _queues(declarer, queues),
        await _blocked(connection, loop),
    ]


def check_version(text: str) -> Check:
    """Examine what a broker says is its version."""
    numbers = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    if numbers >= OLDEST_VERSION:
        return Check("broker.version", "ok", f"RabbitMQ {text}")
    oldest = ".".join(map(str, OLDEST_VERSION))
    return Check(
        "broker.version",
        "failed",
        f"RabbitMQ {text or 'of unknown version'}",
        f"use RabbitMQ {oldest} or newer: quorum queues there dead-letter at least once",
    )


async def _dead_letters(declarer: Declarer) -> Check:
    name = "broker.dead-letters"
    try:
        await declarer.base()
    except TopologyMismatch as error:
        return Check(name, "failed", str(error), "see the detail")
    except (ConfigError, ChannelClosed) as error:
        return _refused(name, error)
    return Check(name, "ok", "the queue of dead letters and its exchanges are there")


async def _queues(declarer: Declarer, queues: Sequence[str]) -> Check:
    name = "broker.queue-arguments"
    try:
        for queue in queues:
            await declarer.work_queue(queue)
    except (ConfigError, ChannelClosed) as error:
        return _refused(name, error)
    if declarer.adopted:
        return Check(
            name,
            "warning",
            "; ".join(declarer.adopted.values()),
            "taskq uses these queues as they are; without dead-lettering and delivery limit of "
            "their own. To change that, delete them when they are empty",
        )
    return Check(name, "ok", f"{len(queues)} queues")


def _refused(name: str, error: Exception) -> Check:
    if isinstance(error, ChannelClosed) and error.code == ACCESS_REFUSED:
        advice = "give the user the right to configure, or create the objects as another user"
        return Check("broker.permissions", "failed", str(error), advice)
    advice = "run `taskq topology apply`, or set declare to 'create'"
    return Check(name, "failed", str(error), advice)


async def _blocked(connection: StockConnection, loop: asyncio.AbstractEventLoop) -> Check:
    """Publish to nowhere: RabbitMQ tells only publishers about its alarms."""
    blocked: asyncio.Future[str] = loop.create_future()

    def on_blocked(_: Any, frame: Any) -> None:
        if not blocked.done():
            blocked.set_result(str(frame.method.reason))

    connection.add_on_connection_blocked_callback(on_blocked)
    session = await open_session(connection, loop)
    session.channel.basic_publish("", "taskq.doctor.nowhere", b"")
    try:
        reason = await asyncio.wait_for(blocked, _BLOCKED_PROBE_S)
    except TimeoutError:
        return Check("broker.alarms", "ok", "RabbitMQ takes messages")
    return Check(
        "broker.alarms",
        "failed",
        f"RabbitMQ takes no messages: {reason}",
        "free memory or disk on the broker, or raise its limits",
    )
