"""Schedules in plain words: when they are due, and what the clocks do to them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from taskq.errors import ConfigError
from taskq.schedules.base import Schedule, local
from taskq.schedules.cron import Crontab
from taskq.schedules.fields import Fields
from taskq.schedules.interval import Every
from taskq.schedules.zones import changes

_DAYS: Final = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
_MONTHS: Final = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
_NTH: Final = {1: "first", 2: "second", 3: "third", 4: "fourth", 5: "fifth", -1: "last"}
_FEW: Final = 6
_AHEAD_DAYS: Final = 400
_UNITS: Final = ((86_400_000, "day"), (3_600_000, "hour"), (60_000, "minute"), (1000, "second"))
MOST: Final = 1000


@dataclass(frozen=True, slots=True)
class Preview:
    """When a schedule is due.

    Attributes:
        text: In plain words.
        zone: Name of the time zone.
        ticks: The next due moments, in that zone.
        notes: What the changes of the clocks do to it in the next 400 days.
    """

    text: str
    zone: str
    ticks: list[datetime]
    notes: list[str]


def preview_of(
    schedule: Schedule, next_ms: Callable[[int], int | None], after_ms: int, count: int
) -> Preview:
    """Return a preview.

    Args:
        schedule: The schedule.
        next_ms: Its `next_ms`, or that of an entry with limits.
        after_ms: Ticks later than this, as epoch ms.
        count: How many.

    Raises:
        ConfigError: If the count is out of range.
    """
    if not isinstance(count, int) or not 1 <= count <= MOST:
        raise ConfigError(f"a preview of {count!r} ticks: use 1 to {MOST}")
    zone = schedule.zone()
    ticks: list[datetime] = []
    due_ms = next_ms(after_ms)
    while due_ms is not None and len(ticks) < count:
        ticks.append(local(due_ms, zone))
        due_ms = next_ms(due_ms)
    name = schedule.tz if isinstance(schedule, Crontab) else "UTC"
    return Preview(describe(schedule), name, ticks, clock_notes(schedule, after_ms))


def describe(schedule: Schedule) -> str:
    """Return a schedule in plain words."""
    if isinstance(schedule, Crontab):
        fields = schedule.fields
        parts = [_time(fields), *_day(fields)]
        return f"{', '.join(parts)}, {schedule.tz}"
    if isinstance(schedule, Every):
        text = f"every {_span(schedule.interval_ms)}"
        if schedule.anchor_ms:
            text += f", counted from {_date_time(local(schedule.anchor_ms, schedule.zone()))} UTC"
        if schedule.jitter_ms:
            text += f", each late by a fixed part of {_span(schedule.jitter_ms)}"
        return text
    due_ms = schedule.next_ms(-(2**53))
    return "never" if due_ms is None else f"once, {_date_time(local(due_ms, schedule.zone()))} UTC"


def _span(span_ms: int) -> str:
    for unit_ms, name in _UNITS:
        if span_ms % unit_ms == 0:
            count = span_ms // unit_ms
            return name if count == 1 else f"{count} {name}s"
    return f"{span_ms / 1000:g} seconds"


def _date_time(moment: datetime) -> str:
    shown = moment.strftime("%H:%M:%S") if moment.second else moment.strftime("%H:%M")
    return f"{_date(moment)} at {shown}"


def _date(moment: datetime) -> str:
    return f"{moment.day} {_MONTHS[moment.month - 1]} {moment.year}"


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _step(values: Sequence[int], whole: int) -> int:
    """Return the step of values that run evenly from 0 through the whole, else 0."""
    step = values[1] - values[0] if len(values) > 1 else 0
    return step if step and whole % step == 0 and list(values) == list(range(0, whole, step)) else 0


def _time(fields: Fields) -> str:
    hours, minutes, seconds = fields.hours, fields.minutes, fields.seconds
    whole_day = len(hours) == 24
    if len(minutes) > 1 and (step := _step(minutes, 60)):
        text = "every minute" if step == 1 else f"every {step} minutes"
    elif len(hours) * len(minutes) <= _FEW:
        return "at " + _and([_clock(h, m, seconds) for h in hours for m in minutes])
    elif whole_day:
        text = "every hour" + ("" if minutes == (0,) else f" at minute {_numbers(minutes)}")
    else:
        text = f"at minute {_numbers(minutes)}"
    if not whole_day:
        step = _step(hours, 24)
        text += f" of every {step} hours" if step else f" of hour {_numbers(hours)}"
    step = _step(seconds, 60)
    if step:
        often = "every second" if step == 1 else f"every {step} seconds"
        return often if whole_day and len(minutes) == 60 else f"{often}, {text}"
    return text if seconds == (0,) else f"{text}, at second {_numbers(seconds)}"


def _clock(hour: int, minute: int, seconds: Sequence[int]) -> str:
    text = f"{hour:02}:{minute:02}"
    if seconds == (0,):
        return text
    return f"{text}:{seconds[0]:02}" if len(seconds) == 1 else f"{text} ({len(seconds)} seconds)"


def _numbers(values: Sequence[int]) -> str:
    """Return numbers with runs of three and more as ranges."""
    parts: list[str] = []
    start = 0
    for i in range(1, len(values) + 1):
        if i == len(values) or values[i] != values[i - 1] + 1:
            run = values[start:i]
            parts += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else [str(v) for v in run]
            start = i
    return _and(parts)


def _ordinal(number: int) -> str:
    ending = "th" if 10 < number < 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _day(fields: Fields) -> list[str]:
    month_days = [_ordinal(day) for day in sorted(fields.days)]
    if fields.last_day:
        month_days.append("last day")
    weekdays = [_DAYS[day] for day in (1, 2, 3, 4, 5, 6, 0) if day in fields.weekdays]
    if weekdays == list(_DAYS[1:6]):
        weekdays = ["Monday to Friday"]
    nths = [f"{_NTH[nth]} {_DAYS[day]} of the month" for day, nth in fields.nths]
    any_day, any_weekday = len(fields.days) == 31, len(fields.weekdays) == 7
    month_part = f"the {_and(month_days)} of the month" if month_days else ""
    week_part = _and([*weekdays, *(f"the {text}" for text in nths)]) if weekdays or nths else ""
    if any_day and any_weekday:
        parts = ["every day"]
    elif any_day:
        parts = [f"on {week_part}"]
    elif any_weekday:
        parts = [f"on {month_part}"]
    elif fields.both_days:
        parts = [f"on {month_part} if it is {week_part}"]
    else:
        parts = [f"on {month_part} and on {week_part}"]
    if len(fields.months) < 12:
        parts.append(f"in {_and([_MONTHS[month - 1] for month in sorted(fields.months)])}")
    return parts


def clock_notes(schedule: Schedule, from_ms: int) -> list[str]:
    """Return what the changes of the clocks do to a schedule in the next 400 days."""
    if not isinstance(schedule, Crontab):
        return []
    fields, zone = schedule.fields, schedule.zone()
    notes = []
    try:
        found = changes(from_ms, _AHEAD_DAYS, zone)
    except OverflowError:
        return []
    for moment_ms, jump_ms in found:
        new = local(moment_ms, zone).replace(tzinfo=None)
        old = new - timedelta(milliseconds=jump_ms)
        low, high = min(old, new), max(old, new)
        wall = fields.next_wall(low - timedelta(seconds=1))
        if wall is None or wall >= high:
            continue
        hours = f"{low:%H:%M} to {high:%H:%M}"
        if jump_ms > 0:
            what = f"the clocks skip {hours}: "
            what += "nothing in it" if fields.wild else f"{wall:%H:%M} becomes {high:%H:%M}"
        else:
            what = f"the clocks show {hours} twice: "
            what += "both times" if fields.wild else f"{wall:%H:%M} only the first time"
        notes.append(f"{_date(new)}: {what}")
    return notes
