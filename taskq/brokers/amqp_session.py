"""Connections and channels of pika as awaitables."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import pika
from pika.adapters.utils import connection_workflow
from pika.exceptions import (
    AMQPError,
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
    StreamLostError,
)

from taskq.brokers.amqp_connection import StockConnection, connection_class
from taskq.brokers.amqp_url import Endpoint
from taskq.errors import BrokerError, BrokerUnavailable, ConfigError

CLOSE_TIMEOUT_S: Final = 2.0
REPLY_TIMEOUT_S: Final = 30.0

NOT_FOUND: Final = 404
ACCESS_REFUSED: Final = 403
PRECONDITION_FAILED: Final = 406


class ChannelClosed(BrokerError):
    """The broker closed a channel, or the connection below it.

    Attributes:
        code: AMQP's reply code; 0 when the connection was lost.
        text: What the broker said.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{text} ({code})" if code else text)
        self.code = code
        self.text = text


class AccessDenied(ConfigError):
    """The broker refused the credentials or the vhost."""


async def connect(
    endpoints: Sequence[Endpoint],
    loop: asyncio.AbstractEventLoop,
    on_close: Callable[[str], None] | None = None,
) -> tuple[StockConnection, Endpoint]:
    """Open a connection to the first endpoint that answers.

    Args:
        endpoints: Tried in order.
        loop: The running loop.
        on_close: Called with the reason when the open connection ends, whoever ends it.

    Raises:
        AccessDenied: If every endpoint that answered refused.
        BrokerUnavailable: If none could be reached.
    """
    reasons: list[str] = []
    denied: AccessDenied | None = None
    reached = 0
    for endpoint in endpoints:
        try:
            return await _connect_one(endpoint, loop, on_close), endpoint
        except AccessDenied as error:
            denied = error
            reached += 1
            reasons.append(str(error))
        except BrokerUnavailable as error:
            reasons.append(str(error))
    if denied is not None and reached == len(endpoints):
        raise denied
    raise BrokerUnavailable("; ".join(reasons))


async def _connect_one(
    endpoint: Endpoint,
    loop: asyncio.AbstractEventLoop,
    on_close: Callable[[str], None] | None,
) -> StockConnection:
    opened: asyncio.Future[None] = loop.create_future()

    def on_open(_: Any) -> None:
        if not opened.done():
            opened.set_result(None)

    def on_error(_: Any, error: Any) -> None:
        if not opened.done():
            opened.set_exception(_connect_error(endpoint, error))

    def closed(_: Any, error: Any) -> None:
        if on_close is not None:
            on_close(describe(error))

    connection = connection_class(endpoint.parameters, on_open, on_error, closed, loop)
    try:
        await opened
    except asyncio.CancelledError:
        # pika goes on connecting by itself otherwise, and nobody would close the result.
        abort(connection)
        raise
    return connection


def _connect_error(endpoint: Endpoint, error: Any) -> Exception:
    root = _root(error)
    where = endpoint.address
    if _was_cut(root):
        return BrokerUnavailable(f"cannot connect to RabbitMQ at {where}: {root}")
    if isinstance(root, ProbableAuthenticationError):
        user = endpoint.parameters.credentials.username
        return AccessDenied(
            f"RabbitMQ at {where} refused the login of user {user!r}; "
            "check user and password in the broker URL"
        )
    if isinstance(root, ProbableAccessDeniedError) or (
        isinstance(root, ConnectionClosedByBroker) and root.reply_code in (403, 530)
    ):
        vhost = endpoint.parameters.virtual_host
        return AccessDenied(
            f"RabbitMQ at {where} refused the vhost {vhost!r}: it does not exist, "
            f"or the user may not use it ({describe(root)})"
        )
    return BrokerUnavailable(f"cannot connect to RabbitMQ at {where}: {describe(root)}")


def _was_cut(error: Any) -> bool:
    """Return whether pika takes a line that broke in the middle of the handshake for a refusal.

    RabbitMQ refuses in words (403, 530). A line that ends without any was cut, by a restart or the
    network: taken for a refusal, it would end workers for good, and sends without another try.
    """
    probable = isinstance(error, ProbableAuthenticationError | ProbableAccessDeniedError)
    return probable and "StreamLostError" in str(error)


def _root(error: Any) -> Any:
    """Return the error that pika's layers of wrapping begin with."""
    for _ in range(10):
        inner = getattr(error, "exceptions", None) or getattr(error, "exception", None)
        if isinstance(inner, list | tuple):
            inner = inner[-1]
        if inner is None and isinstance(error, AMQPError) and error.args:
            first = error.args[0]
            inner = first if isinstance(first, connection_workflow.AMQPConnectorException) else None
        if inner is None:
            return error
        error = inner
    return error


def describe(error: Any) -> str:
    """Return an error of pika in words."""
    if isinstance(error, ConnectionClosedByBroker | ChannelClosedByBroker):
        return f"{error.reply_text} ({error.reply_code})"
    if isinstance(error, OSError) and error.strerror:
        return str(error.strerror).lower()
    text = str(error) if not isinstance(error, TimeoutError) else str(error) or "timed out"
    return text or type(error).__name__


def abort(connection: Any) -> None:
    """End a connection at once, in whatever state it is."""
    if connection.is_closed or connection.is_closing:
        drop_transport(connection)
        return
    try:
        connection.close()
    except (AMQPError, AssertionError):
        drop_transport(connection)


def drop_transport(connection: Any) -> None:
    """Close a connection's socket without a word, as for a peer that does not answer."""
    transport = getattr(connection, "_transport", None)
    if transport is None:
        return
    terminate = getattr(connection, "_terminate_stream", None)
    if terminate is None:
        transport.abort()
        return
    # Not only the socket: pika's heartbeat would act on what is gone, and its callbacks want an
    # error to report.
    terminate(StreamLostError("given up, it does not answer"))


async def close(connection: Any) -> None:
    """Close a connection in order; gives up waiting after `CLOSE_TIMEOUT_S`."""
    if connection.is_closed:
        return
    ended = asyncio.Event()
    connection.add_on_close_callback(lambda *_: ended.set())
    try:
        if not connection.is_closing:
            connection.close()
        await asyncio.wait_for(ended.wait(), CLOSE_TIMEOUT_S)
    except (AMQPError, TimeoutError):
        drop_transport(connection)
        await asyncio.sleep(0)


class Session:
    """One channel whose methods can be awaited.

    Attributes:
        channel: pika's channel.
        closed: Done when the channel ended, with the reason as its result.
    """

    def __init__(
        self, channel: Any, loop: asyncio.AbstractEventLoop, reply_timeout_s: float
    ) -> None:
        self.channel = channel
        self._reply_timeout_s = reply_timeout_s
        self.closed: asyncio.Future[ChannelClosed] = loop.create_future()
        self._loop = loop
        channel.add_on_close_callback(self._on_close)

    def _on_close(self, _: Any, error: Any) -> None:
        if not self.closed.done():
            code = error.reply_code if isinstance(error, ChannelClosedByBroker) else 0
            text = error.reply_text if code else describe(error)
            self.closed.set_result(ChannelClosed(code, text))

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the channel that takes a `callback`; return the reply's method.

        Raises:
            ChannelClosed: If the broker closes the channel instead, or answers not at all.
        """
        return await self.request(getattr(self.channel, method), *args, **kwargs)

    async def request(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Do what `call` does with any function that takes a `callback`."""
        reply: asyncio.Future[Any] = self._loop.create_future()

        def on_reply(frame: Any) -> None:
            if not reply.done():
                reply.set_result(getattr(frame, "method", None))

        try:
            method(*args, callback=on_reply, **kwargs)
        except AMQPError as error:
            if self.closed.done():
                raise self.closed.result() from error
            raise ChannelClosed(0, describe(error)) from error
        except ValueError as error:
            raise ChannelClosed(PRECONDITION_FAILED, str(error)) from error
        return await self._first(reply)

    async def _first(self, reply: "asyncio.Future[Any]") -> Any:
        timeout_s = self._reply_timeout_s
        await asyncio.wait(
            (reply, self.closed), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
        )
        if reply.done():
            return reply.result()
        if self.closed.done():
            raise self.closed.result()
        raise ChannelClosed(0, f"RabbitMQ did not answer within {timeout_s:g} s")

    async def close(self) -> None:
        """Close the channel without waiting for the answer."""
        if self.channel.is_open:
            self.channel.close()


async def open_session(
    connection: Any, loop: asyncio.AbstractEventLoop, reply_timeout_s: float = REPLY_TIMEOUT_S
) -> Session:
    """Open a channel.

    Args:
        connection: An open connection.
        loop: The running loop.
        reply_timeout_s: How long each of its methods waits for an answer, in seconds.

    Raises:
        ChannelClosed: If the connection ends meanwhile.
    """
    opened: asyncio.Future[Any] = loop.create_future()

    def on_open(channel: Any) -> None:
        if not opened.done():
            opened.set_result(channel)

    try:
        channel = connection.channel(on_open_callback=on_open)
    except (AMQPError, pika.exceptions.ConnectionWrongStateError) as error:
        raise ChannelClosed(0, describe(error)) from error
    session = Session(channel, loop, reply_timeout_s)
    await session._first(opened)
    return session
