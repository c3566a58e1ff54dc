"""The fields of a crontab expression, and the next wall-clock time that they match.

croniter reads the expression. The arithmetic is done here: croniter knows no way to fire once in
the night that repeats an hour, and takes 0.1 ms a step, too long for 100,000 schedules.
"""

import re
from bisect import bisect_left
from calendar import monthrange
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

from taskq.errors import ConfigError

_ALONE: Final = r"(?<![A-Za-z@])[{0}](?![A-Za-z])"
_HASHED: Final = re.compile(_ALONE.format("Hh"))
_RANDOM: Final = re.compile(_ALONE.format("Rr"))
_NEAREST: Final = re.compile(r"(?i)\d+w|lw")
_SECOND: Final = timedelta(seconds=1)
_DAY: Final = timedelta(days=1)
_YEARS: Final = 50
"""A date that does not come within so many years never comes: 29 February on a Sunday takes 40."""
_LAST: Final = -1


@dataclass(frozen=True, slots=True)
class Fields:
    """What a wall-clock time must match.

    Attributes:
        seconds: In order.
        minutes: In order.
        hours: In order.
        days: Days of the month.
        last_day: Whether the last day of the month matches too.
        months: 1 to 12.
        weekdays: Sunday is 0.
        nths: Pairs (weekday, which one of the month; -1 for the last).
        both_days: Whether day of month and day of week must both match; else one is enough.
        wild: Whether the expression is an interval: minute or hour begins with `*`.
    """

    seconds: tuple[int, ...]
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    last_day: bool
    months: frozenset[int]
    weekdays: frozenset[int]
    nths: tuple[tuple[int, int], ...]
    both_days: bool
    wild: bool

    def matches_day(self, day: date) -> bool:
        """Return whether a date matches the two day fields."""
        of_month = day.day in self.days or (
            self.last_day and day.day == monthrange(day.year, day.month)[1]
        )
        if of_month != self.both_days:
            return of_month
        return self._matches_weekday(day)

    def _matches_weekday(self, day: date) -> bool:
        weekday = (day.weekday() + 1) % 7
        if weekday in self.weekdays:
            return True
        for wanted, nth in self.nths:
            if weekday == wanted:
                if nth == _LAST and day.day + 7 > monthrange(day.year, day.month)[1]:
                    return True
                if (day.day + 6) // 7 == nth:
                    return True
        return False

    def next_wall(self, after: datetime) -> datetime | None:
        """Return the first matching naive time later than another; None if none comes."""
        try:
            start = after.replace(microsecond=0) + _SECOND
            day, hour, minute, second = start.date(), start.hour, start.minute, start.second
            while day.year - start.year <= _YEARS:
                if day.month not in self.months:
                    day = (day.replace(day=1) + 31 * _DAY).replace(day=1)
                elif self.matches_day(day):
                    found = self._time_from(hour, minute, second)
                    if found is not None:
                        return datetime(day.year, day.month, day.day, *found)
                    day += _DAY
                else:
                    day += _DAY
                hour = minute = second = 0
        except OverflowError:
            # The calendar ends with the year 9999.
            return None
        return None

    def _time_from(self, hour: int, minute: int, second: int) -> tuple[int, int, int] | None:
        """Return the first matching time of day that is not earlier than this one."""
        hours, minutes, seconds = self.hours, self.minutes, self.seconds
        h = bisect_left(hours, hour)
        if h < len(hours) and hours[h] == hour:
            m = bisect_left(minutes, minute)
            if m < len(minutes) and minutes[m] == minute:
                s = bisect_left(seconds, second)
                if s < len(seconds):
                    return hour, minute, seconds[s]
                m += 1
            if m < len(minutes):
                return hour, minutes[m], seconds[0]
            h += 1
        return (hours[h], minutes[0], seconds[0]) if h < len(hours) else None


def is_hashed(expression: str) -> bool:
    """Return whether an expression has an `H`."""
    return _HASHED.search(expression) is not None


@lru_cache(maxsize=65536)
def parse_fields(expression: str, hash_id: str) -> Fields:
    """Read an expression of five fields, or six with the seconds at the end.

    Args:
        expression: Such as `30 2 * * mon-fri`, `@daily`, `H 3 * * *`.
        hash_id: What `H` is computed from.

    Raises:
        ConfigError: If it is malformed, or no date matches it.
    """
    from croniter import croniter

    if _RANDOM.search(expression):
        raise ConfigError(
            f"crontab {expression!r}: R is another time in each process; use H, which is the same"
        )
    if _NEAREST.search(expression):
        raise ConfigError(f"crontab {expression!r}: W (nearest weekday) is not supported")
    # Only for H: with a hash croniter would also move @daily away from midnight.
    hashed = hash_id.encode() if is_hashed(expression) else None
    try:
        expanded, nths = croniter.expand(expression, hash_id=hashed)
    # croniter's errors are ValueErrors; odd texts make it raise others of Python's.
    except Exception as error:
        raise ConfigError(
            f"crontab {expression!r:.100} is malformed: {error}; write minute, hour, day of month, "
            "month and day of week, such as '30 2 * * mon-fri'"
        ) from None
    if len(expanded) not in (5, 6):
        raise ConfigError(f"crontab {expression!r} has a field for the year; use until=")
    fields = _fields(expression, expanded, nths)
    if fields.next_wall(datetime(2000, 1, 1)) is None:
        raise ConfigError(f"crontab {expression!r} never fires: no date matches it")
    return fields


def _fields(expression: str, expanded: list[list[Any]], nths: dict[int, set[Any]]) -> Fields:
    words = expression.split() if not expression.startswith("@") else []
    minutes, hours, days, months, weekdays = expanded[:5]
    seconds = expanded[5] if len(expanded) == 6 else [0]
    starred = [word[0] in "*?" for word in words] or [part == ["*"] for part in expanded]
    plain_weekdays = _span(weekdays, 0, 6) - nths.keys()
    return Fields(
        seconds=tuple(sorted(_span(seconds, 0, 59))),
        minutes=tuple(sorted(_span(minutes, 0, 59))),
        hours=tuple(sorted(_span(hours, 0, 23))),
        days=frozenset(_span(days, 1, 31)),
        last_day="l" in days,
        months=frozenset(_span(months, 1, 12)),
        weekdays=frozenset(plain_weekdays),
        nths=tuple(
            (weekday, _LAST if nth == "l" else int(nth))
            for weekday, which in sorted(nths.items())
            for nth in which
        ),
        both_days=starred[2] or starred[4],
        wild=starred[0] or starred[1],
    )


def _span(values: list[Any], low: int, high: int) -> set[int]:
    if "*" in values:
        return set(range(low, high + 1))
    return {value for value in values if isinstance(value, int)}
