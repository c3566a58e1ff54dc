"""Schedules without wall clocks: every so often, and once."""

import hashlib
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from taskq import clock
from taskq.errors import ConfigError
from taskq.schedules.base import Schedule, to_ms

MIN_INTERVAL_S: Final = 0.1
MAX_INTERVAL_S: Final = 100 * 366 * 86400
_END_MS: Final = 253_402_300_800_000
"""The year 10,000, where the calendar ends."""


@dataclass(frozen=True, slots=True)
class Every(Schedule):
    """An interval; made by `every`.

    Attributes:
        interval_ms: From one due moment to the next.
        anchor_ms: A moment at which it is due, as epoch ms.
        jitter_ms: Each is late by a fixed part of this.
        hash_id: What that part is computed from; the schedule's name when it is empty.
    """

    interval_ms: int
    anchor_ms: int = 0
    jitter_ms: int = 0
    hash_id: str = ""

    def __str__(self) -> str:
        return f"every({self.interval_ms / 1000:g} s)"

    def next_ms(self, after_ms: int) -> int | None:
        """Return the first due moment later than another; see `Schedule`."""
        number = (after_ms - self.anchor_ms) // self.interval_ms
        due_ms = self._due_ms(number)
        if due_ms <= after_ms:
            due_ms = self._due_ms(number + 1)
        return due_ms if due_ms < _END_MS else None

    def _due_ms(self, number: int) -> int:
        due_ms = self.anchor_ms + number * self.interval_ms
        if self.jitter_ms:
            digest = hashlib.sha256(f"{self.hash_id}\0{number}".encode()).digest()
            due_ms += int.from_bytes(digest[:8], "big") % self.jitter_ms
        return due_ms

    def bound(self, name: str) -> "Every":
        """Return it with jitter computed from a name, where it has no other; see `Schedule`."""
        return replace(self, hash_id=name) if self.jitter_ms and not self.hash_id else self

    def to_wire(self) -> dict[str, Any]:
        """Return plain data; see `Schedule`."""
        wire: dict[str, Any] = {"every_s": self.interval_ms / 1000}
        if self.anchor_ms:
            wire["anchor"] = clock.to_iso(self.anchor_ms)
        if self.jitter_ms:
            wire["jitter_s"] = self.jitter_ms / 1000
        return {**wire, "hash_id": self.hash_id} if self.hash_id else wire


@dataclass(frozen=True, slots=True)
class Once(Schedule):
    """One moment; made by `once`.

    Attributes:
        at_ms: The moment, as epoch ms.
    """

    at_ms: int

    def __str__(self) -> str:
        return f"once({clock.to_iso(self.at_ms)})"

    def next_ms(self, after_ms: int) -> int | None:
        """Return the moment, or None when it is not later than another; see `Schedule`."""
        return self.at_ms if self.at_ms > after_ms else None

    def bound(self, name: str) -> "Once":
        """Return it as it is; see `Schedule`."""
        return self

    def to_wire(self) -> dict[str, Any]:
        """Return plain data; see `Schedule`."""
        return {"once": clock.to_iso(self.at_ms)}


def _seconds(name: str, value: Any, low_s: float, high_s: float) -> float:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not low_s <= value <= high_s:
        raise ConfigError(
            f"{name} is {value!r:.60}; use a timedelta or seconds, {low_s:g} to {high_s:g}"
        )
    return float(value)


def every(
    interval: "float | timedelta",
    *,
    anchor: datetime | None = None,
    jitter_s: "float | timedelta" = 0,
    hash_id: str = "",
) -> Every:
    """Return a schedule that is due again and again after the same time.

    It counts elapsed time, so the clocks of no zone matter to it. The due moments follow from the
    anchor alone, not from a scheduler's start, so that a restart neither adds nor drops one.

    Args:
        interval: Seconds, or a timedelta; at least 0.1 s.
        anchor: An aware datetime at which it is due; midnight UTC of 1 January 1970 by default.
        jitter_s: Spread over this time, at most the interval: each due moment is late by a part of
            it that is computed from its number and the schedule's name, and so always the same.
        hash_id: What that part is computed from; by default the schedule's name.

    Raises:
        ConfigError: For an interval or a jitter out of range, or a naive anchor.
    """
    interval_s = _seconds("every(...)", interval, MIN_INTERVAL_S, MAX_INTERVAL_S)
    late_s = _seconds("jitter_s", jitter_s, 0, interval_s)
    if not isinstance(hash_id, str):
        raise ConfigError(f"hash_id is {hash_id!r:.60}; use text")
    anchor_ms = 0 if anchor is None else to_ms(anchor)
    return Every(round(interval_s * 1000), anchor_ms, round(late_s * 1000), hash_id)


def once(at: datetime) -> Once:
    """Return a schedule that is due once.

    Args:
        at: An aware datetime.

    Raises:
        ConfigError: If it is not aware.
    """
    return Once(to_ms(at))
