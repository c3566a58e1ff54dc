"""Many schedules at once, an idle scheduler, and a host whose clock is set."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import processes
import pytest
from scheduler_setup import Setup, opened, quiet, until

from taskq import clock, crontab, every
from taskq.schedules.entry import Entry, tick_id
from taskq.schedules.store import Row

MANY = 10_000
DUE = 2000
HOUR_MS = 3_600_000


@pytest.fixture(params=["embedded", "redis"])
def setup(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Setup]:
    """An app whose schedules are in the embedded file, or in Redis."""
    yield from opened(request.param, request, tmp_path)


def fill(setup: Setup, due_s: int) -> list[str]:
    """Store many daily schedules, of which some are due at one second; return the ids of those."""
    now_ms = clock.now_ms()
    at = [datetime.fromtimestamp(due_s + 7200 * (i >= DUE), UTC) for i in range(MANY)]
    rows = []
    for number, moment in enumerate(at):
        daily = crontab(f"{moment.minute} {moment.hour} * * * {moment.second}")
        entry = Entry(name=f"s{number}", task="job", schedule=daily, max_age_s=86400)
        rows.append(Row(entry.name, entry.to_text(), cursor_ms=now_ms))
    setup.app.schedules.store.restore(rows, [])
    return [tick_id("shop", f"s{number}", due_s * 1000) for number in range(DUE)]


@pytest.mark.timeout(300)
def test_two_thousand_ticks_of_one_second_are_two_thousand_tasks(setup: Setup) -> None:
    """With two schedulers; afterwards nothing is due, and they cost next to nothing."""
    ids = fill(setup, int(time.time()) + 5)
    for _ in range(2):
        setup.start(setup.new_app(), lease_s=10)

    processes.wait_for(lambda: len(setup.sent()) >= DUE, 200, "2,000 ticks")
    rows = setup.app.schedules.store.rows([f"s{number}" for number in range(DUE)])
    until(lambda: quiet(setup), "the end of it")

    assert setup.sent() == dict.fromkeys(ids, 1)
    assert all(row is not None for row in rows)
    clocks = [time.pthread_getcpuclockid(thread.ident or 0) for _, thread in setup.running]
    before = [time.clock_gettime(one) for one in clocks]
    time.sleep(3)
    spent_s = [time.clock_gettime(one) - old for one, old in zip(clocks, before, strict=True)]
    # 0.1 % to 0.5 % of a core as a rule. CPU time, which others on the machine do not spend.
    assert max(spent_s) < 0.5


@pytest.mark.timeout(300)
def test_a_clock_that_is_set_on_the_host_neither_repeats_nor_drops_a_tick(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forth, to another leader, back by an hour, and forth again."""
    embedded = setup.urls["results"] == setup.urls["broker"]
    real_ms, step_ms = clock.now_ms, [0]
    start_ms = real_ms() // 500 * 500
    monkeypatch.setattr(clock, "now_ms", lambda: real_ms() + step_ms[0])
    setup.app.schedules.add("x", "job", every(0.5), dynamic=True, max_age_s=86400)
    first = setup.start()
    until(lambda: first.leading and len(setup.sent()) >= 3, "ticks")
    second = setup.start(setup.new_app())

    def more(count: int) -> None:
        before = len(setup.sent())
        until(lambda: len(setup.sent()) >= before + count, f"{count} more ticks")

    step_ms[0] = 90_000
    # Redis has a clock of its own; the embedded file has the host's.
    more(180 if embedded else 5)
    first.stop()
    until(lambda: second.leading, "another leader")
    more(5)
    step_ms[0] = -HOUR_MS
    if embedded:
        until(lambda: quiet(setup), "silence until the clock is there again")
    else:
        more(5)
    third = setup.start(setup.new_app())
    second.stop()
    until(lambda: third.leading, "a leader of the hour before")
    step_ms[0] = 200_000
    more(100 if embedded else 5)
    setup.stop()

    grid = range(start_ms, start_ms + HOUR_MS, 500)
    sent = setup.sent()
    there = [tick_id("shop", "x", due_ms) in sent for due_ms in grid]
    assert set(sent.values()) == {1}, "a tick was repeated"
    assert sum(there) == len(sent)
    first_tick = there.index(True)
    assert all(there[first_tick : first_tick + len(sent)]), "a tick was dropped"
