"""Calls over RabbitMQ's direct reply-to: one connection, any number of calls under way.

Answers come without a queue, to the channel that asked; one whose caller has gone is dropped.
"""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from typing import Any, Final

from pika.exceptions import AMQPError

from taskq import clock
from taskq.brokers import amqp_properties
from taskq.brokers.amqp_connection import StockConnection, raw_properties
from taskq.brokers.amqp_session import ChannelClosed, Session, abort, close, connect, open_session
from taskq.brokers.amqp_thread import close_inherited_socket
from taskq.brokers.amqp_url import Endpoint
from taskq.brokers.base import Outgoing
from taskq.brokers.rabbitmq_control import REPLY_TO
from taskq.brokers.rabbitmq_declare import Declarer
from taskq.brokers.topology import Topology
from taskq.errors import BrokerUnavailable, DecodeError

_MARGIN_S: Final = 5.0
Run = Callable[[Coroutine[Any, Any, bytes], float], bytes]


class RpcClient:
    """Sends requests and gives each its answer; the connection opens with the first one."""

    def __init__(
        self,
        endpoints: list[Endpoint],
        make_declarer: Callable[[Any, asyncio.AbstractEventLoop], Declarer],
        topology: Topology,
        run: Run,
    ) -> None:
        """Prepare.

        Args:
            endpoints: Tried in order.
            make_declarer: Makes the declarer of a new connection.
            topology: Names of queues.
            run: Runs a coroutine on the broker's loop and waits for it.
        """
        self._endpoints = endpoints
        self._make_declarer = make_declarer
        self._topology = topology
        self._run = run
        self.forget()

    def forget(self) -> None:
        """Start from nothing, as in a child process."""
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        self._declared: set[str] = set()
        self._connection: StockConnection | None = None
        self._session: Session | None = None
        self._opening = asyncio.Lock()

    def after_fork(self) -> None:
        """Close the parent's socket in the child, without a word on the wire."""
        transport = getattr(self._connection, "_transport", None)
        end = getattr(transport, "_sock", None)
        if end is not None:
            close_inherited_socket(end)
        self.forget()

    def request(self, item: Outgoing, timeout_s: float) -> bytes:
        """See `Broker`."""
        deadline = clock.monotonic_s() + timeout_s
        try:
            return self._run(self._within(item, timeout_s), timeout_s + _MARGIN_S)
        except CancelledError:
            raise BrokerUnavailable("the broker object was closed") from None
        except ChannelClosed as refused:
            raise BrokerUnavailable(str(refused)) from refused
        except BrokerUnavailable:
            if clock.monotonic_s() >= deadline:
                raise TimeoutError from None
            raise

    async def _within(self, item: Outgoing, timeout_s: float) -> bytes:
        return await asyncio.wait_for(self._call(item), timeout_s)

    async def _call(self, item: Outgoing) -> bytes:
        loop = asyncio.get_running_loop()
        message = item.message._replace(reply_to=REPLY_TO)
        raw = amqp_properties.encode(message)
        connection, session = await self._ready(item.queue, loop)
        answer: asyncio.Future[bytes] = loop.create_future()
        self._waiting[message.id] = answer
        try:
            name = self._topology.on_broker(item.queue)
            connection.publish(session.channel, "", name, raw, message.body, False)
            return await answer
        except AMQPError as error:
            raise BrokerUnavailable(f"the connection to RabbitMQ was lost: {error}") from error
        finally:
            self._waiting.pop(message.id, None)

    async def _ready(
        self, queue: str, loop: asyncio.AbstractEventLoop
    ) -> tuple[StockConnection, Session]:
        async with self._opening:
            if self._connection is None or self._session is None:
                await self._open(loop)
            connection, session = self._connection, self._session
            if connection is None or session is None:
                raise BrokerUnavailable("the connection to RabbitMQ was lost")
            if queue not in self._declared:
                declarer = self._make_declarer(connection, loop)
                await declarer.work_queue(queue)
                await declarer.close()
                self._declared.add(queue)
            return connection, session

    async def _open(self, loop: asyncio.AbstractEventLoop) -> None:
        connection, _ = await connect(self._endpoints, loop, self._lost)
        try:
            session = await open_session(connection, loop)
            await session.call("basic_consume", REPLY_TO, self._answered, auto_ack=True)
        # Also a cancellation: nobody else knows of the connection yet.
        except BaseException:
            abort(connection)
            raise
        session.closed.add_done_callback(lambda done: self._lost(str(done.result())))
        self._connection, self._session = connection, session

    def _answered(self, _: Any, method: Any, properties: Any, body: bytes) -> None:
        try:
            fields, _headers = amqp_properties.decode(raw_properties(properties))
        except DecodeError:
            return
        answer = self._waiting.get(str(fields.get("correlation_id")))
        # None: it came too late, and whoever asked has gone.
        if answer is not None and not answer.done():
            answer.set_result(bytes(body))

    def _lost(self, why: str) -> None:
        connection, self._connection, self._session = self._connection, None, None
        self._declared.clear()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(BrokerUnavailable(f"lost while waiting for an answer: {why}"))
        if connection is not None:
            abort(connection)

    async def close(self) -> None:
        """End the connection; who still waits gets an error."""
        connection = self._connection
        self._lost("the broker object was closed")
        if connection is not None:
            await close(connection)
