"""`@app.on_dead_letter`: from the hub, which has letters made durable, to an executor."""

import asyncio
import contextlib
import itertools
import logging
import queue
import threading
from collections.abc import Sequence
from typing import Any, Final

from taskq.brokers.base import DEAD_QUEUE, Delivery, Outgoing
from taskq.hooks import Hooks
from taskq.message import Message
from taskq.worker.child import Child
from taskq.worker.outbox import Outbox
from taskq.worker.pool import Pool

log = logging.getLogger("taskq.worker.hooks")

_LOOK_S: Final = 0.5
_MOST_WAITING: Final = 1000
_LAST_WORDS_S: Final = 5.0
"""How long listeners may go on when their executor ends."""


class DeadTeller:
    """The hub's side: gives letters that are durable to an executor, and to another if that dies.

    Attributes:
        waiting: By number, letters whose listeners have not returned, and the executor that calls
            them.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, pool: Pool) -> None:
        self.waiting: dict[int, tuple[Child | None, Sequence[Any]]] = {}
        self._loop = loop
        self._pool = pool
        self._numbers = itertools.count()
        self._look: asyncio.TimerHandle | None = None

    def __call__(self, letters: Sequence[Outgoing]) -> None:
        """Take letters, on the settling thread."""
        parts = [(item.queue, item.message.to_list()) for item in letters]
        # At the very end of a worker the loop may be gone.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._tell, next(self._numbers), parts)

    def _tell(self, number: int, parts: Sequence[Any]) -> None:
        living = [child for child in self._pool.children if not child.dead]
        # One that stays, where there is one: who is about to end may not read it any more.
        living.sort(key=lambda child: (child.retiring, not child.ready))
        child = living[0] if living else None
        self.waiting[number] = child, parts
        if child is not None:
            child.on_told = self._told
            child.tell_dead(number, parts)
        if len(self.waiting) > _MOST_WAITING:
            self.waiting.pop(next(iter(self.waiting)))
            log.warning("on_dead_letter listeners are too slow, a batch of letters is not told")
        if self._look is None:
            self._look = self._loop.call_later(_LOOK_S, self._look_again)

    def _told(self, number: int) -> None:
        self.waiting.pop(number, None)

    def _look_again(self) -> None:
        self._look = None
        for number, (child, parts) in list(self.waiting.items()):
            if child is None or child.dead:
                self._tell(number, parts)
        if self.waiting and self._look is None:
            self._look = self._loop.call_later(_LOOK_S, self._look_again)


class DeadListeners:
    """The executor's side: calls the listeners on a thread of its own, one letter after another."""

    def __init__(self, hooks: Hooks, outbox: Outbox) -> None:
        self._hooks = hooks
        self._outbox = outbox
        self._todo: queue.SimpleQueue[tuple[int, Sequence[Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def put(self, number: int, parts: Sequence[Any]) -> None:
        """Take letters from the hub."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="taskq-dead", daemon=True)
            self._thread.start()
        self._todo.put((number, parts))

    def close(self) -> None:
        """Let the listeners finish, within a few seconds."""
        if self._thread is not None:
            self._todo.put(None)
            self._thread.join(_LAST_WORDS_S)

    def _work(self) -> None:
        # Only where there is a listener: an executor needs nothing else of it.
        from taskq.dead.letter import read_letter

        while (item := self._todo.get()) is not None:
            number, parts = item
            for _, fields in parts:
                letter = read_letter(Delivery(0, DEAD_QUEUE, Message.from_list(fields)))
                self._hooks.emit("dead_letter", letter)
            # The hub is gone, and nobody is left to tell.
            with contextlib.suppress(OSError):
                self._outbox.send("told", number)
