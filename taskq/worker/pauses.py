"""What is paused, as one worker sees it: read every second, and acted on.

The hub pays for pauses only while there are some: the gate is taken out of admission otherwise.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from taskq import clock
from taskq.errors import ResultsUnavailable
from taskq.pauses import Pause, read_pauses
from taskq.results.base import ResultStore
from taskq.worker import endings
from taskq.worker.endings import Ending
from taskq.worker.held import Held

if TYPE_CHECKING:
    from taskq.worker.hub import Hub

log = logging.getLogger("taskq.worker")

LOOK_S: Final = 1.0
_SOON_S: Final = 0.05
_FIRST_WAIT_MS: Final = 2_000
_LONGEST_WAIT_MS: Final = 30_000


class PauseWatch:
    """Follows the pauses in the store; also the gate that keeps paused work from starting.

    Attributes:
        current: What is paused.
    """

    def __init__(self, hub: "Hub", store: ResultStore | None, loop: asyncio.AbstractEventLoop):
        self.current: tuple[Pause, ...] = ()
        self._queues: frozenset[str] = frozenset()
        self._tasks: dict[str, Pause] = {}
        self._hub = hub
        self._store = store
        self._loop = loop
        # A worker that starts while the store is away must not run what may be paused.
        self._known = store is None
        self._begun = False
        self._looking = False
        self._again = False
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def queues(self) -> frozenset[str]:
        """Names of the paused queues."""
        return self._queues

    def start(self) -> None:
        """Look for pauses, then let the hub consume: nothing is taken from a paused queue."""
        if self._store is None:
            self._begin()
            return
        self._hub.intake.gates = [self, *self._hub.intake.gates]
        self.look()

    def close(self) -> None:
        """End."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def look(self) -> None:
        """Read the pauses now; what changed is acted on in a moment."""
        if self._store is None or self._closed:
            return
        if self._looking:
            self._again = True
            return
        self._looking = True
        if self._timer is not None:
            self._timer.cancel()
        future = self._loop.run_in_executor(None, read_pauses, self._store)
        future.add_done_callback(self._looked)

    def _looked(self, done: "asyncio.Future[list[Pause]]") -> None:
        self._looking = False
        if self._closed or done.cancelled():
            return
        error = done.exception()
        if error is None:
            self._take(tuple(done.result()))
        elif not isinstance(error, ResultsUnavailable):
            # A refused password is reported by whoever greets the store; what is known goes on.
            log.debug("cannot read the pauses error=%s", error)
        self._begin()
        wait_s = LOOK_S
        if self._again:
            self._again, wait_s = False, 0.0
        now_ms = clock.now_ms()
        ends = [pause.until_ms for pause in self.current if pause.until_ms]
        if ends:
            wait_s = min(wait_s, max(_SOON_S, (min(ends) - now_ms) / 1000))
        self._timer = self._loop.call_later(wait_s, self.look)

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            self._hub.consumer.start()

    def _take(self, pauses: tuple[Pause, ...]) -> None:
        first, self._known = not self._known, True
        if pauses == self.current and not first:
            return
        self._tell(pauses)
        self.current = pauses
        queues = frozenset(pause.name for pause in pauses if pause.kind == "queue")
        self._tasks = {pause.name: pause for pause in pauses if pause.kind == "task"}
        if queues != self._queues:
            self._queues = queues
            self._hub.consumer.hold(queues)
        others = [gate for gate in self._hub.intake.gates if gate is not self]
        self._hub.intake.gates = [self, *others] if pauses else others
        if pauses:
            self._hub.withhold()

    def _tell(self, pauses: tuple[Pause, ...]) -> None:
        before = {(pause.kind, pause.name) for pause in self.current}
        after = {(pause.kind, pause.name) for pause in pauses}
        for pause in pauses:
            if (pause.kind, pause.name) not in before:
                log.info("paused %s %s by=%s why=%s", pause.kind, pause.name, pause.by, pause.why)
        for kind, name in sorted(before - after):
            log.info("resumed %s %s", kind, name)

    def idle(self) -> bool:
        """Return False: it stands in the way only while something is paused; see `Gate`."""
        return False

    def ask(self, batch: Sequence[Held]) -> Sequence[Ending | None]:
        """Return what becomes of deliveries that are paused, None for the others; see `Gate`."""
        if not self._known:
            raise ResultsUnavailable("what is paused is not known yet")
        return [self.verdict(held) for held in batch]

    def verdict(self, held: Held) -> Ending | None:
        """Return what becomes of a delivery that has not started; None when nothing pauses it.

        A queue's message goes back to it. A task's message is sent on to a later time, the later
        the longer the pause lasts, and no attempt is spent.
        """
        if held.delivery.queue in self._queues:
            return Ending(endings.REQUEUED)
        pause = self._tasks.get(held.delivery.message.task)
        if pause is None:
            return None
        now_ms = clock.now_ms()
        wait_ms = min(max(_FIRST_WAIT_MS, (now_ms - pause.since_ms) // 4), _LONGEST_WAIT_MS)
        if pause.until_ms:
            wait_ms = min(wait_ms, max(1, pause.until_ms - now_ms))
        return endings.deferred(held.case(self._hub.name, results=True), now_ms + wait_ms)

    def sort(self, batch: Sequence[Held]) -> tuple[list[Held], list[tuple[Held, Ending]]]:
        """Return which of these may start, and the endings of the others."""
        kept: list[Held] = []
        ended: list[tuple[Held, Ending]] = []
        for held in batch:
            ending = self.verdict(held)
            if ending is None:
                kept.append(held)
            else:
                ended.append((held, ending))
        return kept, ended

    def summary(self) -> list[str]:
        """Return what is paused, as `queue:mail` or `task:mail.send`, for `taskq inspect`."""
        return [f"{pause.kind}:{pause.name}" for pause in self.current]
