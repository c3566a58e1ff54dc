"""Proof that the worker is being given work: a consumer that is silently gone looks idle.

When work waits, slots are free and nothing is delivered for `watchdog_s`, the consuming channels
are rebuilt; when that does not help either, the worker exits with status 75 for its supervisor to
start it anew. Readiness tells it meanwhile. On RabbitMQ a worker may also be the stand-by of a
queue with a single active consumer, for which nothing is meant: after a rebuild in vain, and while
somebody else consumes the queue, it is left in peace.
"""

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from taskq.brokers.base import Broker, QueueDepth
from taskq.brokers.shapes import parse_shard
from taskq.errors import BrokerError, BrokerUnavailable

if TYPE_CHECKING:
    from taskq.worker.hub import Hub

log = logging.getLogger("taskq.worker")

_PAUSE_S = 1.0
_LOOKS = 3
"""Looks at the queue in a row that must find the same before anything is done about it."""


class Watchdog:
    """Looks at the queues while nothing is delivered; runs on the hub's loop.

    Attributes:
        trouble: What is wrong, or empty.
    """

    def __init__(self, hub: "Hub", broker: Broker, limit_s: float) -> None:
        """Watch nothing yet.

        Args:
            hub: Whose deliveries are watched.
            broker: Asked for the queues' depths, on its own connection.
            limit_s: Silence that is too long, in seconds.
        """
        self.trouble = ""
        self._hub = hub
        self._broker = broker
        self._limit_s = limit_s
        self._received = -1
        self._since_s = time.monotonic()
        self._looks = 0
        self._rebuilt = False
        self._standing_by = False

    async def run(self) -> None:
        """Watch until cancelled."""
        while self._limit_s:
            await asyncio.sleep(self._limit_s / _LOOKS)
            if self._hub.stats.received != self._received:
                self._received = self._hub.stats.received
                self._rebuilt = self._standing_by = False
                self._begin_anew("deliveries come again")
            elif not self._is_hungry():
                self._since_s = time.monotonic()
            elif time.monotonic() - self._since_s >= self._limit_s and not self._standing_by:
                await self._look()

    def _is_hungry(self) -> bool:
        """Return whether a message that waits should be delivered now."""
        hub = self._hub
        free = hub.pool.idle_slots() > 0 and len(hub.held) < hub.prefetch
        return free and hub.connected and hub.consuming and not hub.unsettled

    def _begin_anew(self, why: str) -> None:
        if self.trouble:
            log.info("watchdog: %s", why)
        self.trouble = ""
        self._looks = 0
        self._since_s = time.monotonic()

    async def _look(self) -> None:
        received = self._hub.stats.received
        paused = self._hub.pauses.queues
        # The next task of a shard waits while some worker has the one before.
        queues = [n for n in self._hub.queues if n not in paused and parse_shard(n) is None]
        try:
            depths = await asyncio.to_thread(self._broker.depths, queues)
        except BrokerError:
            # No evidence of anything: whoever sends will learn of it.
            return
        waiting = {name: depth for name, depth in depths.items() if depth and depth.ready}
        if not waiting or self._hub.stats.received != received:
            self._begin_anew("nothing waits")
            return
        self._looks += 1
        if self._looks >= _LOOKS:
            self._looks = 0
            await self._act(*next(iter(waiting.items())))

    async def _act(self, name: str, depth: QueueDepth) -> None:
        silence_s = time.monotonic() - self._since_s
        told = f"{depth.ready} messages wait in queue {name}, none delivered for {silence_s:.0f} s"
        if not self._rebuilt:
            self.trouble = told
            log.warning("watchdog: %s; consuming anew", told)
            self._rebuilt = True
            self._since_s = time.monotonic()
            self._hub.consumer.rebuild()
        elif self._broker.may_stand_by and await self._others_consume(name):
            log.info("standing by: another worker consumes queue %s", name)
            self.trouble = ""
            self._standing_by = True
        else:
            self.trouble = told
            self._hub.fatal(BrokerUnavailable(f"watchdog: {told}, also after consuming anew"))

    async def _others_consume(self, name: str) -> bool:
        """Return whether the queue has a consumer while this one is paused."""
        consumer = self._hub.consumer
        consumer.pause()
        try:
            await asyncio.sleep(_PAUSE_S)
            depths = await asyncio.to_thread(self._broker.depths, [name])
        except BrokerError:
            # Nothing is certain, so nothing is done.
            return True
        finally:
            if self._hub.consuming:
                consumer.resume()
        depth = depths[name]
        return depth is None or depth.consumers > 0
