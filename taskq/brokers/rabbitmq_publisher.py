"""The sending connection: pipelined confirms, mandatory routing, re-sending after a lost link.

Everything here runs on the loop of the broker's I/O thread. The connection only publishes: while a
memory alarm lasts, RabbitMQ reads nothing from a connection that has published, acks included.
"""

import asyncio
import contextlib
import logging
import re
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

from pika import spec
from pika.exceptions import AMQPError

from taskq import clock
from taskq.brokers.amqp_connection import StockConnection, raw_properties
from taskq.brokers.amqp_properties import message_id
from taskq.brokers.amqp_session import (
    ACCESS_REFUSED,
    NOT_FOUND,
    AccessDenied,
    ChannelClosed,
    Session,
    abort,
    close,
    connect,
    drop_transport,
    open_session,
)
from taskq.brokers.amqp_thread import close_inherited_socket
from taskq.brokers.amqp_url import Endpoint
from taskq.brokers.rabbitmq_batch import NOTHING_TO_DECLARE, TOPIC, Batch, Item
from taskq.brokers.rabbitmq_declare import REPLY_TIMEOUT_S, Declarer
from taskq.errors import BrokerUnavailable, ConfigError

log = logging.getLogger("taskq.broker")

FIRST_BACKOFF_S: Final = 0.05
MAX_BACKOFF_S: Final = 1.0
SILENCE_S: Final = (0.5, 2.0)
"""After how long without any answer a connection is given up once a send has timed out: the
send's own timeout within these bounds. Less would end connections of a broker that is only busy."""

_EXCHANGE_IN_REPLY = re.compile(r"exchange '([^']*)'")
_NEVER_DECLARED: Final = (NOTHING_TO_DECLARE, ("", TOPIC))
_SIZES_IN_REPLY = re.compile(r"message size \d+ .*?max(?:imum)? size (\d+)")

MakeDeclarer = Callable[[Any, asyncio.AbstractEventLoop], Declarer]


class Publisher:
    """Sends items as soon as there is a connection; keeps them until confirmed or too late."""

    def __init__(
        self, endpoints: list[Endpoint], make_declarer: MakeDeclarer, create: bool
    ) -> None:
        """Prepare.

        Args:
            endpoints: Tried in order.
            make_declarer: Makes the declarer of a new connection.
            create: Whether a queue that vanished is declared again.
        """
        self._endpoints = endpoints
        self._make_declarer = make_declarer
        self._create = create
        self._refused: dict[str, str] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.forget()

    def forget(self) -> None:
        """Start from nothing, as in a child process."""
        self._waiting: deque[Item] = deque()
        self._pending: dict[int, Item] = {}
        self._lowest = 1
        self._next_tag = 1
        self._known: set[tuple[str, int]] = {*_NEVER_DECLARED}
        self._declaring: dict[tuple[str, int], list[Item]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._connection: StockConnection | None = None
        self._session: Session | None = None
        self._current = object()
        self._declarer: Declarer | None = None
        self._blocked = ""
        self._silent_since_s = 0.0
        self._trouble = "not connected yet"
        self._task = None

    def after_fork(self) -> None:
        """Close the parent's socket in the child, without a word on the wire."""
        transport = getattr(self._connection, "_transport", None)
        end = getattr(transport, "_sock", None)
        if end is not None:
            close_inherited_socket(end)
        self._wake = asyncio.Event()
        self.forget()

    def accept(self, items: list[Item]) -> None:
        """Take items that were prepared; called on the loop."""
        if not items:
            return
        batch = items[0].batch
        loop = asyncio.get_running_loop()
        left_s = batch.deadline_s - clock.monotonic_s()
        batch.timer = loop.call_later(max(left_s, 0), self._expire, batch)
        self._waiting.extend(items)
        if self._session is not None:
            self._send_waiting()
        else:
            self._wake.set()
            if self._task is None or self._task.done():
                self._task = loop.create_task(self._connect())

    def _expire(self, batch: Batch) -> None:
        if self._blocked:
            reason, detail = "blocked", f"RabbitMQ takes no messages now: {self._blocked}"
        elif self._session is None:
            reason, detail = "unavailable", self._trouble
        else:
            reason, detail = "timeout", "RabbitMQ did not confirm in time"
        batch.fail_rest(reason, detail)
        if self._session is None or self._blocked:
            self._waiting = deque(item for item in self._waiting if not item.done)
        else:
            self._replace_if_silent(batch.timeout_s)

    def _replace_if_silent(self, timeout_s: float) -> None:
        """Give up a connection that answers nothing, as a half-open one.

        It would fail every send until TCP or the heartbeat ended it, for 20 s or more.
        """
        least_s, most_s = SILENCE_S
        silent_s = clock.monotonic_s() - self._silent_since_s
        # The send left a moment after its time began to run.
        enough_s = min(max(timeout_s * 0.9, least_s), most_s)
        if not self._silent_since_s or silent_s < enough_s:
            return
        connection = self._connection
        self._forget_connection(f"RabbitMQ answered nothing for {silent_s:.1f} s")
        if connection is not None:
            drop_transport(connection)

    def _asked(self) -> None:
        if not self._silent_since_s:
            self._silent_since_s = clock.monotonic_s()

    def _answered(self) -> None:
        waiting = self._pending or self._declaring
        self._silent_since_s = clock.monotonic_s() if waiting else 0.0

    async def _connect(self) -> None:
        """Connect while anything waits; the pause between attempts grows to a second."""
        backoff_s = FIRST_BACKOFF_S
        loop = asyncio.get_running_loop()
        while any(not item.done for item in self._waiting):
            self._wake.clear()
            try:
                await self._open(loop)
                return
            except AccessDenied as error:
                self._fail_waiting("denied", str(error))
                return
            except (BrokerUnavailable, ChannelClosed) as error:
                self._trouble = str(error)
                log.debug("cannot connect to publish: %s", error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), backoff_s)
            # Even a flood of new sends may not turn this into a busy loop.
            await asyncio.sleep(FIRST_BACKOFF_S)
            backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)

    def _fail_waiting(self, reason: str, detail: str) -> None:
        waiting, self._waiting = self._waiting, deque()
        for item in waiting:
            item.fail(reason, detail)

    async def _open(self, loop: asyncio.AbstractEventLoop) -> None:
        current = self._current = object()
        connection, endpoint = await connect(
            self._endpoints, loop, lambda why: self._on_connection_lost(current, why)
        )
        try:
            connection.add_on_connection_blocked_callback(self._on_blocked)
            connection.add_on_connection_unblocked_callback(self._on_unblocked)
            session = await open_session(connection, loop, REPLY_TIMEOUT_S)
            session.channel.add_on_return_callback(self._on_return)
            await session.call("confirm_delivery", self._on_confirm)
        except BaseException:  # Also a cancellation: nobody else knows of the connection yet.
            abort(connection)
            raise
        session.closed.add_done_callback(lambda _: self._on_channel_closed(session))
        self._connection, self._session = connection, session
        self._declarer = self._make_declarer(connection, loop)
        self._lowest = self._next_tag = 1
        self._silent_since_s = 0.0
        log.debug("publishing to %s", endpoint.masked)
        self._send_waiting()

    def _send_waiting(self) -> None:
        if self._blocked:
            return
        waiting, self._waiting = self._waiting, deque()
        known, send = self._known, self._send
        for item in waiting:
            if item.target in known:
                send(item)
            elif not item.done:
                self._declare_for(item)

    def _send(self, item: Item) -> None:
        session, connection = self._session, self._connection
        if session is None or connection is None or self._blocked:
            self._waiting.append(item)
            return
        if item.done:
            return
        if item.exchange in self._refused:
            item.fail("refused", self._refused[item.exchange])
            return
        try:
            # Nobody has to listen to events: sent back, they would only cost.
            mandatory = item.bucket != TOPIC
            channel = session.channel
            connection.publish(channel, item.exchange, item.key, item.raw, item.body, mandatory)
        except AMQPError as error:
            # The end of the connection is about to be reported; it is sent again on the next.
            self._trouble = str(error)
            self._waiting.append(item)
            return
        self._pending[self._next_tag] = item
        self._next_tag += 1
        self._asked()

    # Declaring

    def _declare_for(self, item: Item) -> None:
        queued = self._declaring.get(item.target)
        if queued is not None:
            queued.append(item)
            return
        self._declaring[item.target] = [item]
        self._asked()
        task = asyncio.get_running_loop().create_task(self._declare(item.target))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _declare(self, target: tuple[str, int]) -> None:
        found = target
        declarer = self._declarer
        failed: tuple[str, str] | None = None
        lost = declarer is None
        try:
            if declarer is not None:
                found = await declarer.target(*target)
        except ConfigError as error:
            failed = "unroutable", str(error)
        except ChannelClosed as refused:
            lost = not refused.code
            failed = None if lost else ("refused", f"cannot declare queue {target[0]}: {refused}")
        items = self._declaring.pop(target, [])
        if not lost and declarer is self._declarer:
            self._answered()
        if failed is not None:
            for item in items:
                item.fail(*failed)
            return
        if lost or declarer is not self._declarer:
            self._requeue(items)
            return
        self._known.add(found)
        for item in items:
            if found != target:
                item.merge()
            self._send(item)

    # What the broker says

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        tag, confirmed = method.delivery_tag, isinstance(method, spec.Basic.Ack)
        first = self._lowest if method.multiple else tag
        for number in range(first, tag + 1):
            item = self._pending.pop(number, None)
            if item is None:
                continue
            if not confirmed:
                item.fail("nacked", "RabbitMQ refused the message; is the queue full?")
            elif item.returned:
                self._unroutable(item)
            else:
                item.confirm()
        if method.multiple:
            self._lowest = tag + 1
        self._answered()

    def _on_return(self, _: Any, method: Any, properties: Any, body: bytes) -> None:
        # A return has no tag. It comes before its confirm, so the message is among the oldest.
        task_id = message_id(raw_properties(properties))
        where = (method.exchange, method.routing_key)
        for item in self._pending.values():
            same = item.task_id == task_id and (item.exchange, item.key) == where
            if same and not item.returned:
                item.returned = f"{method.reply_text} ({method.reply_code})"
                return

    def _unroutable(self, item: Item) -> None:
        reply, item.returned = item.returned, ""
        if self._create and item.queue and not item.redeclared and self._declarer is not None:
            # Someone deleted the queue after it was declared here.
            item.redeclared = True
            self._known.discard(item.target)
            self._declarer.forget()
            self._declare_for(item)
            return
        where = f"queue {item.key}" if not item.exchange else f"exchange {item.exchange}"
        item.fail("unroutable", f"{where} takes no such message: {reply}")

    def _on_blocked(self, _: Any, frame: Any) -> None:
        self._blocked = str(frame.method.reason) or "alarm"
        log.warning("RabbitMQ blocks publishers: %s", self._blocked)

    def _on_unblocked(self, *_: Any) -> None:
        self._blocked = ""
        self._answered()
        log.warning("RabbitMQ takes messages again")
        if self._session is not None:
            self._send_waiting()

    def _on_channel_closed(self, session: Session) -> None:
        """A publish broke the channel: settle who did it, and start again for the others."""
        if self._session is not session:
            return
        reason = session.closed.result()
        culprits = list(self._culprits(reason))
        for item in culprits:
            if reason.code == NOT_FOUND and self._create and not item.redeclared:
                item.redeclared = True
                self._known.discard(item.target)
            else:
                word = "unroutable" if reason.code == NOT_FOUND else "refused"
                if reason.code == ACCESS_REFUSED and item.bucket == TOPIC:
                    # Each further event would cost everyone else's sends their connection.
                    self._refused[item.exchange] = str(reason)
                item.fail(word, str(reason))
        if reason.code:
            log.warning("the publishing channel was closed: %s", reason)
        if self._connection is not None:
            abort(self._connection)

    def _culprits(self, reason: ChannelClosed) -> Iterable[Item]:
        """Return the pending items that the broker's reply is about."""
        sizes = _SIZES_IN_REPLY.search(reason.text)
        named = _EXCHANGE_IN_REPLY.search(reason.text)
        limit = int(sizes[1]) if sizes is not None else None
        exchange = named[1] if named and reason.code in (NOT_FOUND, ACCESS_REFUSED) else None
        for item in self._pending.values():
            too_large = limit is not None and len(item.body) > limit
            if too_large or (item.exchange or "amq.default") == exchange:
                yield item

    def _on_connection_lost(self, which: object, why: str) -> None:
        if which is self._current:
            self._forget_connection(why)

    def _forget_connection(self, why: str) -> None:
        # What its late callbacks report is nobody's matter any more.
        self._current = object()
        unconfirmed = list(self._pending.values())
        self._pending.clear()
        self._known = {*_NEVER_DECLARED}
        self._session = self._connection = self._declarer = None
        self._blocked = ""
        self._trouble = f"the connection to RabbitMQ was lost: {why}"
        log.debug("stopped publishing: %s", why)
        self._requeue(unconfirmed)

    def _requeue(self, items: list[Item]) -> None:
        """Send items again, before those that wait; on the next connection if there is none."""
        self._waiting.extendleft(item for item in reversed(items) if not item.done)
        if not self._waiting:
            return
        if self._session is not None:
            self._send_waiting()
        elif self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._connect())

    async def close(self) -> None:
        """End the connection; what is unconfirmed fails."""
        self._waiting.extend(self._pending.values())
        self._pending.clear()
        self._fail_waiting("unavailable", "the broker object was closed")
        if self._task is not None:
            self._task.cancel()
        connection, self._connection, self._session = self._connection, None, None
        if connection is not None:
            await close(connection)
