"""Replays of dead letters on RabbitMQ that a kill can neither lose nor double.

Publishing a letter's message and acknowledging the letter are two steps, and whoever dies between
them cannot know later how far it came once a worker has taken the message. So the message first
goes to a queue of its own, `taskq.replay`, that nobody else reads: a later replay can look what is
there already. From there RabbitMQ itself moves it on, when it is rejected: one step, which happens
or does not. One replay runs at a time: it owns the exclusive queue `taskq.replay.lock`.
"""

import asyncio
import uuid
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from pika import spec

from taskq import clock
from taskq.brokers import amqp_properties
from taskq.brokers.amqp_connection import StockConnection, raw_properties
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
from taskq.brokers.base import Delivery, Outgoing, Verdict
from taskq.brokers.rabbitmq_counts import count
from taskq.brokers.rabbitmq_dead import DeadSweep
from taskq.brokers.rabbitmq_declare import Declarer
from taskq.brokers.replay import Replay
from taskq.brokers.topology import Topology
from taskq.errors import BrokerUnavailable, ConfigError, EncodeError, PublishError, TaskqError
from taskq.message import REPLAY

_PREFETCH: Final = 2000
_LET_GO_AT_ONCE: Final = 500
_MOST_HELD: Final = 60_000
"""AMQP counts a prefetch in 16 bits."""
_STEP_TIMEOUT_S: Final = 30.0
_OTHER_ENDS_S: Final = 10.0
"""How long the broker may need to notice that a replay was killed."""
_ASK_AGAIN_S: Final = 0.1
_RESOURCE_LOCKED: Final = 405

MakeDeclarer = Callable[..., Declarer]


class _EnoughError(TaskqError):
    """The walk has found as many letters as were asked for."""


class RabbitReplay(Replay):
    """See `Replay`."""

    def __init__(
        self,
        io: IoThread,
        endpoints: list[Endpoint],
        topology: Topology,
        make_declarer: MakeDeclarer,
        queues: Sequence[str],
        create: bool,
        timeout_s: float,
    ) -> None:
        """Prepare; connects when it is entered.

        Args:
            io: Thread of the connections.
            endpoints: Where the broker is.
            topology: Its objects.
            make_declarer: Makes the declarer of a connection.
            queues: Where letters will go, without prefix.
            create: Whether queues that are missing are created.
            timeout_s: How long the broker may take to confirm a page of letters, in seconds.
        """
        self.stranded = {}
        self.whole = False
        self._io = io
        self._endpoints = endpoints
        self._topology = topology
        self._make_declarer = make_declarer
        self._queues = queues
        self._create = create
        self._timeout_s = timeout_s
        self._connection: StockConnection | None = None
        self._session: Session | None = None
        self._arrived: deque[tuple[int, str]] = deque()
        self._waiting = 0
        self._next_tag = 1
        self._split: set[str] = set()
        self._open: set[int] = set()
        self._refused: set[int] = set()
        self._change = asyncio.Event()

    def __enter__(self) -> "RabbitReplay":
        try:
            self._io.run(self._begin(), 3 * _STEP_TIMEOUT_S)
        # Also an interrupt: no `with` block ends what did not begin, and its messages stay held.
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Give back what was not let go: it waits in `taskq.replay` for the next replay."""
        with suppress(BrokerUnavailable):
            self._io.run(self._end(), _STEP_TIMEOUT_S)

    def run(
        self,
        visit: Callable[[Delivery], Outgoing | None],
        limit: int,
        prepare: Callable[[Sequence[Outgoing]], None],
        pace: Callable[[int], int],
    ) -> int:
        """See `Replay`."""
        moved = Counter(self.stranded)
        self.stranded = {}
        # More could not be looked at together by the replay that follows a kill.
        limit = min(limit, _MOST_HELD - _PREFETCH - len(self._arrived))
        found = 0

        def look(delivery: Delivery) -> Verdict:
            nonlocal found
            if found >= limit and not moved.total():
                raise _EnoughError
            outgoing = visit(delivery)
            if outgoing is None:
                return "keep"
            tag = str(outgoing.message.headers.get(REPLAY))
            if moved[tag] > 0:
                # Its message is on its way already: the killed replay did not come to remove it.
                moved[tag] -= 1
                return "remove"
            if found >= limit:
                return "keep"
            found += 1
            return outgoing

        def stage(batch: Sequence[Outgoing]) -> list[PublishError | None]:
            prepare(batch)
            return self._stage(batch)

        try:
            dead = self._topology.dead
            sweep = DeadSweep(self._io, self._endpoints, dead, stage, careful=True)
            with suppress(_EnoughError):
                sweep.run(look)
            self.whole = sweep.whole
            if moved.total() and not sweep.whole:
                self.stranded = +moved
                return 0
            return self._let_go(pace)
        except ChannelClosed as error:
            raise BrokerUnavailable(f"the replay was cut off: {error}") from error

    # Opening and closing

    async def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        self._connection, _ = await connect(self._endpoints, loop)
        try:
            await self._declare(self._connection, loop)
            await self._lock(self._connection, loop)
            self._session = session = await open_session(self._connection, loop)
            await session.call("confirm_delivery", self._on_confirm)
            await self._take_hold(session)
        except ChannelClosed as refused:
            raise _public(refused) from refused

    async def _declare(self, connection: StockConnection, loop: asyncio.AbstractEventLoop) -> None:
        declarer = self._make_declarer(connection, loop)
        for queue in self._queues:
            if not self._create:
                await self._must_exist(declarer, queue)
            if len(await declarer.parts(queue)) > 1:
                self._split.add(queue)
        await declarer.replay()

    async def _must_exist(self, declarer: Declarer, queue: str) -> None:
        try:
            await declarer.call("queue_declare", self._topology.on_broker(queue), passive=True)
        except ChannelClosed as refused:
            if refused.code != NOT_FOUND:
                raise
            raise ConfigError(f"there is no queue {queue} on the broker") from refused

    async def _lock(self, connection: StockConnection, loop: asyncio.AbstractEventLoop) -> None:
        """Become the one replay of this broker.

        Raises:
            ConfigError: If there is another.
        """
        ends_s = clock.monotonic_s() + _OTHER_ENDS_S
        while True:
            session = await open_session(connection, loop)
            try:
                await session.call("queue_declare", f"{self._topology.replay}.lock", exclusive=True)
            except ChannelClosed as refused:
                if refused.code != _RESOURCE_LOCKED:
                    raise
                if clock.monotonic_s() > ends_s:
                    raise ConfigError(
                        "another replay of dead letters is under way on this broker; "
                        "wait until it has ended"
                    ) from refused
                await asyncio.sleep(_ASK_AGAIN_S)
                continue
            return

    async def _take_hold(self, session: Session) -> None:
        """Become the consumer of the queue, and see what is in it."""
        name = self._topology.replay
        ends_s = clock.monotonic_s() + _STEP_TIMEOUT_S
        left, consumers = await count(session, name)
        while consumers:
            # A replay that was killed: once its consumer is gone, all that it sent is here.
            if clock.monotonic_s() > ends_s:
                raise ConfigError(
                    f"the broker still has a consumer of {name}, of a replay that was killed; "
                    "nothing was sent. Try again in a minute"
                )
            await asyncio.sleep(_ASK_AGAIN_S)
            left, consumers = await count(session, name)
        await session.call("basic_qos", prefetch_count=_MOST_HELD)
        tag = f"taskq.replay.{uuid.uuid4().hex}"
        await session.call("basic_consume", name, self._on_message, consumer_tag=tag)
        await self._until(lambda: len(self._arrived) >= min(left, _MOST_HELD))
        self._waiting = len(self._arrived)
        self.stranded = Counter(tag for _, tag in self._arrived)

    async def _end(self) -> None:
        connection, self._connection, self._session = self._connection, None, None
        if connection is not None:
            await close(connection)

    def _opened(self) -> tuple[Session, StockConnection]:
        session, connection = self._session, self._connection
        if session is None or connection is None:
            raise BrokerUnavailable("the replay has ended")
        if session.closed.done():
            raise session.closed.result()
        return session, connection

    def _on_message(self, _: Any, method: Any, properties: Any, body: bytes) -> None:
        message, _, _ = amqp_properties.read_message(raw_properties(properties), body)
        self._arrived.append((method.delivery_tag, str(message.headers.get(REPLAY))))
        self._change.set()

    # Into the queue

    def _stage(self, batch: Sequence[Outgoing]) -> list[PublishError | None]:
        errors: list[PublishError | None] = [None] * len(batch)
        ready: list[tuple[int, str, bytes, bytes]] = []
        for index, one in enumerate(batch):
            try:
                raw = amqp_properties.encode(one.message)
            except (EncodeError, UnicodeEncodeError) as error:
                errors[index] = PublishError(one.message.id, "refused", str(error))
                continue
            queue = one.queue
            if queue in self._split:
                queue = self._topology.part_for(queue, one.message.priority)
            ready.append((index, self._topology.on_broker(queue), raw, one.message.body))
        for index, reason in self._io.run(self._publish(ready), _STEP_TIMEOUT_S).items():
            detail = "RabbitMQ did not confirm; the letter is kept, or sent by the next replay"
            errors[index] = PublishError(batch[index].message.id, reason, detail)
        self._waiting += sum(error is None for error in errors)
        return errors

    async def _publish(self, ready: Sequence[tuple[int, str, bytes, bytes]]) -> dict[int, str]:
        """Publish to the queue of replays; return {index: reason} of what was not confirmed."""
        session, connection = self._opened()
        indexes: dict[int, int] = {}
        for index, key, raw, body in ready:
            connection.publish(session.channel, self._topology.replay, key, raw, body)
            indexes[self._next_tag] = index
            self._open.add(self._next_tag)
            self._next_tag += 1
        await self._until(lambda: not self._open, self._timeout_s, strict=False)
        late = {indexes[tag]: "timeout" for tag in self._open & indexes.keys()}
        refused = {indexes[tag]: "nacked" for tag in self._refused & indexes.keys()}
        return late | refused

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        last = method.delivery_tag
        done = {tag for tag in self._open if tag <= last} if method.multiple else {last}
        self._open -= done
        if not isinstance(method, spec.Basic.Ack):
            self._refused |= done
        self._change.set()

    # Out of the queue

    def _let_go(self, pace: Callable[[int], int]) -> int:
        gone = 0
        while self._waiting:
            count = max(1, min(pace(min(self._waiting, _LET_GO_AT_ONCE)), _LET_GO_AT_ONCE))
            self._io.run(self._reject(count), _STEP_TIMEOUT_S)
            self._waiting -= count
            gone += count
        return gone

    async def _reject(self, count: int) -> None:
        session, _ = self._opened()
        await self._until(lambda: len(self._arrived) >= count)
        last = 0
        for _ in range(count):
            last, _ = self._arrived.popleft()
        # All up to the last: they arrive, and go, in one order.
        session.channel.basic_nack(last, multiple=True, requeue=False)

    async def _until(
        self, condition: Callable[[], bool], timeout_s: float = _STEP_TIMEOUT_S, strict: bool = True
    ) -> None:
        session, _ = self._opened()
        ends_s = clock.monotonic_s() + timeout_s
        while not condition():
            left_s = ends_s - clock.monotonic_s()
            if left_s <= 0 and strict:
                raise BrokerUnavailable(f"RabbitMQ did not answer within {timeout_s:g} s")
            if left_s <= 0:
                return
            self._change.clear()
            waiter = asyncio.ensure_future(self._change.wait())
            await asyncio.wait(
                (waiter, session.closed), timeout=left_s, return_when=asyncio.FIRST_COMPLETED
            )
            waiter.cancel()
            self._opened()


def _public(refused: ChannelClosed) -> Exception:
    if refused.code:
        return ConfigError(f"RabbitMQ refused: {refused}")
    return BrokerUnavailable(str(refused))
