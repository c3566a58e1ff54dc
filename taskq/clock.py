"""The one door to time: wall-clock milliseconds, monotonic seconds, and dates on the wire.

Tests replace `now_ms` by monkeypatching this module; code must call it as `clock.now_ms()`.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

_STEP_NS: Final = 1_000_000_000
_DOUBT_NS: Final = 600_000_000_000


class SteadyClock:
    """The wall clock without its steps: one is believed when it has stood for ten minutes.

    A host whose clock is set a minute ahead would start delayed tasks early, let tasks expire that
    are in time, and take leases over from living workers. Small corrections, as NTP makes them, are
    followed at once. Steps are told by a clock that goes on while a machine sleeps: waking is none.
    """

    def __init__(self, wall_ns: Callable[[], int], steady_ns: Callable[[], int]) -> None:
        """Believe the wall clock as it is.

        Args:
            wall_ns: Nanoseconds since the epoch.
            steady_ns: Nanoseconds of a clock that never steps.
        """
        self._wall_ns = wall_ns
        self._steady_ns = steady_ns
        self._ahead_ns = wall_ns() - steady_ns()
        self._doubted_ns = self._ahead_ns
        self._since_ns = 0

    def now_ms(self) -> int:
        """Return integer milliseconds since the epoch."""
        wall_ns, steady_ns = self._wall_ns(), self._steady_ns()
        ahead_ns = wall_ns - steady_ns
        if abs(ahead_ns - self._ahead_ns) >= _STEP_NS:
            if abs(ahead_ns - self._doubted_ns) >= _STEP_NS:
                self._doubted_ns, self._since_ns = ahead_ns, steady_ns
            if steady_ns - self._since_ns < _DOUBT_NS:
                return (steady_ns + self._ahead_ns) // 1_000_000
        self._ahead_ns = self._doubted_ns = ahead_ns
        return wall_ns // 1_000_000


def _boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


_COUNTS_SLEEP: Final = hasattr(time, "CLOCK_BOOTTIME")
# Elsewhere no clock is known that counts sleep, and every wake-up would be a step.
_steady = SteadyClock(time.time_ns, _boot_ns) if _COUNTS_SLEEP else None


def now_ms() -> int:
    """Return the wall clock as integer milliseconds since the epoch; see `SteadyClock`."""
    return time.time_ns() // 1_000_000 if _steady is None else _steady.now_ms()


def monotonic_s() -> float:
    """Return seconds of a clock that never steps; for timeouts and run times."""
    return time.monotonic()


def to_iso(moment_ms: int) -> str:
    """Write epoch milliseconds as ISO-8601 in UTC, with offset and microseconds.

    Celery reads the `eta` and `expires` headers in this form.
    """
    return datetime.fromtimestamp(moment_ms / 1000, UTC).isoformat()


def from_iso(text: str) -> int:
    """Read an ISO-8601 date as epoch milliseconds; a date without offset counts as UTC.

    Raises:
        ValueError: If `text` is not an ISO-8601 date, or lies outside the years 1970 to 9999.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    try:
        stamp = moment.timestamp()
    except (OverflowError, OSError) as error:
        raise ValueError(f"date out of range: {text!r}") from error
    if stamp < 0:
        raise ValueError(f"date before 1970: {text!r}")
    return round(stamp * 1000)
