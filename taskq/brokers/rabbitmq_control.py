"""Control requests over a fanout exchange, answered by direct reply-to."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgpack
import pika

from taskq.brokers import amqp_properties
from taskq.brokers.amqp_connection import RawProperties, StockConnection, raw_properties
from taskq.brokers.amqp_session import NOT_FOUND, ChannelClosed, open_session
from taskq.brokers.base import Sink
from taskq.errors import DecodeError

log = logging.getLogger("taskq.broker")

REPLY_TO: Final = "amq.rabbitmq.reply-to"
MAX_REQUEST_BYTES: Final = 64 * 1024


class ControlListener:
    """Hears requests on the consuming connection.

    Answers leave through the publishing connection: one publish on the consuming one, and a memory
    alarm would stop its acknowledgements.
    """

    def __init__(self, sink: Sink, reply: Callable[[str, bytes, bytes], None]) -> None:
        self._sink = sink
        self._reply = reply

    async def start(
        self, connection: StockConnection, loop: asyncio.AbstractEventLoop, exchange: str
    ) -> None:
        """Bind a queue of this connection alone to the exchange; a refusal is only logged."""
        session = await open_session(connection, loop)
        try:
            reply = await session.call("queue_declare", "", exclusive=True, auto_delete=True)
            await session.call("queue_bind", reply.queue, exchange)
            await session.call("basic_consume", reply.queue, self._receive, auto_ack=True)
        except ChannelClosed as refused:
            if not refused.code:
                raise
            log.info("no control requests on this broker: %s", refused)

    def _receive(self, _: Any, method: Any, properties: Any, body: bytes) -> None:
        try:
            fields, _headers = amqp_properties.decode(raw_properties(properties))
            request = self._read(body)
        except DecodeError as error:
            log.warning("ignoring a control request: %s", error)
            return
        address = fields.get("reply_to")
        try:
            answer = self._sink.control(request)
        # A request may come from a newer or a faulty tool; the worker goes on.
        except Exception:
            log.exception("control request failed command=%s", request.get("command"))
            return
        if answer is not None and address:
            properties = pika.BasicProperties(correlation_id=fields.get("correlation_id"))
            self._reply(address, raw_properties(properties), msgpack.packb(answer))

    @staticmethod
    def _read(body: bytes) -> Mapping[str, Any]:
        if len(body) > MAX_REQUEST_BYTES:
            raise DecodeError(f"it takes {len(body):,} bytes")
        try:
            request = msgpack.unpackb(body)
        # Whatever msgpack raises on foreign bytes.
        except Exception as error:
            raise DecodeError(f"not msgpack: {error}") from error
        if not isinstance(request, dict) or not isinstance(request.get("command"), str):
            raise DecodeError("not a map with a command")
        return request


async def ask(
    connection: StockConnection,
    loop: asyncio.AbstractEventLoop,
    exchange: str,
    request: Mapping[str, Any],
    timeout_s: float,
) -> list[dict[str, Any]]:
    """Send a request to all workers and collect the answers that come until the timeout."""
    answers: list[dict[str, Any]] = []

    def collect(_: Any, method: Any, properties: Any, body: bytes) -> None:
        try:
            answer = msgpack.unpackb(body)
        # Whatever msgpack raises: one bad answer must not keep the others from being read.
        except Exception as error:
            log.warning("ignoring an answer that is not msgpack: %s", error)
            return
        if isinstance(answer, dict):
            answers.append(answer)

    session = await open_session(connection, loop)
    await session.call("basic_consume", REPLY_TO, collect, auto_ack=True)
    properties = pika.BasicProperties(reply_to=REPLY_TO, content_type="application/x-msgpack")
    raw = RawProperties(raw_properties(properties))
    session.channel.basic_publish(exchange, "", msgpack.packb(dict(request)), raw)
    ended, _ = await asyncio.wait((session.closed,), timeout=timeout_s)
    if ended and session.closed.result().code != NOT_FOUND:
        raise session.closed.result()
    # Without the exchange no worker has ever listened.
    return answers
