"""Deliveries of a task that is in this worker's hands already: they wait for its end.

A sender that got no confirm sends again, and a broker delivers again what was running here when the
connection broke. Started side by side, both would run; one after the other, the second finds the
first one's record. An id is given free only when its ending is settled, so that who is admitted
next sees what was stored.
"""

import time
from collections import deque
from collections.abc import Iterable

from taskq.worker.held import Held

_PATIENCE_S = 1.0
RETURN_MS = 5000
"""For how long the broker keeps what would wait here for longer than that."""


class Twins:
    """Lets one delivery of each task id go on at a time."""

    def __init__(self) -> None:
        self._ids: dict[str, list[Held]] = {}
        self._ended: deque[tuple[int, Held]] = deque()
        self._waiting = 0
        self._put = 0
        self._settled = 0

    def enter(self, held: Held) -> bool:
        """Return whether a delivery may go on; if not, a later call of `settled` gives it back."""
        same = self._ids.setdefault(held.delivery.message.id, [])
        same.append(held)
        if len(same) == 1:
            return True
        held.since_s = time.monotonic()
        self._waiting += 1
        return False

    def put(self, batch: Iterable[Held]) -> None:
        """Learn that the endings of these were handed to the settler, in this order."""
        for held in batch:
            self._put += 1
            self._ended.append((self._put, held))

    def settled(self, count: int) -> list[Held]:
        """Learn that the next `count` endings were settled, and return who may go on."""
        self._settled += count
        freed = []
        while self._ended and self._ended[0][0] <= self._settled:
            freed += self.leave(self._ended.popleft()[1])
        return freed

    def leave(self, held: Held) -> list[Held]:
        """Strike out a delivery, and return who may go on instead: one or none."""
        task_id = held.delivery.message.id
        same = self._ids.get(task_id)
        if same is None or held not in same:
            return []
        was_first = same[0] is held
        same.remove(held)
        if same:
            self._waiting -= 1
        else:
            del self._ids[task_id]
        return same[:1] if was_first else []

    def impatient(self, patience_s: float = _PATIENCE_S) -> list[Held]:
        """Return those that wait for so long, struck out."""
        if not self._waiting:
            return []
        limit = time.monotonic() - patience_s
        late = [held for same in self._ids.values() for held in same[1:] if held.since_s <= limit]
        for held in late:
            self.leave(held)
        return late
