"""How much the broker may leave here: fitted to the pace, and nothing behind long tasks.

Also the place from which consuming is paused and resumed while the worker runs. Where single
queues are to be paused one day (`consumer.pause` for a queue), it is decided here.
"""

import math
import time

from taskq.brokers.base import Consumer
from taskq.config import WorkerSettings
from taskq.worker.held import Held
from taskq.worker.pool import Pool
from taskq.worker.ready import Ready
from taskq.worker.window import Pace, worth_resizing

_RESIZE_S = 0.25
_SHRINK_S = 2.0
_HOARD_S = 1.0


class Prefetch:
    """The consumer's prefetch and pauses, as run times ask for.

    Attributes:
        size: The prefetch in force.
        consumer: What is resized; set before the first call.
    """

    consumer: Consumer

    def __init__(self, settings: WorkerSettings, pace: Pace, pool: Pool, ready: Ready) -> None:
        self.size = pace.prefetch()
        self._fixed = bool(settings.prefetch)
        self._pace = pace
        self._pool = pool
        self._ready = ready
        self._resized_at = 0.0
        self._too_big_since = math.inf
        self._ended_at = time.monotonic()
        self._long = False

    @property
    def paused(self) -> bool:
        """Whether nothing is consumed because every slot is taken by long tasks."""
        return self._long

    def adapt(self, quiet: bool) -> None:
        """Fit to the pace after runs ended; `quiet` says that nothing more is to be consumed."""
        now = self._ended_at = time.monotonic()
        if self._long:
            self.resume(quiet)
            return
        wanted = self._pace.prefetch()
        if not worth_resizing(self.size, wanted):
            self._too_big_since = math.inf
        elif now - self._resized_at > _RESIZE_S and (wanted > self.size or self._is_late(now)):
            self._resized_at = now
            self._too_big_since = math.inf
            self.size = wanted
            self.consumer.resize(wanted)

    def _is_late(self, now: float) -> bool:
        """Return whether the prefetch has been too big for a while, or is so by far.

        The swap of consumers that a resize takes has RabbitMQ give back what is under way, hundreds
        of messages, each of which starts by itself then: a second's slowness is not worth it.
        """
        if self._pace.is_long:
            return True
        self._too_big_since = min(self._too_big_since, now)
        return now - self._too_big_since > _SHRINK_S

    def hoarded(self) -> list[Held]:
        """Take out what waits behind long tasks while other workers may be idle."""
        ready = self._ready
        if self._fixed or self._pool.idle_slots() or not ready:
            return []
        # Runs that end say that tasks are short: on a busy machine a deep window of them takes
        # longer than this as well, and given back they would only come again.
        if max(ready.oldest_s(), self._ended_at) > time.monotonic() - _HOARD_S:
            return []
        if not self._long:
            # While every slot is taken nothing more is consumed: what is given back would return.
            self._long = True
            self.consumer.pause()
        return ready.clear()

    def resume(self, quiet: bool) -> None:
        """Consume again once a slot is free.

        To be asked now and then, not only when runs end: the last one may have ended before its
        executor returned what it had not started, and a paused worker sees no other.
        """
        free = self._pool.idle_slots() if self._long and not quiet else 0
        if free:
            self._long = False
            self.size = free
            self._resized_at = time.monotonic()
            self.consumer.resize(free)
            self.consumer.resume()
