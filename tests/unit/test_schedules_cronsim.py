"""Crontab schedules against cronsim, an independent implementation, zone by zone and year by year.

Left out, because cronsim means something else there:

* Australia/Lord_Howe, whose clocks change by 30 minutes, and Pacific/Chatham, whose clocks change
  at a quarter to: cronsim goes on in steps of whole hours, and leaves out what they pass over.
  `test_schedules.py` has those nights.
* The hour after clocks have skipped midnight (Cairo, Santiago, the Azores), for intervals: cronsim
  begins the day at a midnight that does not exist, and goes on in whole hours from there.
* Six fields: cronsim takes them for intervals whatever they say, and puts the seconds first; they
  are compared where no clock changes.

In each zone, rare expressions are compared over the whole of the five years, and dense ones in the
days around each change of the clocks and in two others. LONG=1 compares the dense ones over the
five years too, with more of both at random; it takes some minutes.
"""

import os
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim, CronSimError

from taskq.errors import ConfigError
from taskq.schedules import crontab
from taskq.schedules.base import local, to_ms
from taskq.schedules.zones import DAY_MS, changes, offset_ms

LONG = os.environ.get("LONG") == "1"
SEED = int(os.environ.get("SEED", "20261128"))
YEARS = range(2023, 2028)
END = datetime(2030, 1, 1, tzinfo=UTC)
ZONES = (
    "Africa/Cairo",
    "Africa/Casablanca",
    "Africa/Johannesburg",
    "America/Argentina/Buenos_Aires",
    "America/Asuncion",
    "America/Caracas",
    "America/Havana",
    "America/Los_Angeles",
    "America/Mexico_City",
    "America/New_York",
    "America/Santiago",
    "America/Sao_Paulo",
    "America/St_Johns",
    "Antarctica/Troll",
    "Asia/Beirut",
    "Asia/Gaza",
    "Asia/Jerusalem",
    "Asia/Kathmandu",
    "Asia/Kolkata",
    "Asia/Tokyo",
    "Atlantic/Azores",
    "Australia/Adelaide",
    "Australia/Sydney",
    "Europe/Berlin",
    "Europe/Dublin",
    "Europe/London",
    "Europe/Moscow",
    "Pacific/Auckland",
    "America/Nuuk",
    "UTC",
)
RARE = (
    "30 2 * * *",
    "0 0 * * *",
    "59 23 28-31 * *",
    "30 1 1,15 * 0",
    "0 3 * mar,oct sun",
)
"""Compared tick by tick over all the years."""
DENSE = (
    "15,45 0-3 * * *",
    "0 1-5/2 * * mon-fri",
    "*/20 1,2,3 * * *",
    "7 */5 * * *",
    "0 * * * *",
)


def wanted(expression: str, start: datetime, end: datetime) -> Iterator[datetime]:
    # Compared as epoch seconds: a datetime in a zone costs more to compare than a tick to find.
    end_s = end.timestamp()
    for tick in CronSim(expression, start):
        if tick.timestamp() > end_s:
            return
        yield tick


def ours(expression: str, zone: str, start: datetime, end: datetime) -> Iterator[datetime]:
    schedule = crontab(expression, tz=zone)
    end_s = end.timestamp()
    tick = schedule.next_after(start)
    while tick is not None and tick.timestamp() <= end_s:
        yield tick
        tick = schedule.next_after(tick)


@cache
def skipped_midnights(zone: str) -> frozenset[float]:
    """Return the moments at which a zone's clocks went from 24:00 to a later time than 00:00."""
    info = ZoneInfo(zone)
    first = to_ms(datetime(YEARS[0], 1, 1, tzinfo=UTC))
    return frozenset(
        moment_ms / 1000
        for moment_ms, jump_ms in changes(first, 366 * len(YEARS), info)
        if jump_ms > 0 and not (moment_ms - jump_ms + offset_ms(moment_ms, info)) % DAY_MS
    )


def assert_equal(expression: str, zone: str, start: datetime, end: datetime) -> int:
    """Compare all ticks between two moments, with the offset that each is told with."""
    wild = any(field.startswith("*") for field in expression.split()[:2])
    starts = skipped_midnights(zone) if wild else frozenset[float]()
    left_out = {start + second for start in starts for second in range(0, 3600, 60)}
    first, second = (
        [(stamp, tick.utcoffset()) for tick in ticks if (stamp := tick.timestamp()) not in left_out]
        for ticks in (wanted(expression, start, end), ours(expression, zone, start, end))
    )
    if first != second:
        odd = sorted({stamp for stamp, _ in set(first) ^ set(second)})[:4]
        shown = [datetime.fromtimestamp(stamp, ZoneInfo(zone)).isoformat() for stamp in odd]
        raise AssertionError(f"{expression!r} in {zone}: the two differ at {shown}")
    return len(first)


def windows(zone: str, dice: random.Random) -> Iterator[tuple[datetime, datetime]]:
    """Yield the days around each change of a zone's clocks, and some others."""
    info = ZoneInfo(zone)
    first = to_ms(datetime(YEARS[0], 1, 1, tzinfo=UTC))
    moments = [moment for moment, _ in changes(first, 366 * len(YEARS), info)]
    moments += [first + dice.randrange(5 * 365 * 86_400_000) for _ in range(2)]
    for moment in moments:
        start = local(moment - dice.randrange(1, 30) * 3_600_000, info)
        yield start, start + timedelta(days=2)


def part(dice: random.Random, low: int, high: int) -> str:
    one, two = sorted(dice.sample(range(low, high + 1), 2))
    return dice.choice(
        ["*", f"*/{dice.randint(2, 9)}", f"{one}", f"{one}-{two}", f"{one},{two}", f"{one}-{two}/3"]
    )


def rare_expression(dice: random.Random) -> str:
    """Return five fields that fire at most a few times a day, at night as a rule."""
    hour = dice.choice([0, 0, 1, 1, 2, 2, 3, 3, 23, dice.randrange(24)])
    minute = dice.choice([0, 0, 15, 30, 59, dice.randrange(60)])
    hours = dice.choice([f"{hour}", f"{hour}", f"{hour},{(hour + 1) % 24}"])
    day = dice.choice(["*", "*", "*/3", "1-7", "20-31", "L"])
    weekday = dice.choice(["*", "*", "sun", "mon-fri", "sat#4"])
    return f"{minute} {hours} {day} {dice.choice(['*', '*', '3-11', 'mar-apr,oct'])} {weekday}"


def random_expression(dice: random.Random) -> str:
    """Return five fields, with days and months loose enough to fire within days."""
    day = dice.choice(["*", "*", "*", "*/2", "1-20", "10-31"])
    weekday = dice.choice(["*", "*", "*", "*/2", "mon-fri", "0,6", "7"])
    return f"{part(dice, 0, 59)} {part(dice, 0, 23)} {day} * {weekday}"


def years(zone: str) -> tuple[datetime, datetime]:
    info = ZoneInfo(zone)
    return datetime(YEARS[0], 1, 1, tzinfo=info), datetime(YEARS[-1] + 1, 1, 1, tzinfo=info)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("zone", ZONES)
def test_every_tick_of_five_years_is_that_of_cronsim(zone: str) -> None:
    """Where two independent readings of cron's rules agree, a tick is neither lost nor doubled."""
    dice = random.Random(f"{SEED} {zone} years")
    start, end = years(zone)
    compared = 0
    others = [rare_expression(dice) for _ in range(30 if LONG else 1)]
    for expression in (*RARE, *(DENSE if LONG else ()), *others):
        compared += assert_equal(expression, zone, start, end)

    assert compared > 4000


@pytest.mark.timeout(300)
@pytest.mark.parametrize("zone", ZONES)
def test_every_tick_around_a_change_of_the_clocks_is_that_of_cronsim(zone: str) -> None:
    dice = random.Random(f"{SEED} {zone}")
    compared = 0
    for start, end in windows(zone, dice):
        others = [random_expression(dice) for _ in range(15 if LONG else 1)]
        for expression in (*DENSE, *others):
            compared += assert_equal(expression, zone, start, end)

    assert compared > 100


def test_days_of_any_kind_are_those_of_cronsim() -> None:
    """Both day fields, last days and nth weekdays, over years and without a zone in the way."""
    dice = random.Random(f"{SEED} days")
    start = datetime(2024, 1, 1, tzinfo=UTC)
    compared = 0
    for _ in range(2000 if LONG else 150):
        days = dice.choice(["*", "L", "29", "1,15", "31", "*/3", part(dice, 1, 28)])
        months = dice.choice(["*", "2", "1-6", "*/5", "feb,dec"])
        weekdays = dice.choice(["*", "1", "*/2", "fri#2", "sun#5", "L5", "mon-thu", "6,7"])
        expression = f"0 12 {days} {months} {weekdays}"
        try:
            # cronsim writes `5L` where croniter writes `L5`.
            other = list(wanted(expression.replace("L5", "5L"), start, END))
        except CronSimError:
            other = []
        try:
            found = list(ours(expression, "UTC", start, END))
        except ConfigError:
            found = []
        assert found == other, expression
        compared += len(found)

    assert compared > 1000


def test_six_fields_are_those_of_cronsim_where_no_clock_changes() -> None:
    """Seconds stand last here, as croniter has them, and first in cronsim."""
    dice = random.Random(f"{SEED} seconds")
    start = datetime(2026, 5, 1, 22, 59, 58, tzinfo=UTC)
    for _ in range(300 if LONG else 40):
        fields = f"{part(dice, 0, 59)} {part(dice, 0, 23)} * * *"
        seconds = part(dice, 0, 59)
        end = start + timedelta(hours=26)
        pairs = zip(
            wanted(f"{seconds} {fields}", start, end),
            ours(f"{fields} {seconds}", "UTC", start, end),
            strict=True,
        )
        for number, (other, own) in enumerate(pairs):
            assert own == other, f"{fields} {seconds}"
            if number > 300:
                break
