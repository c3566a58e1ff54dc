"""What may start, in the order in which it starts."""

from collections import deque
from collections.abc import Iterable, Iterator

from taskq.worker.held import Held


class Ready:
    """Admitted deliveries that no executor holds: first in, first out.

    Another order (by priority, say) is another class with these methods; nothing outside looks at
    how they are kept.
    """

    def __init__(self) -> None:
        self._items: deque[Held] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Held]:
        return iter(self._items)

    def append(self, held: Held) -> None:
        """Put a delivery behind the others."""
        self._items.append(held)

    def extendleft(self, batch: Iterable[Held]) -> None:
        """Put back in front what an executor returned; the last of `batch` comes to be first."""
        self._items.extendleft(batch)

    def pop(self) -> Held:
        """Take out what starts next.

        Raises:
            IndexError: If there is nothing.
        """
        return self._items.popleft()

    def oldest_s(self) -> float:
        """Return since when the next one waits, on the monotonic clock.

        Raises:
            IndexError: If there is nothing.
        """
        return self._items[0].since_s

    def clear(self) -> list[Held]:
        """Take out everything."""
        items = list(self._items)
        self._items.clear()
        return items
