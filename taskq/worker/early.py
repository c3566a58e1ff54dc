"""Messages that came before their time: held for their last second, else sent on towards it.

A broker's delay grid delivers a little early, on purpose; the worker compares with the wall clock,
so nothing starts early. Longer than a second nothing is held: a delay lives in the broker.
"""

import asyncio
from collections.abc import Callable

from taskq import clock
from taskq.worker.held import Held

_HOLD_MS = 1000
_CROWDED_HOLD_MS = 250
_ROUND_MS = 150


class Early:
    """Holds early deliveries on timers of the hub's loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_due: Callable[[Held], None]) -> None:
        """Hold nothing yet.

        Args:
            loop: The hub's.
            on_due: Told each delivery whose time has come.
        """
        self._loop = loop
        self._on_due = on_due
        self._held: set[Held] = set()

    def hold(self, held: Held, early_ms: int, prefetch: int) -> bool:
        """Hold a delivery until it is due.

        Args:
            held: The delivery.
            early_ms: By how much it is early, in milliseconds.
            prefetch: How many deliveries the worker may have; early ones take at most half.

        Returns:
            False when it must be sent on instead.
        """
        # What a limit let through is held in any case: its start is paid for.
        crowded = held.grant is None and (len(self._held) + 1) * 2 > prefetch
        if crowded and held.waited is not None and held.waited.waited.endswith("c"):
            # However short its wait: behind it other keys wait, whose slots are free. Through the
            # shortest delay, so that a queue of nothing else does not come round and round.
            held.due_ms = max(held.due_ms, clock.now_ms() + _ROUND_MS)
            return False
        if early_ms > (_CROWDED_HOLD_MS if crowded else _HOLD_MS):
            return False
        self._held.add(held)
        self._loop.call_later(early_ms / 1000, self._due, held)
        return True

    def _due(self, held: Held) -> None:
        if held not in self._held:
            return
        left_ms = held.due_ms - clock.now_ms()
        if left_ms > 0:
            # The loop's clock and the wall clock differ by a little: never early.
            self._loop.call_later(left_ms / 1000, self._due, held)
            return
        self._held.discard(held)
        self._on_due(held)

    def clear(self) -> list[Held]:
        """Let go of everything, and return it."""
        items = list(self._held)
        self._held.clear()
        return items
