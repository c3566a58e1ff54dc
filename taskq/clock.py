"""The one door to time: wall-clock milliseconds, monotonic seconds, and dates on the wire.

Tests replace `now_ms` by monkeypatching this module; code must call it as `clock.now_ms()`.
"""

import time
from datetime import UTC, datetime


def now_ms() -> int:
    """Return the wall clock as integer milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


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
