"""Which ticks are sent and which are missed, and the order of any number of schedules."""

import random
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskq import crontab, every, once
from taskq.scheduler.plan import Plan
from taskq.scheduler.policy import MOST, sort_ticks
from taskq.schedules.entry import Entry, tick_id
from taskq.schedules.interval import Every
from taskq.schedules.store import Row

MINUTE_MS = 60_000
NOW_MS = 1_000 * MINUTE_MS


def entry(**options: object) -> Entry:
    values: dict[str, object] = {"name": "x", "task": "t", "schedule": every(60), **options}
    return Entry(**values)  # type: ignore[arg-type]


def minutes(found: list[int]) -> list[int]:
    return [due_ms // MINUTE_MS for due_ms in found]


def test_all_ticks_of_the_last_minutes_are_sent() -> None:
    """A failover of some seconds drops no tick."""
    found = sort_ticks(entry(max_age_s=180), 990 * MINUTE_MS, NOW_MS, NOW_MS)

    assert minutes(found.send) == [997, 998, 999, 1000]
    assert (found.missed, found.upto_ms) == (6, 996 * MINUTE_MS)


def test_last_sends_one() -> None:
    found = sort_ticks(entry(catch_up="last", max_age_s=86400), 990 * MINUTE_MS, NOW_MS, NOW_MS)

    assert minutes(found.send) == [999, 1000]
    assert found.missed == 8, "the one that is due now is not late, and is not the last of the late"
    late = sort_ticks(
        entry(catch_up="last", max_age_s=86400), 990 * MINUTE_MS, NOW_MS + 30_000, NOW_MS + 30_000
    )
    assert minutes(late.send) == [1000]
    assert (late.missed, late.upto_ms) == (9, 999 * MINUTE_MS)


def test_skip_sends_what_is_due_now() -> None:
    found = sort_ticks(entry(catch_up="skip", max_age_s=86400), 990 * MINUTE_MS, NOW_MS, NOW_MS)

    assert minutes(found.send) == [1000]
    assert (found.missed, found.upto_ms) == (9, 999 * MINUTE_MS)


@pytest.mark.parametrize("catch_up", ["all", "last", "skip"])
def test_a_leader_that_was_there_misses_nothing(catch_up: str) -> None:
    """The clock steps on by an hour: nobody was away, so every tick in between is sent."""
    found = sort_ticks(entry(catch_up=catch_up), 940 * MINUTE_MS, NOW_MS, since_ms=900 * MINUTE_MS)

    assert minutes(found.send) == list(range(941, 1001))
    assert found.missed == 0


def test_years_of_absence_are_counted_to_a_limit() -> None:
    """A second's ticks of two years would take minutes to count, and nobody reads the number."""
    found = sort_ticks(entry(schedule=every(1)), 0, 10**12, 10**12)

    assert found.missed == 10_000
    assert found.send == list(range(10**12 - 60_000, 10**12 + 1, 1000))
    assert max(0, *(due for due in found.send if due <= found.upto_ms), 0) == 0


def test_a_turn_is_bounded() -> None:
    found = sort_ticks(entry(schedule=every(1)), 0, 10**8, since_ms=0)

    assert len(found.send) == MOST


@settings(deadline=None)
@given(
    cursor=st.integers(0, 2000),
    away=st.integers(0, 2000),
    age_s=st.sampled_from([1, 60, 600]),
    catch_up=st.sampled_from(["all", "last", "skip"]),
)
def test_every_tick_is_sent_or_counted(cursor: int, away: int, age_s: int, catch_up: str) -> None:
    """Sent and missed together are all there were, in order, none twice."""
    job = entry(schedule=every(7), catch_up=catch_up, max_age_s=age_s)
    start_ms, now_ms = cursor * 1000, (cursor + away) * 1000
    found = sort_ticks(job, start_ms, now_ms, now_ms)

    every_tick = [due for due in range(0, now_ms + 1, 7000) if due > start_ms]
    assert found.missed + len(found.send) == len(every_tick)
    assert found.send == every_tick[len(every_tick) - len(found.send) :]
    assert not found.missed or found.upto_ms == every_tick[found.missed - 1]


def test_limits_of_time() -> None:
    limited = entry(starting_at_ms=120_000, until_ms=240_000)

    assert limited.next_ms(0) == 120_000
    assert limited.next_ms(180_000) == 240_000
    assert limited.next_ms(240_000) is None


def row(name: str, **options: object) -> Row:
    return Row(name, entry(**{"name": name, **options}).to_text())


def test_jobs_come_in_the_order_in_which_they_are_due() -> None:
    plan = Plan()
    dice = random.Random(7)
    for number in range(500):
        job = plan.put(row(f"s{number}", schedule=every(dice.randint(1, 100))), trusted=True)
        assert job is not None
        plan.schedule(job)

    seen = []
    while (next_ms := plan.next_ms()) is not None and next_ms <= 100_000:
        for job in plan.take_due(next_ms, 1000):
            assert job.due_ms == next_ms
            seen.append(next_ms)
            job.row = job.row._replace(cursor_ms=next_ms)
            plan.schedule(job)

    assert seen == sorted(seen)
    assert len(seen) > 1000


class Counted(Every):
    """Counts how often it is asked."""

    asked = 0

    def next_ms(self, after_ms: int) -> int | None:
        Counted.asked += 1
        return super().next_ms(after_ms)


def test_who_takes_over_need_not_find_out_what_is_due() -> None:
    """For 100,000 schedules that takes longer than what is left of a lease when its holder dies."""
    plan = Plan()
    for number in range(100):
        job = plan.put(row(f"s{number}"), trusted=True)
        assert job is not None
        assert job.entry is not None
        job.entry = replace(job.entry, schedule=Counted(60_000))
        plan.schedule(job)
    before = Counted.asked
    # Another leads: it has sent three ticks of each, and says so.
    plan.follow(3 * MINUTE_MS + 5)
    assert Counted.asked == before + 300

    for number in range(100):
        job = plan.put(row(f"s{number}")._replace(cursor_ms=3 * MINUTE_MS), trusted=True)
        assert job is not None
        plan.schedule(job)

    assert Counted.asked == before + 300
    assert plan.next_ms() == 4 * MINUTE_MS
    assert len(plan.take_due(4 * MINUTE_MS, 1000)) == 100


def test_what_another_has_not_dealt_with_is_due_though_it_was_passed_over() -> None:
    """The store's cursor decides, and not what somebody said of it."""
    plan = Plan()
    job = plan.put(row("a"), trusted=True)
    assert job is not None
    plan.schedule(job)
    plan.follow(3 * MINUTE_MS + 5)

    job = plan.put(row("a")._replace(cursor_ms=MINUTE_MS), trusted=True)
    assert job is not None
    plan.schedule(job)

    assert plan.next_ms() == 2 * MINUTE_MS


def test_what_is_removed_paused_or_finished_is_never_due() -> None:
    plan = Plan()
    for one in (row("a"), row("b"), row("c", max_runs=2), row("d", schedule=once(AT))):
        job = plan.put(one, trusted=True)
        assert job is not None
        plan.schedule(job)

    plan.put(Row("a", ""), trusted=False)
    paused = plan.put(row("b")._replace(paused="{}"), trusted=False)
    finished = plan.put(row("c", max_runs=2)._replace(fired=2), trusted=False)
    over = plan.put(row("d", schedule=once(AT))._replace(cursor_ms=AT_MS), trusted=False)
    for job in (paused, finished, over):
        assert job is not None
        plan.schedule(job)

    assert plan.next_ms() is None
    assert sorted(plan.jobs) == ["b", "c", "d"]


AT = datetime(2026, 5, 1, tzinfo=UTC)
AT_MS = round(AT.timestamp() * 1000)


def test_a_change_that_arrives_late_does_not_move_the_cursor_back() -> None:
    """The leader's own cursor is ahead of the row that someone paused and resumed."""
    plan = Plan()
    job = plan.put(row("a"), trusted=True)
    assert job is not None
    job.row = job.row._replace(cursor_ms=120_000, fired=2)

    again = plan.put(row("a", args=(1,)), trusted=False)

    assert again is not None
    assert (again.row.cursor_ms, again.row.fired) == (120_000, 2)
    assert again.entry is not None
    assert again.entry.args == (1,)


def test_a_text_that_cannot_be_read_is_trouble_of_its_own() -> None:
    plan = Plan()

    job = plan.put(Row("a", '{"crontab": "0 0 30 2 *"}\n{"task": "t"}'), trusted=True)

    assert job is not None
    assert "never fires" in job.trouble
    plan.schedule(job)
    assert plan.next_ms() is None


def test_a_heap_of_changes_does_not_grow_for_ever() -> None:
    plan = Plan()
    job = plan.put(row("a"), trusted=True)
    assert job is not None
    for number in range(5000):
        job.row = job.row._replace(cursor_ms=number * MINUTE_MS)
        plan.schedule(job)

    assert len(plan._heap) < 2000
    assert plan.next_ms() == 5000 * MINUTE_MS


def test_the_id_of_a_tick_is_a_function_of_schedule_and_time() -> None:
    """It is what makes two leaders send one task."""
    assert tick_id("shop", "x", 1) == tick_id("shop", "x", 1)
    others = {tick_id("shop", "x", 2), tick_id("shop", "y", 1), tick_id("other", "x", 1)}
    assert len({*others, tick_id("shop", "x", 1)}) == 4


def test_an_entry_survives_the_store_with_all_it_says() -> None:
    full = entry(
        schedule=crontab("H 3 * * *", tz="Europe/Berlin"),
        args=(1, AT, b"x"),
        kwargs={"to": "ann"},
        options={"queue": "mail", "priority": 3},
        catch_up="last",
        max_age_s=5.5,
        overlap="queue_one",
        starting_at_ms=1000,
        until_ms=2000,
        max_runs=3,
        source="code",
    )

    assert Entry.from_text("x", full.to_text()) == full
    assert Entry.from_text("x", entry(source="dynamic").to_text()) == entry(source="dynamic")
