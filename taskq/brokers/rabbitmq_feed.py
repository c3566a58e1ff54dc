"""Events from RabbitMQ: a queue of one's own for a look, a durable one for a reader with a name."""

import asyncio
import contextlib
import queue
import random
from collections.abc import Callable
from typing import Any, Final

from pika.exceptions import AMQPError

from taskq.brokers.amqp_connection import StockConnection
from taskq.brokers.amqp_session import ChannelClosed, Session, close, connect, open_session
from taskq.brokers.amqp_thread import IoThread
from taskq.brokers.amqp_url import Endpoint
from taskq.brokers.rabbitmq_declare import Declarer
from taskq.brokers.topology import Topology
from taskq.errors import BrokerError, ConfigError
from taskq.events.feed import EventFeed

MAX_BYTES: Final = 1 << 30
"""What a named reader's queue holds at most; beyond it the oldest batches are dropped."""
_FIRST_BACKOFF_S: Final = 0.1
_MAX_BACKOFF_S: Final = 5.0
_OPEN_TIMEOUT_S: Final = 30.0
_FIRST_WAIT_S: Final = 5.0
_CLOSE_TIMEOUT_S: Final = 5.0


class RabbitFeed(EventFeed):
    """Consumes one queue bound to the exchange of events; reconnects by itself.

    Receipts of a connection that ended are void: the broker delivers those batches again.
    """

    def __init__(
        self,
        io: IoThread,
        endpoints: list[Endpoint],
        topology: Topology,
        make_declarer: Callable[[Any, asyncio.AbstractEventLoop], Declarer],
        exchange: str,
        name: str,
        prefetch: int,
    ) -> None:
        """Start.

        Args:
            io: The broker's thread.
            endpoints: Tried in order.
            topology: Names of objects.
            make_declarer: Makes the declarer of a new connection.
            exchange: What to listen to, without prefix.
            name: Of a durable queue, without prefix; empty for one that goes with this feed.
            prefetch: Batches on their way here at most.
        """
        self.trouble = "not connected yet"
        self.active = False
        self._io = io
        self._endpoints = endpoints
        self._topology = topology
        self._make_declarer = make_declarer
        self._exchange = exchange
        self._name = name
        self._prefetch = prefetch
        self._batches: queue.SimpleQueue[tuple[Any, bytes] | None] = queue.SimpleQueue()
        self._failure: Exception | None = None
        self._generation = 0
        self._session: Session | None = None
        self._connection: StockConnection | None = None
        self._task: asyncio.Task[None] | None = None
        io.run(self._start(), _OPEN_TIMEOUT_S)

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        self._begun = asyncio.Event()
        self._task = loop.create_task(self._run(loop))
        # What happens after this feed was made must not be missed; a broker that is away is
        # waited for in the background.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._begun.wait(), _FIRST_WAIT_S)

    async def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        backoff_s = _FIRST_BACKOFF_S
        while True:
            try:
                why = await self._consume_once(loop)
                backoff_s = _FIRST_BACKOFF_S
            except ConfigError as error:
                self._failure = error
                self._batches.put(None)
                self._begun.set()
                return
            except (BrokerError, AMQPError, TimeoutError) as error:
                why = str(error) or "RabbitMQ did not answer in time"
            self.active = False
            self.trouble = why
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
            backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S)

    async def _consume_once(self, loop: asyncio.AbstractEventLoop) -> str:
        lost: asyncio.Future[str] = loop.create_future()

        def end(why: str) -> None:
            if not lost.done():
                lost.set_result(why)

        connection, _ = await connect(self._endpoints, loop, end)
        try:
            self._generation += 1
            session = await open_session(connection, loop)
            session.closed.add_done_callback(lambda done: end(str(done.result())))
            session.channel.add_on_cancel_callback(lambda _: end("RabbitMQ cancelled the reader"))
            name = await self._declare(connection, session, loop)
            await session.call("basic_qos", prefetch_count=self._prefetch)
            await self._consume(connection, session, name)
            self._session, self._connection = session, connection
            self.trouble = ""
            self.active = True
            self._begun.set()
            return await lost
        finally:
            self._session = self._connection = None
            # In order: acknowledgements that were written leave before the end.
            await close(connection)

    async def _declare(
        self, connection: StockConnection, session: Session, loop: asyncio.AbstractEventLoop
    ) -> str:
        declarer = self._make_declarer(connection, loop)
        await declarer.topic(self._exchange)
        exchange = self._topology.on_broker(self._exchange)
        if self._name:
            item = self._topology.event_queue(self._name, exchange, MAX_BYTES)
            await declarer.own_queue(item)
            await declarer.close()
            return item.name
        await declarer.close()
        reply = await session.call("queue_declare", "", exclusive=True, auto_delete=True)
        await session.call("queue_bind", reply.queue, exchange, "#")
        return str(reply.queue)

    async def _consume(self, connection: StockConnection, session: Session, name: str) -> None:
        generation = self._generation

        def deliver(tag: int, redelivered: bool, raw: bytes, body: bytes) -> None:
            self._batches.put(((generation, tag), body))

        def consume(callback: Callable[..., Any]) -> None:
            connection.consume(session.channel, name, f"taskq.{generation}", deliver, callback)

        await session.request(consume)

    def get(self, timeout_s: float) -> list[tuple[Any, bytes]]:
        """See `EventFeed`."""
        found: list[tuple[Any, bytes]] = []
        try:
            first = self._batches.get(timeout=timeout_s)
            while True:
                if first is None:
                    raise self._failure or ConfigError("this feed was closed")
                if first[0][0] == self._generation:
                    found.append(first)
                first = self._batches.get_nowait()
        except queue.Empty:
            return found

    def ack(self, receipt: Any) -> None:
        """See `EventFeed`."""
        with contextlib.suppress(BrokerError):
            self._io.call(self._ack, receipt)

    def _ack(self, receipt: Any) -> None:
        generation, tag = receipt
        session, connection = self._session, self._connection
        if generation != self._generation or session is None or connection is None:
            return
        with contextlib.suppress(AMQPError, ChannelClosed):
            connection.ack(session.channel, tag, multiple=True)

    def close(self) -> None:
        """See `EventFeed`."""
        with contextlib.suppress(BrokerError):
            self._io.run(self._stop(), _CLOSE_TIMEOUT_S)

    async def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
