"""Whatever a hand does to the store of schedules, the good ones go on or the error is named."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from taskq.errors import ConfigError, ResultsUnavailable
from taskq.schedules.entry import Entry
from taskq.schedules.redis_lua import KEYS
from taskq.schedules.store import Claim, Mark, ScheduleStore, open_schedules

ONE = '{"every_s": 30}\n{"task": "a"}'
TEN_S = 10_000
BAD = (b"garbage", b"", b"-5", b"1e400", b"99999999999999999999999")
VALUES: tuple[Any, ...] = ("garbage", b"\xff\xfe", -5, 1e300, 2**62)
COLUMNS = {
    "schedules": ("text", "paused", "cursor_ms", "queued_ms", "fired", "skipped", "missed"),
    # A holder of any name may be one, until its lease ends.
    "schedule_leaders": ("token", "ends_ms", "version", "epoch", "done_ms"),
}
STRINGS = ("version", "lease", "tokens", "epoch", "done")


@contextlib.contextmanager
def opened(url: str) -> Iterator[ScheduleStore]:
    store = open_schedules(url, "shop", 5.0)
    try:
        yield store
    finally:
        store.close()


def begin(store: ScheduleStore) -> None:
    """Let schedules be known and a leader be gone."""
    for name in ("good", "x"):
        store.put(name, ONE, 1000, replace=True)
    token = store.beat("a", 0, TEN_S, take=True, done_ms=0).token
    store.beat("a", token, TEN_S, take=True, done_ms=500)
    store.release("a", token)


def goes_on(store: ScheduleStore, round_: int) -> None:
    """Check that a leader can do all that it does, and that changes are told."""
    beat = store.beat("b", 0, TEN_S, take=True)
    assert beat.token > 0
    version, _ = store.changed(0)
    assert version == store.beat("", 0, 1, take=False).version

    store.put(f"late{round_}", ONE, 1000, replace=False)
    later, rows = store.changed(version)
    assert later > version
    assert f"late{round_}" in [row.name for row in rows]

    due_ms = 2000 + round_ * 1000
    assert store.claim("b", beat.token, [Claim("good", due_ms, f"id{round_}")]) == ["fresh"]
    store.settle([Mark("good", due_ms, fired=f"id{round_}")])
    (row,) = store.rows(["good"])
    assert row is not None
    assert (row.cursor_ms, row.last_id) == (due_ms, f"id{round_}")
    again = store.beat("b", beat.token, TEN_S, take=True, done_ms=due_ms)
    assert (again.token, again.done_ms) == (beat.token, due_ms)
    store.release("b", beat.token)


@pytest.mark.parametrize("key", STRINGS)
def test_a_value_that_a_hand_wrote_stops_no_leader(redis_url: str, key: str) -> None:
    """A counter that counts no more, a lease that never ends, a version that is no number."""
    with opened(redis_url) as store, redis.Redis.from_url(redis_url) as client:
        begin(store)
        for number, value in enumerate(BAD):
            client.set(f"taskq:schedules:shop:{key}", value)
            goes_on(store, number)


@pytest.mark.parametrize(
    ("table", "column"), [(table, name) for table, names in COLUMNS.items() for name in names]
)
def test_a_column_that_a_hand_wrote_stops_no_leader(
    tmp_path: Path, table: str, column: str
) -> None:
    path = tmp_path / "s.db"
    with opened(f"sqlite:///{path}") as store:
        begin(store)
        for number, value in enumerate(VALUES):
            where = "WHERE name = 'x'" if table == "schedules" else ""
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
                connection.execute(f"UPDATE {table} SET {column} = ? {where}", (value,))
            goes_on(store, number)
            (row,) = store.rows(["x"])
            assert row is not None
            if column == "text":
                with pytest.raises(ConfigError, match="not readable"):
                    Entry.from_text("x", row.text)
            elif table == "schedules" and column != "paused":
                assert row.cursor_ms == -1, "told apart from one that has never fired"


@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_another_kind_is_named_and_costs_nothing_once_it_is_gone(
    redis_url: str, key: str
) -> None:
    name = f"taskq:schedules:shop:{key}"
    with opened(redis_url) as store, redis.Redis.from_url(redis_url) as client:
        begin(store)
        kept = client.dump(name)
        client.delete(name)
        client.xadd(name, {"a": "b"})
        with pytest.raises(ResultsUnavailable, match=r"taskq:schedules:\* with TYPE, mend or"):
            goes_on(store, 0)

        client.delete(name)
        if kept is not None:
            client.restore(name, 0, kept)
        client.delete("taskq:schedules:shop:lease")
        goes_on(store, 1)


def test_a_moment_beyond_the_calendar_is_a_broken_state(redis_url: str, tmp_path: Path) -> None:
    """A scheduler would have to write it as a date."""
    far_ms = 10**15
    with opened(redis_url) as store, redis.Redis.from_url(redis_url) as client:
        begin(store)
        client.hset("taskq:schedules:shop:states", "x", f"{far_ms}:0:1:0:0:id")
        (row,) = store.rows(["x"])
        assert row is not None
        assert row.cursor_ms == -1
        store.restore([row._replace(cursor_ms=5000)], [])
        (row,) = store.rows(["x"])
        assert row is not None
        assert row.cursor_ms == 5000
