"""How much work to hold: windows of executors and the broker's prefetch, from measured run times.

Pure arithmetic. Short tasks need a deep window, or the pipe runs dry between two turns of the hub;
a long task needs none, or what waits behind it is hoarded.
"""

import math
from collections.abc import Sequence

_WINDOW_S = 0.02
_MAX_WINDOW = 512
_PREFETCH_S = 0.05
_MAX_PREFETCH = 2000
_WEIGHT = 0.3
_LONG_US = 20_000
_MANY = 8


class Pace:
    """The smoothed run time of recent tasks, and what follows from it."""

    def __init__(self, slots: int, fixed_prefetch: int = 0) -> None:
        """Begin without a measurement.

        Args:
            slots: Tasks that run at once in the whole worker.
            fixed_prefetch: Prefetch set by the user; 0 to find it.
        """
        self._slots = slots
        self._fixed = fixed_prefetch
        self._mean_us = -1.0

    @property
    def is_long(self) -> bool:
        """Whether tasks are so long that nothing should be held ahead."""
        return self._mean_us >= _LONG_US

    @property
    def mean_s(self) -> float:
        """The smoothed run time in seconds; -1 before the first measurement."""
        return self._mean_us / 1e6 if self._mean_us >= 0 else -1.0

    def measured(self, total_us: int, count: int) -> None:
        """Take in a batch of finished runs: the sum of their run times, and how many."""
        if count <= 0:
            return
        mean_us = total_us / count
        if self._mean_us < 0 or mean_us > max(self._mean_us * 10, _LONG_US):
            # Tasks got long all at once: smoothing would hoard for many batches more. Below that
            # a jump is only the operating system's doing, and must not empty the pipe.
            self._mean_us = mean_us
        else:
            weight = min(0.9, _WEIGHT * math.log2(count + 1))
            self._mean_us += (mean_us - self._mean_us) * weight

    def ran(self, times_us: Sequence[int]) -> None:
        """Take in the run times of a batch.

        Args:
            times_us: Each in microseconds.
        """
        total_us, count = sum(times_us), len(times_us)
        if count >= _MANY:
            # One that stands out among many was interrupted by the operating system: 10 ms of that
            # in a batch of 50 us tasks would shrink the prefetch to a tenth, twice a second.
            total_us, count = total_us - max(times_us), count - 1
        self.measured(total_us, count)

    def window(self, slots: int) -> int:
        """Return how many tasks an executor of so many slots may hold, running ones included."""
        if self._mean_us < 0:
            return slots
        ahead = _WINDOW_S * 1e6 / max(self._mean_us, 1.0)
        return slots + min(_MAX_WINDOW, int(slots * ahead))

    def prefetch(self) -> int:
        """Return how many unsettled messages the broker should leave here."""
        if self._fixed:
            return self._fixed
        if self._mean_us < 0:
            return self._slots + 1
        ahead = self._slots * _PREFETCH_S * 1e6 / max(self._mean_us, 20.0)
        return self._slots + min(_MAX_PREFETCH, int(ahead))


def worth_resizing(current: int, wanted: int) -> bool:
    """Return whether a new prefetch differs enough to swap consumers: by half or double."""
    return wanted >= current * 2 or wanted * 2 <= current
