"""A sink that notes what it is told, and messages, for tests of the embedded broker."""

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from processes import wait_for

from taskq.body import encode_call
from taskq.brokers.base import Broker, Consumer, Delivery, Outgoing

_ids = itertools.count()


def outgoing(queue: str = "q", *, due_ms: int = 0, priority: int = 0, args: Any = ()) -> Outgoing:
    """Return a message on its way, with an id of its own."""
    message = encode_call("t.run", f"id-{next(_ids)}", args, {}, priority=priority)
    return Outgoing(queue, message, due_ms)


class Hub:
    """A loop on a thread of its own, and a consumer on it that keeps what it gets.

    Attributes:
        got: Deliveries in the order they came.
        connections: What `Sink.connection` was told.
        errors: What `Sink.fatal` was told.
        losses: How often `Sink.lost` was called.
    """

    def __init__(self) -> None:
        self.got: list[Delivery] = []
        self.connections: list[tuple[bool, str]] = []
        self.errors: list[Exception] = []
        self.losses = 0
        self.consumer: Consumer
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def delivered(self, batch: list[Delivery]) -> None:
        self.got += batch

    def lost(self) -> None:
        self.losses += 1

    def connection(self, up: bool, detail: str) -> None:
        self.connections.append((up, detail))

    def fatal(self, error: Exception) -> None:
        self.errors.append(error)

    def control(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        return {"echo": request["command"]} if request["command"] != "hush" else None

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Run a function on the loop and wait for it."""
        done = threading.Event()
        self.loop.call_soon_threadsafe(lambda: (function(*args), done.set()))
        assert done.wait(10)

    def wait_for(self, count: int, timeout_s: float = 15) -> list[Delivery]:
        """Wait until so many deliveries came, and return them."""
        wait_for(lambda: len(self.got) >= count, timeout_s, f"{count} deliveries")
        return self.got

    def close(self) -> None:
        """Close the consumer in order."""
        asyncio.run_coroutine_threadsafe(self.consumer.close(), self.loop).result(20)

    def end(self) -> None:
        """Close all."""
        self.close()

        async def finish() -> None:
            await self.loop.shutdown_default_executor()

        asyncio.run_coroutine_threadsafe(finish(), self.loop).result(20)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@contextmanager
def consuming(
    broker: Broker, queues: Sequence[str], prefetch: int = 100, held_back: Sequence[str] = ()
) -> Iterator[Hub]:
    """Run a consumer of these queues for the duration of a block."""
    hub = Hub()
    hub.consumer = broker.consumer(queues, prefetch, hub, hub.loop)
    if held_back:
        hub.call(hub.consumer.hold, held_back)
    hub.call(hub.consumer.start)
    try:
        yield hub
    finally:
        hub.end()
