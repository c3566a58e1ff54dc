"""Schedulers on the embedded file and on Redis: each tick one task, whatever happens to them."""

import json
import sqlite3
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from scheduler_setup import Setup, assert_whole, opened, quiet, until
from servers import RedisServer

from taskq import crontab, every
from taskq.errors import ConfigError
from taskq.scheduler.scheduler import Scheduler
from taskq.schedules.store import Row


@pytest.fixture(params=["embedded", "redis"])
def setup(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Setup]:
    """An app whose schedules are in the embedded file, or in Redis."""
    yield from opened(request.param, request, tmp_path)


def test_each_tick_is_one_task_however_many_schedulers_run(setup: Setup) -> None:
    setup.app.schedules.add("x", "job", every(0.2), dynamic=True)
    for _ in range(3):
        setup.start(setup.new_app())

    until(lambda: len(setup.due("x")) >= 15, "15 ticks")
    setup.stop()

    assert_whole(setup, "x", 200, 15)
    assert setup.info("x").fired == len(setup.due("x"))


def test_another_takes_over_when_the_leader_goes(setup: Setup) -> None:
    setup.app.schedules.add("x", "job", every(0.2), dynamic=True)
    first = setup.start()
    until(lambda: first.leading and setup.due("x"), "the first leader's ticks")
    second = setup.start(setup.new_app())
    first.stop()

    until(lambda: second.leading, "the second leader")
    seen = len(setup.due("x"))
    until(lambda: len(setup.due("x")) > seen + 3, "the second leader's ticks")
    setup.stop()

    assert_whole(setup, "x", 200, seen + 3)


def test_what_code_declares_is_stored_and_what_it_drops_is_removed(setup: Setup) -> None:
    """The first deploy has two, the second one of them, changed; the dynamic one stays."""
    one, two = setup.new_app(), setup.new_app()
    one.schedules.add("a", "job", every(3600), dynamic=False)
    one.schedules.add("b", "job", every(3600), dynamic=False)
    setup.app.schedules.add("d", "job", every(3600), dynamic=True)
    first = setup.start(one)
    until(lambda: first.leading, "the first deploy")
    setup.stop()
    two.schedules.add("b", "job", crontab("30 2 * * *"), (7,), dynamic=False)
    second = setup.start(two)
    until(lambda: second.leading, "the second deploy")

    found = {info.name: info for info in setup.app.schedules.ls()}

    assert sorted(found) == ["b", "d"]
    assert found["b"].entry.args == (7,)
    assert found["b"].entry.source == "code"


def test_a_task_with_a_schedule_is_declared_under_its_name(setup: Setup) -> None:
    app = setup.new_app()

    @app.task(name="tick", schedule=every(0.2), queue="fast")
    def tick() -> None: ...

    setup.start(app)

    until(lambda: len(setup.due("tick")) >= 3, "ticks")
    assert app.broker.depths(["fast"])["fast"].ready >= 3  # type: ignore[union-attr]


def test_dynamic_changes_reach_a_running_scheduler(setup: Setup) -> None:
    """Add, pause, resume and remove need no restart."""
    setup.start()
    schedules = setup.app.schedules
    schedules.add("x", "job", every(0.2), dynamic=True)
    until(lambda: len(setup.due("x")) >= 2, "ticks of a new schedule")

    schedules.pause("x", "repairs")
    until(lambda: quiet(setup), "a pause")
    before = len(setup.due("x"))
    assert setup.info("x").paused
    assert setup.info("x").why == "repairs"
    schedules.resume("x")
    until(lambda: len(setup.due("x")) >= before + 2, "ticks after the pause")
    schedules.remove("x")
    until(lambda: quiet(setup), "the end of a removed schedule")

    assert schedules.ls() == []
    due = setup.due("x")
    gaps = [b - a for a, b in pairwise(due) if b - a > 200]
    assert len(gaps) == 1, "what was due in the pause is not made up for"


def test_run_sends_at_once_and_counts_as_no_tick(setup: Setup) -> None:
    setup.app.schedules.add("x", "job", every(3600), (1, 2), dynamic=True, queue="mail")

    handle = setup.app.schedules.run("x")

    assert setup.sent() == {handle.id: 1}
    assert setup.app.broker.depths(["mail"])["mail"].ready == 1  # type: ignore[union-attr]
    assert setup.info("x").fired == 0


def test_a_broker_that_is_away_gets_its_ticks_later(setup: Setup, tmp_path: Path) -> None:
    if setup.urls["results"] == setup.urls["broker"]:
        # There the store of schedules is away with the broker, which is the same to a tick.
        setup.urls["results"] = f"sqlite:///{tmp_path}/other.db"
        setup.app.close()
        setup.app = setup.new_app()
    setup.app.schedules.add("x", "job", every(0.2), dynamic=True, max_age_s=600)
    scheduler = setup.start()
    until(lambda: len(setup.due("x")) >= 3, "ticks")
    other = sqlite3.connect(tmp_path / "queue.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    until(lambda: "broker" in scheduler.trouble, "a send that fails")
    other.execute("ROLLBACK")
    other.close()
    before = len(setup.due("x"))

    until(lambda: len(setup.due("x")) >= before + 10, "ticks after the outage")
    setup.stop()

    assert_whole(setup, "x", 200, before + 10)


@pytest.fixture
def on_redis(private_redis: RedisServer, tmp_path: Path) -> Iterator[Setup]:
    made = Setup(f"sqlite:///{tmp_path}/queue.db", private_redis.url)
    yield made
    made.stop()
    made.app.close()
    assert not made.failures


def test_a_flushed_redis_is_written_back(on_redis: Setup, private_redis: RedisServer) -> None:
    """FLUSHALL takes definitions, cursors and the lease; the schedulers remember."""
    setup = on_redis
    setup.app.schedules.add("x", "job", every(0.2), dynamic=True)
    # Who led goes first for as long as a lease: on a busy machine a short one would not do.
    leader = setup.start(lease_s=10)
    until(lambda: leader.leading and setup.due("x"), "a leader")
    setup.start(setup.new_app(), lease_s=10)
    until(lambda: len(setup.due("x")) >= 3, "ticks")

    for _ in range(3):
        private_redis.ctl("FLUSHALL")
        before = len(setup.due("x"))
        until(lambda before=before: len(setup.due("x")) >= before + 8, "ticks after a flush")
    setup.stop()

    assert_whole(setup, "x", 200, 24)
    assert setup.info("x").entry.source == "dynamic"


def test_redis_away_delays_ticks_and_loses_none(
    on_redis: Setup, private_redis: RedisServer
) -> None:
    setup = on_redis
    setup.app.schedules.add("x", "job", every(0.2), dynamic=True, max_age_s=600)
    for _ in range(2):
        setup.start(setup.new_app())
    until(lambda: len(setup.due("x")) >= 3, "ticks")

    private_redis.kill()
    until(lambda: quiet(setup), "silence without a store")
    private_redis.start()
    before = len(setup.due("x"))
    until(lambda: len(setup.due("x")) >= before + 15, "ticks after the outage")
    setup.stop()

    assert_whole(setup, "x", 200, before + 15)


def test_names_are_taken_once(setup: Setup) -> None:
    schedules = setup.app.schedules
    schedules.add("x", "job", every(30), dynamic=True)
    with pytest.raises(ConfigError, match="there is a schedule 'x'"):
        schedules.add("x", "job", every(60), dynamic=True)
    schedules.add("x", "job", every(60), dynamic=True, replace=True)
    schedules.add("c", "job", every(30), dynamic=False)
    with pytest.raises(ConfigError, match="declared twice"):
        schedules.add("c", "job", every(60), dynamic=False)

    for call in (schedules.get, schedules.pause, schedules.resume, schedules.remove, schedules.run):
        with pytest.raises(ConfigError, match="no schedule 'y'"):
            call("y")


def test_a_declared_one_cannot_be_removed_but_from_the_code(setup: Setup) -> None:
    setup.app.schedules.add("c", "job", every(3600), dynamic=False)
    scheduler = setup.start()
    until(lambda: scheduler.leading, "the deploy")

    with pytest.raises(ConfigError, match="would come back"):
        setup.app.schedules.remove("c")


def test_the_scheduler_refuses_what_code_declares_wrongly(setup: Setup) -> None:
    setup.app.schedules.add("c", "no.such.task", every(3600), dynamic=False)

    with pytest.raises(ConfigError, match=r"'no\.such\.task' is not registered"):
        Scheduler(setup.app).run()


def test_rows_of_the_store_can_be_read_by_people(setup: Setup) -> None:
    setup.app.schedules.add("x", "job", crontab("30 2 * * *", tz="Europe/Berlin"), dynamic=True)

    (row,) = setup.app.schedules.store.rows(["x"])

    assert isinstance(row, Row)
    first, second = row.text.split("\n")
    assert json.loads(first) == {"crontab": "30 2 * * *", "tz": "Europe/Berlin"}
    assert json.loads(second) == {"task": "job", "source": "dynamic"}
