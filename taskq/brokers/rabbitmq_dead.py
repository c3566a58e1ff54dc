"""Walks over the dead letters on RabbitMQ."""

import asyncio
import contextlib
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from taskq import clock
from taskq.brokers.amqp_connection import StockConnection
from taskq.brokers.amqp_properties import read_message
from taskq.brokers.amqp_session import (
    NOT_FOUND,
    ChannelClosed,
    Session,
    close,
    connect,
    open_session,
)
from taskq.brokers.amqp_thread import IoThread
from taskq.brokers.amqp_url import Endpoint
from taskq.brokers.base import DEAD_QUEUE, Delivery, Outgoing, Verdict
from taskq.brokers.rabbitmq_counts import count
from taskq.errors import BrokerUnavailable, PublishError

PAGE: Final = 1000
"""Letters fetched at once; those that are kept stay unsettled until the end of the walk.

Each page has a channel of its own: RabbitMQ looks for the letter that is acknowledged through all
that are unsettled on its channel, and 10,000 removals among 100,000 letters would take minutes."""
_MOST_PAGES: Final = 1000
"""A connection has 2,047 channels at most."""
_IDLE_S: Final = 5.0
_STEP_TIMEOUT_S: Final = 15.0
_RETURN_S: Final = 5.0
_OTHERS_S: Final = 5.0
"""How long others may hold letters until a walk ends without having seen those."""
_ASK_AGAIN_S: Final = 0.1

Resend = Callable[[Sequence[Outgoing]], list[PublishError | None]]


class DeadSweep:
    """One walk. Letters are held unsettled, so another walk at the same time does not see them.

    Attributes:
        whole: Whether every letter was seen: at the end, nobody else held any. Known of a careful
            walk only.
    """

    def __init__(
        self,
        io: IoThread,
        endpoints: list[Endpoint],
        name: str,
        resend: Resend,
        *,
        careful: bool = False,
    ) -> None:
        """Prepare.

        Args:
            io: Thread of the connection.
            endpoints: Where the broker is.
            name: The queue, with prefix.
            resend: Sends what takes the place of letters.
            careful: Look at the end whether anybody else holds letters, and fetch those that were
                given back meanwhile.
        """
        self.whole = False
        self._careful = careful
        self._io = io
        self._endpoints = endpoints
        self._name = name
        self._resend = resend
        self._connection: StockConnection | None = None
        self._session: Session | None = None
        self._pages: dict[Session, int] = {}
        self._arrived: deque[tuple[int, bool, bytes, bytes]] = deque()
        self._more = asyncio.Event()

    def run(self, visit: Callable[[Delivery], Verdict]) -> int:
        """Do what `Broker.sweep_dead` says, in the caller's thread.

        Raises:
            BrokerUnavailable: If the broker cannot be reached, or is lost on the way.
            PublishError: If a replacement was not confirmed; its letter and the rest are kept.
        """
        shown = 0
        try:
            left = self._io.run(self._open(), _STEP_TIMEOUT_S)
            size = max(PAGE, left // _MOST_PAGES)
            alone = False
            while left:
                seen = self._walk(left, size, visit)
                shown += seen
                # What came since nobody else held any is new; those before it are all seen.
                self.whole = alone and seen == left
                if self.whole or not self._careful:
                    break
                alone, left = self._io.run(self._rest(), _STEP_TIMEOUT_S)
                self.whole = alone and not left
        except ChannelClosed as error:
            raise BrokerUnavailable(f"the walk over dead letters was cut off: {error}") from error
        finally:
            if self._connection is not None:
                self._io.run(self._close(), _STEP_TIMEOUT_S + _RETURN_S)
        return shown

    def _walk(self, left: int, size: int, visit: Callable[[Delivery], Verdict]) -> int:
        shown = 0
        while left > shown:
            page = self._io.run(self._fetch(min(left - shown, size)), _STEP_TIMEOUT_S)
            if not page:
                break
            shown += self._show(page, visit)
        return shown

    def _show(self, page: list[Delivery], visit: Callable[[Delivery], Verdict]) -> int:
        removed: list[int] = []
        resent: list[tuple[int, Outgoing]] = []
        try:
            for delivery in page:
                verdict = visit(delivery)
                if isinstance(verdict, Outgoing):
                    resent.append((delivery.receipt, verdict))
                elif verdict == "remove":
                    removed.append(delivery.receipt)
        finally:
            # Also when `visit` raised: what was decided before is done.
            self._apply(removed, resent)
        return len(page)

    def _apply(self, removed: list[int], resent: list[tuple[int, Outgoing]]) -> None:
        errors = self._resend([outgoing for _, outgoing in resent]) if resent else []
        gone = [tag for (tag, _), error in zip(resent, errors, strict=True) if error is None]
        if removed or gone:
            self._io.run(self._ack([*removed, *gone]), _STEP_TIMEOUT_S)
        for error in errors:
            if error is not None:
                raise error

    async def _open(self) -> int:
        """Connect; return how many letters there are."""
        loop = asyncio.get_running_loop()
        self._connection, _ = await connect(self._endpoints, loop)
        session = await open_session(self._connection, loop)
        try:
            counts = await count(session, self._name)
        except ChannelClosed as refused:
            if refused.code != NOT_FOUND:
                raise
            self.whole = True
            return 0
        self.whole = not any(counts)
        return counts.ready

    async def _fetch(self, count: int) -> list[Delivery]:
        """Return the next letters, fewer than asked for when somebody else took them."""
        connection = self._opened()
        loop = asyncio.get_running_loop()
        self._session = session = await open_session(connection, loop)
        self._pages[session] = 0
        tag = f"taskq.dead.{uuid.uuid4().hex}"

        def consume(callback: Any) -> None:
            connection.consume(session.channel, self._name, tag, self._on_letter, callback)

        await session.call("basic_qos", prefetch_count=count)
        await session.request(consume)
        while len(self._arrived) < count and await self._another(session):
            self._more.clear()
        await session.call("basic_cancel", tag)
        connection.forget(session.channel, tag)
        self._pages[session] = len(self._arrived)
        page = [self._delivery(*letter) for letter in self._arrived]
        self._arrived.clear()
        return page

    async def _another(self, session: Session) -> bool:
        """Wait for another letter; False when none comes any more."""
        waiter = asyncio.ensure_future(self._more.wait())
        await asyncio.wait(
            (waiter, session.closed), timeout=_IDLE_S, return_when=asyncio.FIRST_COMPLETED
        )
        waiter.cancel()
        if session.closed.done():
            raise session.closed.result()
        return self._more.is_set()

    def _on_letter(self, tag: int, redelivered: bool, raw: bytes, body: bytes) -> None:
        self._arrived.append((tag, redelivered, raw, body))
        self._more.set()

    @staticmethod
    def _delivery(tag: int, redelivered: bool, raw: bytes, body: bytes) -> Delivery:
        message, deliveries, error = read_message(raw, body, dead=True)
        return Delivery(tag, DEAD_QUEUE, message, redelivered, deliveries, error)

    def _opened(self) -> StockConnection:
        connection = self._connection
        if connection is None or not connection.is_open:
            raise BrokerUnavailable("the connection was lost; the letters in hand are kept")
        return connection

    async def _ack(self, tags: list[int]) -> None:
        connection, session = self._opened(), self._session
        if session is None or session.closed.done():
            raise BrokerUnavailable("the connection was lost; the letters in hand are kept")
        for tag in tags:
            connection.ack(session.channel, tag)
        self._pages[session] -= len(tags)

    async def _rest(self) -> tuple[bool, int]:
        """Return whether nobody else holds letters, and how many there are to fetch then.

        RabbitMQ counts a cancelled consumer for as long as it holds messages, and forgets one whose
        last message is acknowledged, so what is more than this walk's own pages is somebody else:
        a walk under way, or one that was killed, whose letters have not come back.
        """
        session = next(iter(self._pages))
        own = sum(held > 0 for held in self._pages.values())
        ends_s = clock.monotonic_s() + _OTHERS_S
        counts = await count(session, self._name)
        while counts.consumers != own and clock.monotonic_s() < ends_s:
            await asyncio.sleep(_ASK_AGAIN_S)
            counts = await count(session, self._name)
        alone = counts.consumers == own
        return alone, counts.ready if alone else 0

    async def _returned(self, session: Session, kept: int) -> None:
        """Wait until the kept letters can be seen again, or the next walk would miss them."""
        ends_s = clock.monotonic_s() + _RETURN_S
        while kept > 0 and clock.monotonic_s() < ends_s:
            counts = await count(session, self._name)
            if counts.ready >= kept:
                return
            await asyncio.sleep(0.02)

    async def _close(self) -> None:
        connection, pages = self._connection, self._pages
        self._connection, self._session, self._pages = None, None, {}
        with contextlib.suppress(ChannelClosed):
            for session in pages:
                if session.channel.is_open:
                    # Gives back what is kept of a page in one message; the answer to the second
                    # means that the next page comes after it, so that letters keep their order.
                    session.channel.basic_nack(0, multiple=True, requeue=True)
                    await session.call("basic_qos", prefetch_count=1)
            if pages:
                await self._returned(session, sum(pages.values()))
        if connection is not None:
            await close(connection)
