"""Deliveries of a task that is in this worker's hands already: they wait for its end.

A sender that got no confirm sends again, and a broker delivers again what was running here when the
connection broke. Started side by side, both would run; one after the other, the second finds the
first one's record. An id is given free only when its ending is settled, so that who is admitted
next sees what was stored.
"""

import time
from collections import deque
from collections.abc import Sequence

from taskq.worker.held import Held

_PATIENCE_S = 1.0
RETURN_MS = 5000
"""For how long the broker keeps what would wait here for longer than that."""


class Twins:
    """Lets one delivery of each task id go on at a time."""

    def __init__(self) -> None:
        self._first: dict[str, Held] = {}
        self._waiting: dict[str, list[Held]] = {}
        self._ended: deque[tuple[int, Sequence[Held]]] = deque()
        self._put = 0
        self._settled = 0

    def enter(self, batch: Sequence[Held]) -> list[Held]:
        """Return which of these may go on; `settled` gives the others back when they may."""
        first = self._first
        free = []
        for held in batch:
            task_id = held.delivery.message.id
            if task_id in first:
                held.since_s = time.monotonic()
                self._waiting.setdefault(task_id, []).append(held)
            else:
                first[task_id] = held
                free.append(held)
        return free

    def put(self, batch: Sequence[Held]) -> None:
        """Learn that the endings of these were handed to the settler, in this order."""
        self._put += len(batch)
        self._ended.append((self._put, batch))

    def settled(self, count: int) -> list[Held]:
        """Learn that the next `count` endings were settled, and return who may go on."""
        self._settled += count
        freed: list[Held] = []
        while self._ended and self._ended[0][0] <= self._settled:
            for held in self._ended.popleft()[1]:
                task_id = held.delivery.message.id
                if self._waiting:
                    freed += self.leave(held)
                elif self._first.get(task_id) is held:
                    del self._first[task_id]
        return freed

    def leave(self, held: Held) -> list[Held]:
        """Strike out a delivery, and return who may go on instead: one or none."""
        task_id = held.delivery.message.id
        waiting = self._waiting.get(task_id, [])
        if self._first.get(task_id) is held:
            del self._first[task_id]
            freed = waiting[:1]
            if freed:
                self._first[task_id] = freed[0]
        else:
            freed = []
        left = [other for other in waiting if other is not held and other not in freed]
        if left:
            self._waiting[task_id] = left
        else:
            self._waiting.pop(task_id, None)
        return freed

    def impatient(self, patience_s: float = _PATIENCE_S) -> list[Held]:
        """Return those that wait for so long, struck out."""
        if not self._waiting:
            return []
        limit = time.monotonic() - patience_s
        late = [held for same in self._waiting.values() for held in same if held.since_s <= limit]
        for held in late:
            self.leave(held)
        return late
