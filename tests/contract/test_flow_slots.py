"""Slots are kept one by one: thousands of one key cost what one costs, on both stores."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskq.flow.asks import GO, WAIT, Ask, Release, Verdict
from taskq.flow.stores.redis import RedisFlow
from taskq.flow.stores.sqlite import SqliteFlow
from taskq.results.redis import RedisResults
from taskq.results.sqlite import SqliteResults

S = 1_000_000
NOW = 1_790_000_000 * S
LEASE = 30 * S
CELL = "c:1:t:k"
MANY = 6_000


@pytest.fixture(params=["redis", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """A flow store whose clock stands at NOW."""
    if request.param == "redis":
        results: Any = RedisResults(request.getfixturevalue("redis_url"))
        opened: Any = RedisFlow(results)
    else:
        results = SqliteResults(f"sqlite:///{tmp_path}/flow.db")
        opened = SqliteFlow(results)
    opened.fixed_us = NOW
    opened.change("", None, list(opened.cells()))
    yield opened
    results.close()


def ask(name: str, bound: int = MANY, waited: str = "") -> Ask:
    return Ask("t", name, 0, False, f"n-{name}", LEASE, waited, slots=(CELL, bound))


def admit(store: Any, asks: list[Ask]) -> list[Verdict]:
    found: list[Verdict] = store.admit([one.id for one in asks], list(enumerate(asks))).verdicts
    return found


def holders(store: Any) -> dict[str, Any]:
    state = store.cells().get(CELL)
    found: dict[str, Any] = state[0] if state else {}
    return found


def test_thousands_of_slots_of_one_key_are_taken_and_given_back(store: Any) -> None:
    """Kept in one value, each look read and wrote all of them; Redis took seconds for a batch."""
    names = [f"task-{number}" for number in range(MANY)]
    for start in range(0, MANY, 500):
        verdicts = admit(store, [ask(name) for name in names[start : start + 500]])
        assert {verdict.code for verdict in verdicts} == {GO}

    (full,) = admit(store, [ask("one too many")])
    assert full.code == WAIT
    assert set(holders(store)) == set(names)

    store.release([Release(name, f"n-{name}", "s", slots=CELL) for name in names[:1]])
    (free,) = admit(store, [ask("one too many", waited="c")])
    assert free.code == GO
    store.release([Release(name, f"n-{name}", "s", slots=CELL) for name in names])
    assert set(holders(store)) == {"one too many"}


def test_leases_that_end_free_their_slots_and_the_renewed_ones_stay(store: Any) -> None:
    """A killed worker's slots come back when its lease is over, and not those of its siblings."""
    admit(store, [ask(name, 3) for name in ("dead", "alive", "slow")])
    store.fixed_us = NOW + LEASE // 2
    store.renew([Release("alive", "n-alive", "", slots=CELL)], LEASE)

    store.fixed_us = NOW + LEASE - 1
    (before,) = admit(store, [ask("next", 3, "c")])
    store.fixed_us = NOW + LEASE
    after = admit(store, [ask("next", 3, "c"), ask("then", 3, "c"), ask("last", 3, "c")])

    assert before.code == WAIT
    assert [verdict.code for verdict in after] == [GO, GO, WAIT]
    assert set(holders(store)) == {"alive", "next", "then"}


def test_forgetting_a_cell_gives_its_slots_back(store: Any) -> None:
    """`taskq limits reset --kind concurrency` on a cell whose holders will never tell."""
    admit(store, [ask("gone", 1)])

    store.change("", None, [CELL])

    assert holders(store) == {}
    assert admit(store, [ask("next", 1)])[0].code == GO


def test_what_is_left_of_a_key_that_nobody_uses_goes(tmp_path: Path) -> None:
    """One customer, one key: the file must not remember every one of them."""
    results = SqliteResults(f"sqlite:///{tmp_path}/flow.db")
    store = SqliteFlow(results)
    store.fixed_us = NOW
    admit(store, [ask("killed", 1)])

    store.fixed_us = NOW + LEASE + 3_601 * S
    for number in range(2):
        one = Ask("t", f"x{number}", 0, False, "n", LEASE, rate=("r:1:t:", S, 2))
        assert admit(store, [one])[0].code == GO

    database = store._database
    with database.reading(5.0) as connection:
        assert connection.execute("SELECT COUNT(*) FROM flow_slots").fetchone() == (0,)
        names = [name for (name,) in connection.execute("SELECT name FROM flow")]
    assert names == ["r:1:t:"]
    results.close()
