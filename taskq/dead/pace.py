"""How fast letters go."""

from collections.abc import Callable
from typing import Final

from taskq import clock

_SHARE_S: Final = 0.1
"""Letters go in groups of what this time allows, so that each costs no round trip of its own."""


class Pace:
    """Lets so many go in a second.

    Args:
        rate_per_s: How many; 0 for all at once.
        sleep: Waits so many seconds.
    """

    def __init__(self, rate_per_s: float, sleep: Callable[[float], None]) -> None:
        self._rate = rate_per_s
        self._sleep = sleep
        self._free_s = clock.monotonic_s()

    def __call__(self, waiting: int) -> int:
        """Wait until some may go; return how many, at least one and at most `waiting`."""
        if not self._rate:
            return waiting
        count = min(waiting, max(1, int(self._rate * _SHARE_S)))
        now_s = clock.monotonic_s()
        start_s = max(self._free_s, now_s)
        if start_s > now_s:
            self._sleep(start_s - now_s)
        self._free_s = start_s + count / self._rate
        return count
