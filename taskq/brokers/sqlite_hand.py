"""What a consumer of the embedded broker holds, and how much more it may take."""

import threading
from collections import Counter
from collections.abc import Iterable, Sequence

from taskq.brokers.base import Delivery

Receipt = tuple[int, int]
"""Owner and row number; void once the consumer's owner is another."""


class Hand:
    """The unsettled deliveries of one consumer; thread-safe.

    Args:
        queues: Names without prefix, in order of preference.
        prefetch: How many deliveries may be here.
    """

    def __init__(self, queues: Sequence[str], prefetch: int) -> None:
        self.prefetch = prefetch
        self.held_back: frozenset[str] = frozenset()
        self._queues = queues
        self._guard = threading.Lock()
        self._held: dict[Receipt, str] = {}
        self._counts: Counter[str] = Counter()

    def room(self) -> list[str]:
        """Return the queues that may deliver now, in order of preference."""
        with self._guard:
            free = self.prefetch > len(self._held)
            names = [name for name in self._queues if free or not self._counts[name]]
            held_back = self.held_back
            return [name for name in names if name not in held_back] if held_back else names

    def count_for(self, queue: str, taken: int) -> int:
        """Return how many messages a queue may deliver.

        Args:
            queue: Its name.
            taken: How many others deliver at the same time, not yet in `take`.
        """
        with self._guard:
            free = self.prefetch - len(self._held) - taken
            # A queue that has nothing here gets one in any case: others would starve it.
            return max(free, 0 if self._counts[queue] else 1)

    def take(self, deliveries: Iterable[Delivery]) -> None:
        """Add deliveries."""
        with self._guard:
            for delivery in deliveries:
                self._held[delivery.receipt] = delivery.queue
                self._counts[delivery.queue] += 1

    def known(self, receipts: Iterable[Receipt]) -> list[Receipt]:
        """Return those receipts that are not void."""
        with self._guard:
            return [receipt for receipt in receipts if receipt in self._held]

    def drop(self, receipts: Iterable[Receipt]) -> None:
        """Forget receipts."""
        with self._guard:
            for receipt in receipts:
                queue = self._held.pop(receipt, None)
                if queue is not None:
                    self._counts[queue] -= 1

    def clear(self) -> int:
        """Forget all, and return how many that were."""
        with self._guard:
            count = len(self._held)
            self._held.clear()
            self._counts.clear()
        return count
