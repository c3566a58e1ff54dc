"""What every store of schedules promises, on the embedded file, in memory and in Redis."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from taskq.embedded.database import open_database
from taskq.embedded.location import parse_location
from taskq.schedules.store import Claim, Mark, Row, ScheduleStore, open_schedules

Make = Callable[[], ScheduleStore]
TEN_S = 10_000
ONE = '{"every_s": 30}\n{"task": "a"}'
TWO = '{"every_s": 60}\n{"task": "a"}'
ONE_OTHERWISE = '{"every_s": 30}\n{"task": "b"}'


@pytest.fixture(params=["sqlite", "memory", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "redis":
        return str(request.getfixturevalue("redis_url"))
    return (
        f"sqlite:///{tmp_path}/s.db" if request.param == "sqlite" else f"memory://{tmp_path.name}"
    )


@pytest.fixture
def make(url: str) -> Iterator[Make]:
    """Makes stores of one app at one place, as several processes would."""
    made: list[ScheduleStore] = []

    def make_one() -> ScheduleStore:
        made.append(open_schedules(url, "shop", 5.0))
        return made[-1]

    yield make_one
    for store in made:
        store.close()


@pytest.fixture
def store(make: Make) -> ScheduleStore:
    return make()


def row(store: ScheduleStore, name: str = "x") -> Row:
    (found,) = store.rows([name])
    assert found is not None
    return found


def lead(store: ScheduleStore, holder: str = "a") -> int:
    return store.beat(holder, 0, TEN_S, take=True).token


def test_one_holds_the_lease_and_keeps_it(make: Make) -> None:
    one, two = make(), make()

    first = one.beat("a", 0, TEN_S, take=True)
    other = two.beat("b", 0, TEN_S, take=True)
    again = one.beat("a", first.token, TEN_S, take=True)

    assert first.token
    assert (other.token, other.holder) == (0, "a")
    assert again.token == first.token
    assert again.epoch == first.epoch == other.epoch != ""
    assert again.now_ms > 1_700_000_000_000


def test_a_lease_that_was_given_back_has_another_token(make: Make) -> None:
    """With the same token the one before could claim on."""
    one, two = make(), make()
    token = lead(one)

    one.release("a", token)
    after = two.beat("b", 0, TEN_S, take=True)

    assert after.token not in (0, token)
    assert one.beat("a", token, TEN_S, take=True).token == 0
    assert one.claim("a", token, [Claim("x", 1, "t1")]) is None


def test_a_lease_runs_out(store: ScheduleStore) -> None:
    token = store.beat("a", 0, 50, take=True).token
    deadline = threading.Event()
    for _ in range(600):
        if store.beat("b", 0, TEN_S, take=True).token:
            break
        deadline.wait(0.05)

    assert store.claim("a", token, [Claim("x", 1, "t1")]) is None


def test_nobody_takes_a_lease_that_only_looks(store: ScheduleStore) -> None:
    beat = store.beat("a", 0, TEN_S, take=False)

    assert (beat.token, beat.holder, beat.epoch) == (0, "", "")


def test_how_far_the_leader_is_is_told_to_all(make: Make) -> None:
    """Never back, and only from the leader."""
    one, two = make(), make()
    token = one.beat("a", 0, TEN_S, take=True).token
    assert one.beat("a", token, TEN_S, take=True, done_ms=5000).done_ms == 5000
    two.beat("b", 0, TEN_S, take=True, done_ms=9000)

    one.beat("a", token, TEN_S, take=True, done_ms=4000)

    assert two.beat("b", 0, TEN_S, take=False).done_ms == 5000


def test_declaring_adds_changes_and_removes(make: Make) -> None:
    """A deploy makes the store what the code says, and nothing twice."""
    one, two = make(), make()

    assert one.declare({"x": ONE, "y": ONE}, 1000).added == ["x", "y"]
    assert two.declare({"x": ONE, "y": ONE}, 2000) == ([], [], [])
    assert two.declare({"x": TWO, "z": ONE}, 3000) == (["z"], ["x"], ["y"])
    assert [found.name for found in sorted(one.changed(0)[1])] == ["x", "z"]


def test_a_new_timetable_is_not_due_for_the_past(store: ScheduleStore) -> None:
    """From daily to every ten seconds: 8,640 ticks since yesterday would be made up for."""
    store.declare({"x": ONE}, 1000)
    assert row(store).cursor_ms == 1000

    store.declare({"x": ONE_OTHERWISE}, 2000)
    assert row(store).cursor_ms == 1000, "only the task changed: what is due stays due"
    store.declare({"x": TWO}, 3000)
    assert row(store).cursor_ms == 3000
    store.declare({"x": ONE}, 500)
    assert row(store).cursor_ms == 3000, "never back"


def test_dynamic_ones_stay_when_code_is_declared(store: ScheduleStore) -> None:
    assert store.put("d", ONE, 1000, replace=False)
    assert not store.put("d", TWO, 1000, replace=False)
    assert store.put("d", TWO, 2000, replace=True)

    store.declare({}, 3000)

    assert row(store, "d").text == TWO
    assert row(store, "d").cursor_ms == 2000


def test_a_declared_one_takes_the_place_of_a_dynamic_one(store: ScheduleStore) -> None:
    store.put("x", ONE, 1000, replace=False)

    assert store.declare({"x": ONE}, 2000) == ([], [], [])
    assert store.declare({}, 3000).removed == ["x"]


def test_apps_do_not_see_each_other(url: str, store: ScheduleStore) -> None:
    """Two apps in one Redis would remove each other's schedules at each deploy."""
    other = open_schedules(url, "other", 5.0)
    store.declare({"x": ONE}, 1000)
    other.declare({"y": ONE}, 1000)

    assert [found.name for found in store.changed(0)[1]] == ["x"]
    assert lead(store)
    assert lead(other, "b")
    other.close()


def test_changes_are_told_once(make: Make) -> None:
    one, two = make(), make()
    one.declare({"x": ONE, "y": ONE}, 1000)
    version, _ = two.changed(0)

    assert two.changed(version) == (version, [])
    one.pause("x", '{"why": "repairs"}', 0)
    one.remove("y")
    later, found = two.changed(version)

    assert later > version
    assert {item.name: (bool(item.text), item.paused) for item in found} == {
        "x": (True, '{"why": "repairs"}'),
        "y": (False, ""),
    }
    assert two.beat("b", 0, TEN_S, take=False).version == later


def test_after_a_pause_nothing_is_made_up_for(store: ScheduleStore) -> None:
    store.put("x", ONE, 1000, replace=False)

    assert store.pause("x", '{"why": ""}', 2000)
    assert row(store).cursor_ms == 1000
    assert store.pause("x", "", 9000)

    assert (row(store).paused, row(store).cursor_ms) == ("", 9000)
    assert not store.pause("nobody", "{}", 0)
    assert not store.remove("nobody")


def test_a_tick_is_claimed_once_and_settled_once(make: Make) -> None:
    one, two = make(), make()
    one.put("x", ONE, 0, replace=False)
    token = lead(one)
    claim = Claim("x", 30_000, "t1")

    assert one.claim("a", token, [claim]) == ["fresh"]
    assert one.claim("a", token, [claim]) == ["fresh"], "its own, after a failed send"
    one.release("a", token)
    later = lead(two, "b")
    assert two.claim("b", later, [claim]) == ["open"], "sent or not: to be looked after"
    two.settle([Mark("x", 30_000, fired="t1")])
    one.settle([Mark("x", 30_000, fired="t1")])

    assert two.claim("b", later, [claim]) == ["done"]
    assert row(two)[3:] == (30_000, 0, 1, 0, 0, "t1")


def test_a_cursor_never_goes_back(store: ScheduleStore) -> None:
    store.put("x", ONE, 0, replace=False)

    store.settle([Mark("x", 60_000, missed=2), Mark("x", 30_000, skipped=1)])

    assert row(store)[3:] == (60_000, 0, 0, 0, 2, "")
    store.settle([Mark("nobody", 1, fired="t")])


def test_a_tick_that_waits_is_claimed_when_its_time_has_come(store: ScheduleStore) -> None:
    store.put("x", ONE, 0, replace=False)
    token = lead(store)
    store.settle([Mark("x", 30_000, queued=True), Mark("x", 60_000, skipped=1)])
    assert row(store)[3:] == (60_000, 30_000, 0, 1, 0, "")

    assert store.claim("a", token, [Claim("x", 30_000, "t1")]) == ["fresh"]
    store.settle([Mark("x", 30_000, fired="t1")])

    assert row(store)[3:] == (60_000, 0, 1, 1, 0, "t1")


def test_what_was_lost_is_written_back(make: Make) -> None:
    """After a FLUSHALL the schedulers are the only ones who know."""
    store = make()
    known = [
        Row("x", ONE, '{"why": "w"}', 60_000, 30_000, 3, 2, 1, "t3"),
        Row("y", TWO, "", 90_000),
    ]

    store.restore(known, ["x"])

    assert sorted(store.changed(0)[1]) == known
    assert store.declare({}, 0).removed == ["x"]


def test_writing_back_spoils_nothing_newer(store: ScheduleStore) -> None:
    store.put("x", TWO, 0, replace=False)
    store.settle([Mark("x", 90_000, missed=5)])

    store.restore([Row("x", ONE, "", 60_000, 0, 3, 0, 0, "t3")], [])

    assert row(store)[1:] == (TWO, "", 90_000, 0, 0, 0, 5, "")


def test_many_ticks_are_claimed_together(store: ScheduleStore) -> None:
    """The first second of an hour has thousands."""
    texts = {f"s{number}": ONE for number in range(2500)}
    store.declare(texts, 0)
    token = lead(store)
    claims = [Claim(name, 30_000, f"t-{name}") for name in texts]

    assert store.claim("a", token, claims) == ["fresh"] * 2500
    store.settle([Mark(claim.name, claim.due_ms, fired=claim.task_id) for claim in claims])

    assert store.claim("a", token, claims) == ["done"] * 2500
    assert {found.fired for found in store.changed(0)[1]} == {1}
    assert len(store.rows(list(texts))) == 2500


def test_a_state_that_a_hand_broke_is_told_apart(url: str, store: ScheduleStore) -> None:
    """It is not read as "never fired", which would fire again what has been."""
    store.put("x", ONE, 1000, replace=False)
    break_state(url)

    assert row(store).cursor_ms == -1
    store.restore([row(store)._replace(cursor_ms=5000)], [])
    assert row(store) == Row("x", ONE, "", 5000)


def break_state(url: str) -> None:
    if url.startswith("redis"):
        with redis.Redis.from_url(url) as client:
            client.hset("taskq:schedules:shop:states", "x", "soon")
        return
    with open_database(parse_location(url)).writing(30) as connection:
        connection.execute("UPDATE schedules SET cursor_ms = 'soon'")
