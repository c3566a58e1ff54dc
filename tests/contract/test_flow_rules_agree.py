"""The rules in Python and in Lua decide the same: any history, asked of both stores.

The embedded store runs `rules` and `returns`, the Redis store its script. Both get the same fixed
moments.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskq.flow.asks import GO, Ask, Release, Verdict
from taskq.flow.declared import Claim
from taskq.flow.store import FlowStore
from taskq.flow.stores.redis import RedisFlow
from taskq.flow.stores.sqlite import SqliteFlow
from taskq.outcome import SUCCESS
from taskq.results.base import Record, ResultStore, Write, encode_record
from taskq.results.redis import RedisResults
from taskq.results.sqlite import SqliteResults

START_US = 1_790_000_000_000_000
RECORD_TTL_S = 10**9
LEASE_US = 200_000_000

ids = st.sampled_from(["one", "two", "three", "four", "7"])
spans = st.sampled_from([100_000_000, 300_000_000])


@st.composite
def asks(draw: Any) -> dict[str, Any]:
    """One question, without moment and nonce; cells are few, so that questions meet."""
    key = draw(st.sampled_from("ab"))
    maybe = st.booleans()
    mode = draw(st.sampled_from("sdwb"))
    return {
        "task": draw(st.sampled_from(["t", "u"])),
        "id": draw(ids),
        "attempt": draw(st.integers(0, 2)),
        "again": draw(st.booleans()),
        "waited": draw(st.sampled_from(["", "u", "c", "r", "cr", "g", "b"])),
        "at_us": draw(st.sampled_from([0, 0, 0, 500_000, 5_000_000])),
        "version": draw(st.integers(0, 2)),
        "unique": (f"u{mode}{key}", mode, draw(spans), draw(maybe), draw(st.integers(0, 2)))
        if draw(maybe)
        else None,
        "idempotency": f"i{key}" if draw(maybe) else "",
        "breaker": (f"b{key}", 300_000_000) if draw(maybe) else None,
        "budget": (f"g{key}", 0.1, draw(st.sampled_from([1e-6, 3e-7])), 2) if draw(maybe) else None,
        "slots": (f"c:{key}", draw(st.integers(1, 3))) if draw(maybe) else None,
        "rate": (f"r{key}", draw(st.sampled_from([1, 100_000, 777_777, 5_000_000])), 2)
        if draw(maybe)
        else None,
    }


steps = st.lists(
    st.tuples(
        st.integers(0, 120_000_000),
        st.one_of(
            st.tuples(st.just("admit"), st.lists(asks(), min_size=1, max_size=4)),
            st.tuples(st.just("release"), st.tuples(ids, st.sampled_from("sfrbe"), st.booleans())),
            st.tuples(st.just("renew"), st.just(None)),
            st.tuples(st.just("claim"), st.tuples(st.sampled_from("ab"), ids, spans)),
            st.tuples(st.just("unclaim"), st.tuples(st.sampled_from("ab"), ids)),
            st.tuples(
                st.just("change"),
                st.sampled_from(
                    [("rt", [50_000, 3]), ("ct", 1), ("ru", None), ("ct", None), ("", None)]
                ),
            ),
        ),
    ),
    min_size=1,
    max_size=25,
)


class Side:
    """One store, and what its grants were."""

    def __init__(self, store: Any) -> None:
        self.store: FlowStore = store
        self.held: dict[str, Release] = {}

    def at(self, now_us: int) -> None:
        self.store.fixed_us = now_us  # type: ignore[attr-defined]

    def admit(self, questions: list[dict[str, Any]], number: int) -> list[Verdict]:
        batch = [
            Ask(
                **{**fields, "at_us": fields["at_us"] and self.store.now_us() + fields["at_us"]},
                nonce=f"n{number}-{at}",
                lease_us=LEASE_US,
            )
            for at, fields in enumerate(questions)
        ]
        answer = self.store.admit([ask.id for ask in batch], list(enumerate(batch)))
        for ask, verdict in zip(batch, answer.verdicts, strict=True):
            if verdict.code == GO:
                self.held[ask.id] = _release_of(ask, verdict)
        return answer.verdicts


def _release_of(ask: Ask, verdict: Verdict) -> Release:
    return Release(
        ask.id,
        ask.nonce,
        "s",
        unique=ask.unique[0] if ask.unique and ask.unique[1] == "d" else "",
        idempotency=(ask.idempotency, 150_000_000) if ask.idempotency else None,
        breaker=(ask.breaker[0], 2, 300_000_000, 200_000_000) if ask.breaker else None,
        slots=ask.slots[0] if ask.slots else "",
        probe=verdict.probe,
    )


def _step(side: Side, number: int, what: str, detail: Any) -> Any:
    store = side.store
    if what == "admit":
        return side.admit(detail, number)
    if what == "release":
        task_id, outcome, tripped = detail
        given = side.held.pop(task_id, None)
        if given is None:
            return None
        return store.release([given._replace(outcome=outcome, tripped=tripped)])
    if what == "renew":
        return store.renew(list(side.held.values()), LEASE_US)
    if what == "claim":
        key, task_id, span = detail
        return store.claim(
            [Claim(f"us{key}", task_id, span, True), Claim(f"ud{key}", task_id, span)]
        )
    if what == "unclaim":
        return store.unclaim([Claim(f"us{detail[0]}", detail[1], 1)])
    return store.change(*detail)


def _with_ended(store: ResultStore) -> None:
    """Have one of the tasks ended, whose claims are free then."""
    store.store([Write("four", encode_record(Record(SUCCESS)), RECORD_TTL_S)])


@pytest.fixture
def redis_results(redis_url: str) -> Iterator[RedisResults]:
    opened = RedisResults(redis_url)
    _with_ended(opened)
    yield opened
    opened.close()


@pytest.fixture
def file_results(tmp_path: Path) -> Iterator[SqliteResults]:
    opened = SqliteResults(f"sqlite:///{tmp_path}/flow.db")
    _with_ended(opened)
    yield opened
    opened.close()


@given(history=steps)
@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_both_decide_the_same(
    history: list[tuple[int, tuple[str, Any]]],
    redis_results: RedisResults,
    file_results: SqliteResults,
) -> None:
    """A limit that holds on a laptop and not in production would be found by users only."""
    _compare(history, redis_results, file_results)


@pytest.mark.parametrize("seed", range(8))
def test_both_decide_the_same_in_the_long_run(
    seed: int, redis_results: RedisResults, file_results: SqliteResults
) -> None:
    """Claims that collide, slots that fill and breakers that open need a history."""
    _compare(_long_history(random.Random(seed)), redis_results, file_results)


def _long_history(rng: random.Random) -> list[tuple[int, tuple[str, Any]]]:
    names = ["one", "two", "three", "four", "7"]

    def maybe(value: Any, share: float = 0.5) -> Any:
        return value if rng.random() < share else None

    def ask() -> dict[str, Any]:
        mode = rng.choice("sdwb")
        return {
            "task": rng.choice("tu"),
            "id": rng.choice(names),
            "attempt": maybe(1, 0.3) or 0,
            "again": rng.random() < 0.3,
            "waited": rng.choice(["", "", "", "u", "c", "r", "cr", "g"]),
            "at_us": maybe(5_000_000, 0.1) or 0,
            "version": rng.randrange(3),
            "unique": maybe(
                (f"u{mode}a", mode, 300_000_000, rng.random() < 0.3, rng.randrange(3)), 0.3
            ),
            "idempotency": maybe("ia", 0.1) or "",
            "breaker": maybe(("ba", 300_000_000), 0.3),
            "budget": maybe(("ga", 0.1, 1e-6, 2), 0.3),
            "slots": maybe(("c:a", rng.randint(1, 3))),
            "rate": maybe(("ra", rng.choice([100_000, 777_777, 5_000_000]), 2)),
        }

    def step() -> tuple[str, Any]:
        what = rng.choices(
            ["admit", "release", "renew", "claim", "unclaim", "change"], [9, 8, 1, 1, 1, 1]
        )[0]
        detail: dict[str, Any] = {
            "admit": [ask() for _ in range(rng.randint(1, 3))],
            "release": (rng.choice(names), rng.choice("sffrbe"), rng.random() < 0.7),
            "claim": ("a", rng.choice(names), 300_000_000),
            "unclaim": ("a", rng.choice(names)),
            "change": rng.choice([("rt", [50_000, 3]), ("ct", 1), ("ru", None), ("ct", None)]),
        }
        return what, detail.get(what)

    passes = [0, 1000, 70_000, 900_000, 20_000_000, 130_000_000]
    return [(rng.choice(passes), step()) for _ in range(400)]


def _compare(
    history: list[tuple[int, tuple[str, Any]]],
    redis_results: RedisResults,
    file_results: SqliteResults,
) -> None:
    sides = [Side(SqliteFlow(file_results)), Side(RedisFlow(redis_results))]
    for side in sides:
        side.at(START_US)
        side.store.change("", None, list(side.store.cells()))
        # What was set by the example before; its version only grows.
        side.store.change("", None, ["s:0::"])
    now_us = START_US
    for number, (passed_us, (what, detail)) in enumerate(history):
        now_us += passed_us
        answers = []
        for side in sides:
            side.at(now_us)
            answers.append(_step(side, number, what, detail))
        assert answers[0] == answers[1], (number, what, detail)

    first, second = (side.store.cells() for side in sides)
    # Redis forgets by its own clock, which stands still here: it may know more.
    assert first == {name: _plain(second.get(name)) for name in first}


def _plain(state: list[Any] | None) -> list[Any] | None:
    """Return a state with Lua's empty table, which may be either, as Python has it."""
    if state and state[0] == [] and len(state) == 3:
        return [{}, *state[1:]]
    if state and len(state) == 2 and state[1] == []:
        return [state[0], {}]
    return state
