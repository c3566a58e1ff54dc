"""What limits cost at admission: one round trip for each batch, whatever is declared."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from taskq import CircuitBreaker, TaskQ
from taskq.body import encode_call
from taskq.brokers.base import Delivery
from taskq.envelope import read_envelope
from taskq.message import KEYS
from taskq.results.redis import RedisResults
from taskq.worker.gates import Gates
from taskq.worker.held import Held
from taskq.worker.manifest import make_manifest

app = TaskQ("trips", broker="memory://trips", results="memory://trips")


@app.task(
    name="all",
    rate_limit="1000/s",
    max_concurrency=1000,
    unique="until_done",
    idempotency_key="x",
    circuit_breaker=CircuitBreaker(),
    retry_budget=0.1,
)
def everything(x: int) -> None: ...


@app.task(name="plain")
def plain(x: int) -> None: ...


class Hall:
    """What gates need of an intake."""

    last_cancel = 0

    def __init__(self, store: RedisResults) -> None:
        self.gates: list[Any] = []
        self.news: list[tuple[int, bytes]] = []
        self.fetch = lambda batch: store.fetch([held.delivery.message.id for held in batch])

    def learn_cancels(self, news: Sequence[tuple[int, bytes]]) -> None:
        self.news += news


@pytest.fixture
def store(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisResults]:
    """A store that counts its round trips in `trips`."""
    opened = RedisResults(redis_url)
    exchange = opened._exchange
    trips: list[int] = []

    def counted(requests: Any) -> Any:
        trips.append(len(requests))
        return exchange(requests)

    monkeypatch.setattr(opened, "_exchange", counted)
    opened.trips = trips  # type: ignore[attr-defined]
    yield opened
    opened.close()


def batch_of(name: str, count: int) -> list[Held]:
    info = make_manifest(app).tasks[name]
    found = []
    for number in range(count):
        headers = {KEYS: {"u": str(number), "i": str(number)}} if name == "all" else None
        message = encode_call(name, f"{name}-{number}", (number,), {}, headers=headers)
        delivery = Delivery((0, number), "default", message)
        found.append(Held(number, delivery, read_envelope(message), info))
    return found


def test_a_batch_with_every_limit_is_one_round_trip(store: RedisResults) -> None:
    """Records, new cancels and all verdicts come in it; giving back is one more."""
    hall = Hall(store)
    gates = Gates(make_manifest(app), store, "w", hall)  # type: ignore[arg-type]
    store.add_rule(b"a rule", 2**50)
    gates.fetch(batch_of("all", 1))
    trips: list[int] = store.trips  # type: ignore[attr-defined]
    trips.clear()
    batch = batch_of("all", 100)[1:] + batch_of("plain", 20)

    records = gates.fetch(batch)

    assert len(trips) == 1
    assert len(records) == len(batch)
    assert gates.ask(batch) == [None] * len(batch)
    assert all(held.grant is not None for held in batch if held.info and held.info.name == "all")
    assert [rule for _, rule in hall.news][:1] == [b"a rule"]


def test_a_batch_without_limits_asks_no_limits(store: RedisResults) -> None:
    """Nobody pays for what he does not declare."""
    gates = Gates(make_manifest(app), store, "w", Hall(store))  # type: ignore[arg-type]
    batch = batch_of("plain", 20)

    gates.fetch(batch)

    trips: list[int] = store.trips  # type: ignore[attr-defined]
    assert len(trips) == 1
    assert not [held for held in batch if held.grant is not None]
    assert not app.flow().cells()
