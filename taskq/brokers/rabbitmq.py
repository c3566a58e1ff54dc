"""The RabbitMQ broker: quorum queues, confirmed sends, delays in the broker.

`docs/architecture.md` has the objects; `topology` declares them as data.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from taskq.brokers import rabbitmq_admin as admin
from taskq.brokers import rabbitmq_control
from taskq.brokers.amqp_session import AccessDenied, ChannelClosed, close, connect
from taskq.brokers.amqp_thread import IoThread
from taskq.brokers.amqp_url import parse_urls
from taskq.brokers.base import (
    Broker,
    BrokerOptions,
    Check,
    Delivery,
    Outgoing,
    Publishing,
    QueueDepth,
    Sink,
    Verdict,
)
from taskq.brokers.rabbitmq_batch import prepare, prepare_reply
from taskq.brokers.rabbitmq_consumer import RabbitConsumer
from taskq.brokers.rabbitmq_dead import DeadSweep
from taskq.brokers.rabbitmq_declare import Declarer
from taskq.brokers.rabbitmq_feed import RabbitFeed
from taskq.brokers.rabbitmq_publisher import Publisher
from taskq.brokers.rabbitmq_replay import RabbitReplay
from taskq.brokers.rabbitmq_reshard import Layout, pour_out, reshard
from taskq.brokers.rabbitmq_rpc import RpcClient
from taskq.brokers.replay import Replay
from taskq.brokers.shapes import check_queue_name
from taskq.brokers.topology import Topology
from taskq.errors import BrokerUnavailable, ConfigError
from taskq.events.schema import EXCHANGE
from taskq.topics import Binding

T = TypeVar("T")
ADMIN_TIMEOUT_S: Final = 15.0
RESHARD_TIMEOUT_S: Final = 300.0


class RabbitBroker(Broker):
    """See `Broker`.

    One thread of I/O per process serves all blocking calls; sends share its one connection, each
    administrative call opens one of its own. Consumers live on their worker's loop.
    """

    def __init__(self, url: str, options: BrokerOptions) -> None:
        """Prepare; connects on first use.

        Args:
            url: One URL, or several separated by `;` or `,`, tried in order.
            options: See `BrokerOptions`.

        Raises:
            ConfigError: If a URL cannot be read.
        """
        self._endpoints = parse_urls(url, options.name)
        self.url = ";".join(endpoint.masked for endpoint in self._endpoints)
        self.options = options
        # A count that a queue keeps also counts deliveries that never started, and an adopted
        # classic queue keeps none.
        self.flags_returned = self.may_stand_by = True
        self.durable_count = options.queue_type == "quorum"
        self._topology = Topology(
            options.prefix,
            options.queue_type,
            options.dead_ttl_s,
            self._endpoints[0].layout,
            options.queues,
        )
        self._warned: set[str] = set()
        self._publisher = self._new_publisher()
        self._rpc = RpcClient(self._endpoints, self._declarer, self._topology, self._run)
        self._io = IoThread(f"{options.name}-io", self._after_fork, self._stop)

    def _new_publisher(self) -> Publisher:
        create = self.options.declare == "create"
        return Publisher(self._endpoints, self._declarer, create)

    def _after_fork(self) -> None:
        self._publisher.after_fork()
        self._rpc.after_fork()

    async def _stop(self) -> None:
        await self._rpc.close()
        await self._publisher.close()

    def _run(self, coroutine: Coroutine[Any, Any, T], timeout_s: float) -> T:
        return self._io.run(coroutine, timeout_s)

    def _declarer(
        self, connection: Any, loop: asyncio.AbstractEventLoop, strict: bool = False
    ) -> Declarer:
        return Declarer(
            connection, loop, self._topology, self.options.declare, self._warned, strict
        )

    # Sending

    def submit(self, batch: Sequence[Outgoing], timeout_s: float) -> Publishing:
        """See `Broker`."""
        publishing, items = prepare(batch, timeout_s, self._topology)
        if items:
            try:
                self._io.call(self._publisher.accept, items)
            except BrokerUnavailable as error:
                publishing.fail_rest("unavailable", str(error))
        return publishing

    def _reply(self, address: str, raw: bytes, body: bytes) -> None:
        item = prepare_reply(address, raw, body, self.options.publish_timeout_s)
        # A worker that is being stopped owes nobody an answer.
        with contextlib.suppress(BrokerUnavailable):
            self._io.call(self._publisher.accept, [item])

    # Consuming

    def consumer(
        self, queues: Sequence[str], prefetch: int, sink: Sink, loop: asyncio.AbstractEventLoop
    ) -> RabbitConsumer:
        """See `Broker`.

        Raises:
            ConfigError: For a name that cannot be used, such as that of a queue's high part, which
                is consumed with its queue.
        """
        for queue in queues:
            check_queue_name(queue)
        return RabbitConsumer(
            self._endpoints,
            self._topology,
            self._declarer,
            self._reply,
            queues,
            prefetch,
            sink,
            loop,
        )

    # Looking and administering

    def _with_connection(
        self,
        work: Callable[[Any, asyncio.AbstractEventLoop], Coroutine[Any, Any, T]],
        timeout_s: float = ADMIN_TIMEOUT_S,
    ) -> T:
        """Run `work(connection, loop)` on a connection of its own.

        Raises:
            BrokerUnavailable: If the broker cannot be reached, refuses, or takes too long.
            AccessDenied: If it refuses user or vhost.
        """

        async def run() -> T:
            loop = asyncio.get_running_loop()
            connection, _ = await connect(self._endpoints, loop)
            try:
                return await work(connection, loop)
            except ChannelClosed as refused:
                raise _public(refused) from refused
            finally:
                await close(connection)

        return self._io.run(run(), timeout_s)

    def declare(self, queues: Iterable[str]) -> None:
        """See `Broker`.

        Raises:
            ConfigError: For a name that cannot be used.
        """
        names = [check_queue_name(queue) for queue in queues]

        async def work(connection: Any, loop: asyncio.AbstractEventLoop) -> None:
            declarer = self._declarer(connection, loop, strict=True)
            await declarer.base()
            for name in names:
                await declarer.work_queue(name)

        self._with_connection(work)

    def depths(self, queues: Iterable[str]) -> dict[str, QueueDepth | None]:
        """See `Broker`."""
        names, topology = list(queues), self._topology

        async def work(connection: Any, loop: asyncio.AbstractEventLoop) -> Any:
            probe = admin.Probe(connection, loop)
            return {queue: await admin.depth_of(probe, topology, queue) for queue in names}

        depths: dict[str, QueueDepth | None] = self._with_connection(work)
        return depths

    def due_within(self, horizon_s: float) -> int:
        """See `Broker`."""

        async def work(connection: Any, loop: asyncio.AbstractEventLoop) -> int:
            return await admin.due_within(connection, loop, self._topology, horizon_s)

        return self._with_connection(work)

    def known_queues(self) -> list[str]:
        """See `Broker`; RabbitMQ lists queues only through its management plugin."""
        return []

    def purge(self, queue: str) -> int:
        """See `Broker`."""

        async def work(connection: Any, loop: asyncio.AbstractEventLoop) -> int:
            return await admin.purge(connection, loop, self._topology, queue)

        return self._with_connection(work)

    def sweep_dead(self, visit: Callable[[Delivery], Verdict]) -> int:
        """See `Broker`.

        Raises:
            BrokerUnavailable: If the broker cannot be reached.
            PublishError: If a replacement was not confirmed; its letter is kept.
        """
        sweep = DeadSweep(self._io, self._endpoints, self._topology.dead, self._resend)
        return sweep.run(visit)

    def reshard(self, queue: str, count: int) -> int:
        """See `Broker`."""

        async def work(connection: Any, loop: asyncio.AbstractEventLoop) -> int:
            layout = Layout(self._declarer(connection, loop), self._topology, queue)
            pour = partial(pour_out, connection, loop, self._resend)
            probe = admin.Probe(connection, loop)
            return await reshard(layout, probe, pour, self._topology, queue, count)

        return self._with_connection(work, RESHARD_TIMEOUT_S)

    def replay(self, queues: Iterable[str], create: bool = False) -> Replay:
        """See `Broker`."""
        return RabbitReplay(
            self._io,
            self._endpoints,
            self._topology,
            self._declarer,
            list(queues),
            create,
            self.options.publish_timeout_s,
        )

    def _resend(self, batch: Sequence[Outgoing]) -> list[Any]:
        return list(self.publish(batch, self.options.publish_timeout_s))

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> list[dict[str, Any]]:
        """See `Broker`."""
        exchange = self._topology.control

        async def work(connection: Any, loop: asyncio.AbstractEventLoop) -> Any:
            return await rabbitmq_control.ask(connection, loop, exchange, request, timeout_s)

        answers: list[dict[str, Any]] = self._with_connection(work, timeout_s + ADMIN_TIMEOUT_S)
        return answers

    def bind(self, bindings: Sequence[Binding]) -> None:
        """See `Broker`."""
        self._topology.bindings.update({binding.queue: binding for binding in bindings})

    def request(self, item: Outgoing, timeout_s: float) -> bytes:
        """See `Broker`."""
        return self._rpc.request(item, timeout_s)

    def events(self, name: str = "", prefetch: int = 100) -> RabbitFeed:
        """See `Broker`."""
        queue = f"{EXCHANGE}.{name}" if name else ""
        return RabbitFeed(
            self._io, self._endpoints, self._topology, self._declarer, EXCHANGE, queue, prefetch
        )

    def checks(self, queues: Iterable[str]) -> list[Check]:
        """See `Broker`."""
        names = list(queues)

        async def work(connection: Any, loop: asyncio.AbstractEventLoop) -> list[Check]:
            declarer = self._declarer(connection, loop, strict=True)
            return await admin.checks(connection, loop, self._topology, declarer, names)

        try:
            return self._with_connection(work)
        except AccessDenied as error:
            return [Check("broker.access", "failed", str(error), "check the broker URL")]
        except (BrokerUnavailable, ConfigError) as error:
            advice = "start RabbitMQ, or check host and port in the broker URL"
            return [Check("broker.reachable", "failed", str(error), advice)]

    def close(self) -> None:
        """See `Broker`."""
        self._io.close()


def _public(refused: ChannelClosed) -> Exception:
    """Return what callers of the broker may see."""
    if refused.code:
        return ConfigError(f"RabbitMQ refused: {refused}")
    return BrokerUnavailable(str(refused))
