"""The consuming connection of a worker, on the worker's own loop."""

import asyncio
import contextlib
import logging
import random
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from pika.exceptions import AMQPError

from taskq.brokers.amqp_connection import StockConnection
from taskq.brokers.amqp_layouts import Layouts
from taskq.brokers.amqp_session import (
    ACCESS_REFUSED,
    AccessDenied,
    ChannelClosed,
    abort,
    close,
    connect,
)
from taskq.brokers.amqp_url import Endpoint
from taskq.brokers.base import Consumer, Delivery, Sink
from taskq.brokers.rabbitmq_control import ControlListener
from taskq.brokers.rabbitmq_declare import Declarer
from taskq.brokers.rabbitmq_link import Link, open_link
from taskq.brokers.topology import Topology
from taskq.errors import BrokerError, ConfigError

log = logging.getLogger("taskq.broker")

FIRST_BACKOFF_S: Final = 0.2
MAX_BACKOFF_S: Final = 4.0
"""A worker consumes again within 5 s of the moment in which the broker takes connections."""
CLOSE_TIMEOUT_S: Final = 2.0
SETUP_TIMEOUT_S: Final = 30.0

Receipt = tuple[int, Link, int]
"""(generation of the connection, link, delivery tag)."""

Reply = Callable[[str, bytes, bytes], None]


class RabbitConsumer(Consumer):
    """See `Consumer`. Channels are rebuilt with their connection; receipts are void then."""

    def __init__(
        self,
        endpoints: list[Endpoint],
        topology: Topology,
        make_declarer: Callable[[Any, asyncio.AbstractEventLoop], Declarer],
        reply: Reply,
        queues: Sequence[str],
        prefetch: int,
        sink: Sink,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Prepare.

        Args:
            endpoints: Tried in order.
            topology: Names of queues.
            make_declarer: Makes the declarer of a new connection.
            reply: Sends the answer to a control request: (address, raw properties, body).
            queues: See `Broker.consumer`.
            prefetch: See `Broker.consumer`.
            sink: See `Broker.consumer`.
            loop: See `Broker.consumer`.
        """
        self._endpoints = endpoints
        self._topology = topology
        self._make_declarer = make_declarer
        self._reply = reply
        self._queues = list(queues)
        self._prefetch = prefetch
        self._sink = sink
        self._loop = loop
        self._task: asyncio.Task[None] | None = None
        self._connection: StockConnection | None = None
        self._links: list[Link] = []
        self._generation = 0
        self._batch: list[Delivery] = []
        self._read_message = Layouts().read
        self._paused = False
        self._held_back: frozenset[str] = frozenset()
        self._was_up = False
        self._closed = False
        self._end: Callable[[str], None] = lambda why: None
        self._lock = threading.Lock()
        self._settled: list[tuple[Sequence[Any], Sequence[Any]]] = []

    # The contract

    def start(self) -> None:
        """See `Consumer`."""
        if self._task is None and not self._closed:
            self._task = self._loop.create_task(self._run())

    def resize(self, prefetch: int) -> None:
        """See `Consumer`."""
        if prefetch != self._prefetch:
            self._prefetch = prefetch
            self._adjust()

    def pause(self) -> None:
        """See `Consumer`."""
        if not self._paused:
            self._paused = True
            self._adjust()

    def resume(self) -> None:
        """See `Consumer`."""
        if self._paused:
            self._paused = False
            self._adjust()

    def hold(self, queues: Collection[str]) -> None:
        """See `Consumer`."""
        self._held_back = frozenset(queues)
        self._adjust()

    def rebuild(self) -> None:
        """See `Consumer`."""
        self._end("nothing was delivered though messages wait")

    def settle(self, done: Sequence[Any], returned: Sequence[Any] = ()) -> None:
        """See `Consumer`."""
        with self._lock:
            first = not self._settled
            self._settled.append((done, returned))
        if first:
            # The loop of a worker that has stopped is closed; its deliveries went back already.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._flush)

    async def close(self) -> None:
        """See `Consumer`."""
        if self._closed:
            return
        self._closed = True
        self._flush()
        self._batch.clear()
        connection = self._connection
        for task in (self._task, *[link.task for link in self._links]):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task
        for link in self._links:
            link.keep_order()
        if connection is not None:
            await close(connection)
        self._forget_connection()

    # Connecting

    async def _run(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while True:
            try:
                why, was_up = await self._consume_once()
                backoff_s = FIRST_BACKOFF_S if was_up else backoff_s
            except (BrokerError, AMQPError, TimeoutError) as error:
                why = str(error) or "RabbitMQ did not answer in time"
            except ConfigError as error:
                if not self._was_up:
                    self._sink.fatal(error)
                    return
                why = str(error)
            self._sink.connection(False, why)
            # Jitter keeps a fleet from coming back in the same instant.
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
            backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)

    async def _consume_once(self) -> tuple[str, bool]:
        """Connect and consume until the connection ends; return (why it ended, was it up)."""
        lost: asyncio.Future[str] = self._loop.create_future()

        def end(why: str) -> None:
            # The connection, a channel or a consumer ended: all is rebuilt.
            if not lost.done():
                lost.set_result(why)

        self._end = end
        connection, endpoint = await connect(self._endpoints, self._loop, end)
        self._connection = connection
        self._generation += 1
        up = False
        try:
            # Not wait_for: in Python 3.11 it swallows the cancellation by a `close` that comes in
            # the moment in which the setup is done, and `close` would wait for this task for ever.
            async with asyncio.timeout(SETUP_TIMEOUT_S):
                await self._set_up(connection)
            if not lost.done():
                self._was_up = up = True
                self._sink.connection(True, f"consuming from {endpoint.masked}")
            return await lost, up
        except ChannelClosed as refused:
            if refused.code == ACCESS_REFUSED:
                raise AccessDenied(f"RabbitMQ refused: {refused}") from refused
            raise
        finally:
            if not self._closed:
                had_links = bool(self._links)
                self._forget_connection()
                abort(connection)
                if had_links:
                    self._sink.lost()

    async def _set_up(self, connection: StockConnection) -> None:
        declarer = self._make_declarer(connection, self._loop)
        # A worker refuses to start on dead letters or delays that work otherwise; one that runs
        # already goes on.
        declarer.strict_arguments = not self._was_up
        parts = {queue: await declarer.parts(queue) for queue in self._queues}
        if await declarer.control():
            listener = ControlListener(self._sink, self._reply)
            await listener.start(connection, self._loop, self._topology.control)
        await declarer.close()
        self._links = [
            await self._open(queue, self._topology.on_broker(name))
            for queue, names in parts.items()
            for name in names
        ]
        for link, share in self._wishes():
            link.wish(share)
        await asyncio.gather(*[link.grant() for link in self._links])

    def _forget_connection(self) -> None:
        # Receipts of this generation are void from here on.
        self._generation += 1
        self._connection = None
        for link in self._links:
            if link.task is not None:
                link.task.cancel()
        self._links = []
        self._batch.clear()

    # Credit

    def _adjust(self) -> None:
        for link, share in self._wishes():
            link.wish(share)
            # Each for itself: a shard that waits for its task must not keep the others waiting.
            if not link.satisfied and (link.task is None or link.task.done()):
                link.task = self._loop.create_task(self._serve(link))

    def _wishes(self) -> list[tuple[Link, int]]:
        # Each queue gets all of it, for credit cannot be shared between queues: with a share each,
        # a worker of six slots on two queues would run three tasks at once when one is empty.
        share, held_back = 0 if self._paused else self._prefetch, self._held_back
        return [(link, 0 if link.queue in held_back else share) for link in self._links]

    async def _serve(self, link: Link) -> None:
        # The end of the connection is reported by its own callback, and all is granted again.
        with contextlib.suppress(BrokerError, AMQPError):
            if link.left:
                link = await self._replaced(link)
            await link.grant()

    async def _replaced(self, left: Link) -> Link:
        """Return a new link in the place of one that closed its channel."""
        link = await self._open(left.queue, left.name)
        if left in self._links:
            self._links[self._links.index(left)] = link
        link.task = left.task
        link.wish(dict(self._wishes()).get(link, 0))
        return link

    async def _open(self, queue: str, name: str) -> Link:
        connection = self._connection
        if connection is None:
            raise ChannelClosed(0, "the connection was lost")
        return await open_link(connection, self._loop, queue, name, self._receive, self._end)

    # Deliveries and settlements

    def _receive(self, link: Link, tag: int, redelivered: bool, raw: bytes, body: bytes) -> None:
        batch = self._batch
        if not batch:
            self._loop.call_soon(self._hand_over)
        message, deliveries, error = self._read_message(raw, body)
        receipt = (self._generation, link, tag)
        batch.append(Delivery(receipt, link.queue, message, redelivered, deliveries, error))

    def _hand_over(self) -> None:
        batch, self._batch = self._batch, []
        if batch:
            self._sink.delivered(batch)

    def _flush(self) -> None:
        with self._lock:
            settled, self._settled = self._settled, []
        touched: set[Link] = set()
        generation = self._generation
        for done, returned in settled:
            for receipts, back in ((done, False), (returned, True)):
                for born, link, tag in receipts:
                    if born == generation:
                        link.settle(tag, back)
                        touched.add(link)
        for link in touched:
            # A connection that just ended gives everything back by itself.
            with contextlib.suppress(AMQPError):
                link.flush()
