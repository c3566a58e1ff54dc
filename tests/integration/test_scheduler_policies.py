"""What a scheduler does about absences, overlaps, clocks that step, and broken definitions."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from scheduler_setup import Setup, assert_whole, opened, quiet, until

from taskq import clock, every, once
from taskq.embedded.database import open_database
from taskq.embedded.location import parse_location
from taskq.events.schema import Event
from taskq.outcome import STARTED, SUCCESS
from taskq.scheduler.lease import SchedulerClock
from taskq.schedules.entry import tick_id


@pytest.fixture(params=["embedded", "redis"])
def setup(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Setup]:
    """An app whose schedules are in the embedded file, or in Redis."""
    yield from opened(request.param, request, tmp_path)


def test_ticks_of_an_absence_are_sent_or_missed_by_age(setup: Setup) -> None:
    setup.app.schedules.add("x", "job", every(10), dynamic=True, max_age_s=95)
    setup.back("x", 300)

    setup.start()

    until(lambda: setup.info("x").fired >= 9, "the ticks of 95 s")
    assert 19 <= setup.info("x").missed <= 21
    assert_whole(setup, "x", 10_000, 9)


def test_only_the_last_or_none_is_made_up_for(setup: Setup) -> None:
    for name, catch_up in (("last", "last"), ("none", "skip")):
        setup.app.schedules.add(
            name, "job", every(3600, anchor=half_an_hour_ago()), catch_up=catch_up,  # type: ignore[arg-type]
            max_age_s=86400, dynamic=True,
        )  # fmt: skip
        setup.back(name, 5 * 3600)

    setup.start()

    until(lambda: setup.info("none").missed == 5, "five missed")
    until(lambda: setup.info("last").fired == 1, "one sent")
    assert setup.info("last").missed == 4
    assert setup.info("none").fired == 0


def half_an_hour_ago() -> datetime:
    return datetime.now(UTC) - timedelta(minutes=30)


def test_once_and_max_runs_come_to_an_end(setup: Setup) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=0.5)
    setup.app.schedules.add("once", "job", once(soon), dynamic=True)
    setup.app.schedules.add("thrice", "job", every(0.2), max_runs=3, dynamic=True)
    setup.start()

    until(lambda: setup.info("once").fired == 1, "the one")
    until(lambda: setup.info("thrice").fired == 3, "the three")
    until(lambda: quiet(setup), "the end")

    assert sum(setup.sent().values()) == 4
    assert setup.info("once").next_at is None
    assert setup.info("thrice").next_at is None


def test_a_tick_is_skipped_while_the_run_before_it_lasts(setup: Setup) -> None:
    setup.app.schedules.add("x", "job", every(0.2), overlap="skip", dynamic=True)
    setup.start()
    until(lambda: setup.info("x").fired == 1, "the first")
    first = setup.info("x").last_id
    setup.record(first, STARTED)
    until(lambda: setup.info("x").skipped >= 3, "skipped ones")
    assert setup.info("x").fired == 1

    setup.record(first, SUCCESS)

    until(lambda: setup.info("x").fired == 2, "the next")


def test_one_tick_waits_for_the_run_before_it(setup: Setup) -> None:
    setup.app.schedules.add("x", "job", every(0.2), overlap="queue_one", dynamic=True)
    setup.start()
    until(lambda: setup.info("x").fired == 1, "the first")
    first = setup.info("x").last_id
    setup.record(first, STARTED)
    until(lambda: setup.info("x").skipped >= 3, "skipped ones")
    (row,) = setup.app.schedules.store.rows(["x"])
    assert row is not None
    waiting = row.queued_ms
    assert waiting

    setup.record(first, SUCCESS)

    until(lambda: tick_id("shop", "x", waiting) in setup.sent(), "the one that waited")
    until(lambda: setup.info("x").fired >= 2, "its count")


def test_a_tick_cancels_the_run_before_it(setup: Setup) -> None:
    setup.app.schedules.add("x", "job", every(0.5), overlap="cancel_running", dynamic=True)
    setup.start()
    until(lambda: setup.info("x").fired >= 3, "three ticks")
    setup.stop()

    states = Counter(setup.app.result(task_id).state for task_id in setup.sent())

    assert states["CANCELLED"] == sum(states.values()) - 1


@pytest.mark.parametrize("on_duplicate", ["existing", "raise"])
def test_a_tick_of_a_unique_task_that_waits_already_is_skipped(
    setup: Setup, on_duplicate: Any
) -> None:
    app = setup.new_app()
    app.task(name="alone", unique="until_done", on_duplicate=on_duplicate)(lambda: None)
    app.schedules.add("u", "alone", every(0.2), dynamic=True)
    app.schedules.add("x", "job", every(0.2), dynamic=True)
    setup.start(app)

    until(lambda: setup.info("u").skipped >= 3, "skipped ticks")
    until(lambda: len(setup.due("x")) >= 3, "ticks of another")

    assert setup.info("u").fired == 1
    assert len(setup.due("u")) == 1


def test_what_became_of_ticks_is_told_as_events(setup: Setup) -> None:
    """Whoever watches need not poll the store."""
    seen: list[Event] = []
    setup.app.schedules.add("x", "job", every(0.5), overlap="skip", dynamic=True)
    setup.back("x", 100)
    types = ["schedule.fired", "schedule.skipped", "schedule.missed"]
    with setup.app.events.subscribe(seen.append, types=types):
        setup.start()
        until(lambda: len({event.type for event in seen}) == 3, "events of each kind")

    found = {event.type: event for event in seen}
    fired = found["schedule.fired"]
    assert fired.data["schedule"] == "x"
    assert fired.data["task_id"] == tick_id("shop", "x", fired.data["due_ms"])
    assert fired.data["task_id"] in setup.sent()
    assert found["schedule.missed"].data["count"] >= 70


class SteppingClock(SchedulerClock):
    """A host's clock that someone sets."""

    def __init__(self) -> None:
        super().__init__()
        self.step_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.step_ms


def test_steps_of_the_clock_neither_repeat_nor_drop_a_tick(setup: Setup) -> None:
    setup.app.schedules.add("x", "job", every(0.5), dynamic=True)
    time = SteppingClock()
    setup.start(time=time)
    until(lambda: len(setup.due("x")) >= 3, "ticks")

    time.step_ms = 90_000
    until(lambda: len(setup.sent()) >= 183, "the ticks that were stepped over")
    time.step_ms = -60_000
    until(lambda: quiet(setup), "silence until the clock is there again")
    time.step_ms = 100_000
    until(lambda: len(setup.sent()) >= 203, "ticks again")
    setup.stop()

    end_ms = clock.now_ms() + 200_000
    start_ms = min(setup.due("x"))
    ids = [tick_id("shop", "x", due_ms) for due_ms in range(start_ms, end_ms, 500)]
    sent = setup.sent()
    whole = [task_id in sent for task_id in ids]
    assert set(sent.values()) == {1}
    assert sum(whole) == len(sent)
    assert whole == sorted(whole, reverse=True), "a gap"


def test_a_call_that_cannot_be_sent_does_not_hold_up_the_others(setup: Setup) -> None:
    """Its arguments fitted when it was stored; the function has changed since."""
    store = setup.app.schedules.store
    text = '{"every_s": 0.2}\n{"task": "job", "kwargs": {"no_such": 1}}'
    store.put("unfit", text, clock.now_ms(), replace=False)
    setup.app.schedules.add("x", "job", every(0.2), dynamic=True)
    scheduler = setup.start()

    until(lambda: len(setup.due("x")) >= 4, "ticks of the good one")

    assert scheduler.counts["refused"] == 1
    assert setup.due("unfit") == []


def test_a_broken_definition_harms_no_other_and_stays_as_it_is(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever edited the store by hand finds the text, and what is wrong with it."""
    broken = '{"crontab": "0 0 30 2 *"}\n{"task": "job"}'
    store = setup.app.schedules.store
    store.put("broken", broken, clock.now_ms(), replace=False)
    store.put("garbage", "not json", clock.now_ms(), replace=False)
    store.put("strange", '{"every_s": 1}\n{"task": "nobody"}', clock.now_ms(), replace=False)
    setup.app.schedules.add("x", "job", every(0.2), dynamic=True)
    setup.start()

    until(lambda: len(setup.due("x")) >= 3, "ticks of the good one")

    assert "never fires" in setup.info("broken").trouble
    assert "not readable" in setup.info("garbage").trouble
    (row,) = store.rows(["broken"])
    assert row is not None
    assert row.text == broken
    said = caplog.text
    assert "never fires" in said
    assert "'nobody' is not known here" in said


def test_a_state_that_a_hand_broke_begins_anew(
    setup: Setup, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    setup.app.schedules.add("x", "job", every(0.2), dynamic=True)
    if setup.urls["results"].startswith("redis"):
        with redis.Redis.from_url(setup.urls["results"]) as client:
            client.hset("taskq:schedules:shop:states", "x", "soon")
    else:
        with open_database(parse_location(setup.urls["results"])).writing(30) as connection:
            connection.execute("UPDATE schedules SET cursor_ms = 'soon'")

    setup.start()

    until(lambda: setup.info("x").fired >= 3, "ticks")
    assert "not readable" in caplog.text


def test_the_tick_that_waits_is_not_overtaken(setup: Setup) -> None:
    """The run ends just before a later tick is due, and long before the next beat."""
    setup.app.schedules.add("x", "job", every(0.2), overlap="queue_one", dynamic=True)
    scheduler = setup.start(lease_s=60)
    scheduler._lease.beat_s = 20
    until(lambda: scheduler._beat_due_s > clock.monotonic_s() + 5, "a beat that is far off")
    until(lambda: scheduler.counts["skipped"] >= 3, "skipped ones")
    (row,) = setup.app.schedules.store.rows(["x"])
    assert row is not None
    assert row.queued_ms

    setup.record(row.last_id, SUCCESS)

    until(lambda: setup.info("x").fired == 2, "another")
    assert tick_id("shop", "x", row.queued_ms) in setup.sent()
