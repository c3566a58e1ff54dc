"""What may start, in the order in which it starts."""

from collections import deque
from collections.abc import Iterable, Iterator

from taskq.message import TOP_PRIORITY
from taskq.worker.held import Held


class Ready:
    """Admitted deliveries that no executor holds: highest priority first, then first in, first out.

    With aging, one start in so many goes to the lower priorities, each in its turn, so that a flood
    of urgent work does not keep the rest from ever starting.
    """

    def __init__(self, aging: int = 0) -> None:
        """Begin empty.

        Args:
            aging: One start in so many goes to a lower priority; 0 for strict order.
        """
        self._levels: list[deque[Held]] = [deque() for _ in range(TOP_PRIORITY + 1)]
        self._count = 0
        # No level above this one holds anything.
        self._top = 0
        self._aging = aging
        self._turn = 0
        self._aged = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Held]:
        for level in reversed(self._levels):
            yield from level

    def append(self, held: Held) -> None:
        """Put a delivery behind the others of its priority."""
        self._level(held).append(held)
        self._count += 1

    def extendleft(self, batch: Iterable[Held]) -> None:
        """Put back in front what an executor returned; the last of `batch` comes to be first."""
        for held in batch:
            self._level(held).appendleft(held)
            self._count += 1

    def _level(self, held: Held) -> deque[Held]:
        priority = held.delivery.message.priority
        if not 0 <= priority <= self._top:
            # AMQP knows 255 of them, and anybody may write one into a file.
            priority = max(0, min(priority, TOP_PRIORITY))
            self._top = max(self._top, priority)
        return self._levels[priority]

    def pop(self) -> Held:
        """Take out what starts next.

        Raises:
            IndexError: If there is nothing.
        """
        levels = self._levels
        while self._top and not levels[self._top]:
            self._top -= 1
        level = levels[self._top]
        if self._aging and self._top:
            level = self._aged_level(level)
        held = level.popleft()
        self._count -= 1
        return held

    def _aged_level(self, first: deque[Held]) -> deque[Held]:
        self._turn += 1
        if self._turn < self._aging:
            return first
        self._turn = 0
        for _ in range(self._top):
            self._aged = (self._aged - 1) % self._top
            if self._levels[self._aged]:
                return self._levels[self._aged]
        return first

    def oldest_s(self) -> float:
        """Return since when the longest waiting one waits, on the monotonic clock.

        Raises:
            IndexError: If there is nothing.
        """
        if not self._top:
            return self._levels[0][0].since_s
        waiting = [level[0].since_s for level in self._levels if level]
        if not waiting:
            raise IndexError("nothing is ready")
        return min(waiting)

    def clear(self) -> list[Held]:
        """Take out everything."""
        items = list(self)
        for level in self._levels:
            level.clear()
        self._count = self._top = 0
        return items
