"""Schedules by themselves: the nights of the clock changes, and what is refused."""

import pickle
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq import crontab, every, once
from taskq.errors import ConfigError
from taskq.schedules import Schedule
from taskq.schedules.wire import schedule_from_wire

BERLIN = ZoneInfo("Europe/Berlin")


def ticks(schedule: Schedule, start: datetime, count: int) -> list[str]:
    """Return the next due moments as the zone's clocks show them."""
    found = []
    for _ in range(count):
        moment = schedule.next_after(start)
        if moment is None:
            break
        assert moment > start
        found.append(moment.strftime("%d %H:%M%z"))
        start = moment
    return found


SPRING = datetime(2026, 3, 28, 12, tzinfo=UTC)
AUTUMN = datetime(2026, 10, 24, 22, 30, tzinfo=UTC)


def test_a_fixed_time_fires_once_in_the_night_that_has_it_not() -> None:
    """02:30 does not exist on 29 March 2026; a nightly job must run all the same."""
    assert ticks(crontab("30 2 * * *", tz="Europe/Berlin"), SPRING, 3) == [
        "29 03:00+0200",
        "30 02:30+0200",
        "31 02:30+0200",
    ]


def test_times_in_one_gap_fire_once_together() -> None:
    """Two jobs at the same moment would be two runs of one thing."""
    assert ticks(crontab("15,45 2,3 * * *", tz=BERLIN), SPRING, 3) == [
        "29 03:00+0200",
        "29 03:15+0200",
        "29 03:45+0200",
    ]


def test_a_fixed_time_fires_once_in_the_night_that_has_it_twice() -> None:
    """02:30 exists twice on 25 October 2026; croniter by itself fires at both."""
    assert ticks(crontab("30 2 * * *", tz="Europe/Berlin"), AUTUMN, 2) == [
        "25 02:30+0200",
        "26 02:30+0100",
    ]


def test_asked_in_the_second_hour_a_fixed_time_is_over() -> None:
    second = datetime(2026, 10, 25, 2, 10, tzinfo=BERLIN, fold=1)

    due = crontab("30 2 * * *", tz="Europe/Berlin").next_after(second)

    assert due == datetime(2026, 10, 26, 2, 30, tzinfo=BERLIN)


def test_intervals_run_through_both_nights() -> None:
    hourly = crontab("0 * * * *", tz="Europe/Berlin")

    assert ticks(hourly, datetime(2026, 3, 28, 23, 30, tzinfo=UTC), 3) == [
        "29 01:00+0100",
        "29 03:00+0200",
        "29 04:00+0200",
    ]
    assert ticks(hourly, datetime(2026, 10, 24, 23, 30, tzinfo=UTC), 3) == [
        "25 02:00+0200",
        "25 02:00+0100",
        "25 03:00+0100",
    ]


def test_half_an_hour_repeated_is_run_through_too() -> None:
    """Lord Howe goes back by 30 minutes at 02:00 on 5 April 2026."""
    quarters = crontab("*/15 * * * *", tz="Australia/Lord_Howe")
    fixed = crontab("45 1 * * *", tz="Australia/Lord_Howe")

    assert ticks(quarters, datetime(2026, 4, 4, 14, 20, tzinfo=UTC), 5) == [
        "05 01:30+1100",
        "05 01:45+1100",
        "05 01:30+1030",
        "05 01:45+1030",
        "05 02:00+1030",
    ]
    assert ticks(fixed, datetime(2026, 4, 4, 12, tzinfo=UTC), 2) == [
        "05 01:45+1100",
        "06 01:45+1030",
    ]


def test_clocks_that_change_at_a_quarter_to_lose_nothing() -> None:
    """Chatham goes from 02:45 to 03:45 on 27 September 2026."""
    assert ticks(
        crontab("*/5 * * * *", tz="Pacific/Chatham"),
        datetime(2026, 9, 26, 13, 52, tzinfo=UTC),
        3,
    ) == ["27 02:40+1245", "27 03:45+1345", "27 03:50+1345"]


def test_a_day_that_a_zone_left_out_is_made_up_for() -> None:
    """Samoa had no 30 December 2011."""
    assert ticks(
        crontab("0 9 30 * *", tz="Pacific/Apia"), datetime(2011, 12, 1, tzinfo=UTC), 2
    ) == ["31 00:00+1400", "30 09:00+1400"]


def test_the_answer_compares_as_a_moment_does() -> None:
    """Two times of one ZoneInfo compare by their clocks, which go back in autumn."""
    hourly = crontab("*/30 * * * *", tz="Europe/Berlin")

    first = hourly.next_after(datetime(2026, 10, 25, 0, 15, tzinfo=UTC))
    assert first is not None
    second = hourly.next_after(first)

    assert second is not None
    assert first == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    assert second == datetime(2026, 10, 25, 1, 0, tzinfo=UTC)
    assert second > first
    assert second.tzname() == "CET"


def test_asked_in_its_own_zone_it_answers_in_it() -> None:
    due = crontab("0 9 * * *", tz=BERLIN).next_after(datetime(2026, 5, 1, 9, tzinfo=BERLIN))

    assert due == datetime(2026, 5, 2, 9, tzinfo=BERLIN)
    assert due.tzinfo is BERLIN


MOMENTS = st.datetimes(datetime(1990, 1, 1), datetime(2060, 1, 1), timezones=st.just(UTC))


@given(moment=MOMENTS, interval_s=st.floats(0.1, 10**6), late=st.floats(0, 1), anchor=MOMENTS)
def test_an_interval_is_strictly_later_and_keeps_its_distance(
    moment: datetime, interval_s: float, late: float, anchor: datetime
) -> None:
    """Jitter moves each tick within its own interval, so that none is lost or overtaken."""
    schedule = every(interval_s, anchor=anchor, jitter_s=interval_s * late, hash_id="x")
    one = schedule.next_after(moment)
    assert one is not None
    two = schedule.next_after(one)
    assert two is not None

    assert moment < one < two
    assert (two - moment).total_seconds() <= 3 * interval_s + 0.01
    just_before = one - timedelta(milliseconds=1)
    assert schedule.next_after(just_before) == one


def test_an_interval_counts_elapsed_time_from_its_anchor() -> None:
    daily = every(timedelta(days=1), anchor=datetime(2026, 3, 28, 12, tzinfo=BERLIN))

    assert ticks(daily, SPRING, 2) == ["29 11:00+0000", "30 11:00+0000"]
    assert ticks(every(90), SPRING, 2) == ["28 12:01+0000", "28 12:03+0000"]


def test_once_is_due_once() -> None:
    at = datetime(2026, 5, 1, 12, tzinfo=BERLIN)

    assert once(at).next_after(at - timedelta(microseconds=1)) == at
    assert once(at).next_after(at) is None


def test_h_spreads_names_and_keeps_each() -> None:
    """A thousand daily jobs at midnight are a thundering herd; H gives each its own minute."""
    minutes = set()
    for number in range(50):
        due = crontab("H H(1-4) * * *").bound(f"job-{number}").next_after(SPRING)
        assert due is not None
        assert due == crontab("H H(1-4) * * *", hash_id=f"job-{number}").next_after(SPRING)
        assert 1 <= due.hour <= 4
        minutes.add(due.minute)

    assert len(minutes) > 20
    assert crontab("@daily").bound("x").next_after(SPRING) == datetime(2026, 3, 29, tzinfo=UTC)
    assert crontab("0 0 * * thu").bound("x") == crontab("0 0 * * thu")


def test_six_fields_have_the_seconds_last() -> None:
    found = crontab("* * * * * */20").next_after(datetime(2026, 1, 1, tzinfo=UTC))

    assert found == datetime(2026, 1, 1, 0, 0, 20, tzinfo=UTC)


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("0 0 30 2 *", "never fires"),
        ("0 0 31 4,6 *", "never fires"),
        ("0 0 29-31 2 mon#1", ""),
        ("61 * * * *", "malformed"),
        ("* * * *", "malformed"),
        ("", "malformed"),
        ("*/0 * * * *", "malformed"),
        ("0 0 * foo *", "malformed"),
        ("0 0 1 1 * 0 2030", "year"),
        ("R R * * *", "H"),
        ("0 0 15W * *", "nearest weekday"),
        ("0 0 LW * *", "nearest weekday"),
        ("@reboot", "unknown"),
        ("H(70-80) * * * *", "malformed"),
        ("* " * 3000, "text"),
        (None, "text"),
        (b"0 0 * * *", "text"),
        ("\x00 0 * * *", "malformed"),
    ],
)
def test_an_expression_that_cannot_be_is_refused(expression: Any, said: str) -> None:
    """An impossible date is found when it is written, not by a job that never runs."""
    if not said:
        crontab(expression)
        return
    with pytest.raises(ConfigError, match=said):
        crontab(expression)


@pytest.mark.parametrize(
    "tz",
    ["Europe/Berlim", "", "../etc/passwd", "Europe", "/etc/localtime", None, 7, "a" * 5000, "\x00"],
)
def test_an_unknown_zone_is_refused(tz: Any) -> None:
    with pytest.raises(ConfigError, match="zone"):
        crontab("0 0 * * *", tz=tz)


@pytest.mark.parametrize("tz", [UTC, "UTC", ZoneInfo("UTC")])
def test_utc_may_be_given_in_any_form(tz: tzinfo | str) -> None:
    assert crontab("0 0 * * *", tz=tz) == crontab("0 0 * * *")


def test_a_fixed_offset_is_no_zone() -> None:
    with pytest.raises(ConfigError, match="no name"):
        crontab("0 0 * * *", tz=timezone(timedelta(hours=1)))


@pytest.mark.parametrize(
    "interval", [0, -1, 0.01, float("nan"), float("inf"), True, "30", None, timedelta(0), 1e300]
)
def test_an_interval_that_cannot_be_is_refused(interval: Any) -> None:
    with pytest.raises(ConfigError, match="every"):
        every(interval)


def test_other_bad_arguments_are_refused() -> None:
    naive = datetime(2026, 1, 1)
    with pytest.raises(ConfigError, match="aware"):
        every(30, anchor=naive)
    with pytest.raises(ConfigError, match="aware"):
        once(naive)
    with pytest.raises(ConfigError, match="aware"):
        every(30).next_after(naive)
    with pytest.raises(ConfigError, match="jitter_s"):
        every(30, jitter_s=31)


@pytest.mark.parametrize(
    "schedule",
    [
        crontab("30 2 * * mon-fri", tz="Europe/Berlin"),
        crontab("H 3 * * *", hash_id="x"),
        every(0.5),
        every(timedelta(days=1), anchor=SPRING, jitter_s=60).bound("x"),
        once(SPRING),
    ],
    ids=str,
)
def test_a_schedule_survives_the_store(schedule: Schedule) -> None:
    assert schedule_from_wire(schedule.to_wire()) == schedule
    assert pickle.loads(pickle.dumps(schedule)) == schedule


@pytest.mark.parametrize(
    "wire",
    [
        None,
        [],
        {},
        {"crontab": "0 0 30 2 *"},
        {"crontab": "* * * * *", "every_s": 3},
        {"crontab": "* * * * *", "zone": "UTC"},
        {"crontab": 7},
        {"every_s": "soon"},
        {"every_s": 30, "anchor": "yesterday"},
        {"once": "tomorrow"},
        {"once": 7},
    ],
)
def test_a_stored_schedule_that_a_hand_broke_is_refused(wire: Any) -> None:
    with pytest.raises(ConfigError):
        schedule_from_wire(wire)


def test_the_end_of_the_calendar_is_the_end() -> None:
    """What comes after the year 9999 is never, not a crash."""
    end = datetime(9999, 12, 31, 23, 59, 59, 999000, tzinfo=UTC)

    assert crontab("* * * * *", tz="Europe/Berlin").next_after(end) is None
    assert every(30).next_after(end) is None
    assert crontab("0 0 29 2 *").next_after(end) is None
