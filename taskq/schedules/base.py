"""What every schedule is: a pure function from a moment to the next one that is due."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any, Final

from taskq.errors import ConfigError

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)


class Schedule(ABC):
    """When something is due; immutable, comparable, without any state of what has run.

    Moments are kept to the millisecond.
    """

    __slots__ = ()

    @abstractmethod
    def next_ms(self, after_ms: int) -> int | None:
        """Return the first due moment later than another, as epoch ms; None for never again."""

    @abstractmethod
    def bound(self, name: str) -> "Schedule":
        """Return this schedule with hashing (`H`, jitter) by this name, where it has no other."""

    @abstractmethod
    def to_wire(self) -> dict[str, Any]:
        """Return plain data that `taskq.schedules.wire.schedule_from_wire` reads."""

    def zone(self) -> tzinfo:
        """Return the time zone in which due moments are shown; UTC unless it has one."""
        return UTC

    def next_after(self, moment: datetime) -> datetime | None:
        """Return the first due moment strictly later than another, or None for never again.

        The answer is in the schedule's zone: with that zone's offset of the moment, so that
        answers compare and subtract as moments do, also in the night when an hour is repeated.
        Asked in the schedule's own `ZoneInfo`, it answers in it.

        Args:
            moment: An aware datetime.

        Raises:
            ConfigError: If it is not aware.
        """
        due_ms = self.next_ms(to_ms(moment))
        if due_ms is None:
            return None
        due = local(due_ms, self.zone())
        if due.tzinfo is moment.tzinfo:
            return due
        return due.replace(tzinfo=timezone(due.utcoffset() or timedelta(), due.tzname() or ""))


def to_ms(moment: Any) -> int:
    """Return an aware datetime as epoch ms, rounded down.

    Raises:
        ConfigError: If it is not an aware datetime.
    """
    if not isinstance(moment, datetime) or moment.utcoffset() is None:
        raise ConfigError(
            f"{moment!r:.80} is not an aware datetime; give it a zone, such as "
            "datetime.now(timezone.utc)"
        )
    return (moment - EPOCH) // _MS


def local(moment_ms: int, zone: tzinfo) -> datetime:
    """Return epoch ms as a datetime in a zone; `fold` tells the second of two equal times.

    Raises:
        OverflowError: For a moment outside of the years 1 to 9999.
    """
    return (EPOCH + timedelta(milliseconds=moment_ms)).astimezone(zone)


def only(wire: Mapping[str, Any], *names: str) -> None:
    """Refuse keys other than these.

    Raises:
        ConfigError: If there is one.
    """
    for name in wire:
        if name not in names:
            raise ConfigError(f"a schedule has no {name!r}; known here: {', '.join(names)}")
