"""Sharded queues as data: which shard a call goes to, and what is refused."""

from collections import Counter
from typing import Any

import pytest

from taskq import ConfigError, KeyExpressionFailed, Queue, Signature, TaskQ, chain
from taskq.brokers.shapes import shard_index
from taskq.message import SHARD_KEY
from taskq.worker.manifest import Manifest, make_manifest

KEYS = [f"order-{number}" for number in range(20_000)]


def test_a_key_has_the_same_shard_in_every_release() -> None:
    """Senders and workers of two releases run side by side; these numbers may never change."""
    assert [shard_index(key, 8) for key in ('"a"', '"b"', "1", "2", "")] == [2, 1, 3, 3, 5]


@pytest.mark.parametrize("count", [2, 3, 8, 100])
def test_shards_get_equal_shares(count: int) -> None:
    """No worker gets twice the work of another."""
    found = Counter(shard_index(key, count) for key in KEYS)

    assert set(found) == set(range(count))
    mean = len(KEYS) / count
    assert all(0.6 * mean < size < 1.4 * mean for size in found.values())


@pytest.mark.parametrize("count", [2, 7, 8])
def test_one_shard_more_moves_one_share_of_the_keys(count: int) -> None:
    """All that move go to the new shard; the others stay where their order is."""
    before = [shard_index(key, count) for key in KEYS]
    after = [shard_index(key, count + 1) for key in KEYS]

    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {count}
    share = len(KEYS) / (count + 1)
    assert 0.85 * share < len(moved) < 1.15 * share


ORDERS = Queue("orders", shards=8, shard_key="kwargs['order_id']")


def app_with(*queues: Queue, **options: Any) -> TaskQ:
    return TaskQ("sharded", broker="memory://shards", queues=list(queues), **options)


def test_equal_keys_go_to_one_shard_and_carry_their_key() -> None:
    """Workers and reshards need the key, and decode no body for it."""
    app = app_with(ORDERS, routes=[("orders.*", "orders")])
    calls = [
        Signature("orders.pay", (n,), {"order_id": n % 50}, {"priority": 9}) for n in range(200)
    ]

    prepared = app._prepare(calls)

    places: dict[Any, set[str]] = {}
    for call, one in zip(calls, prepared, strict=True):
        message = one.outgoing.message
        assert message.priority == 0, "the order of a shard is that of its sends"
        places.setdefault(message.headers[SHARD_KEY], set()).add(one.outgoing.queue)
        assert message.headers[SHARD_KEY] == str(call.kwargs["order_id"])
    assert len(places) == 50
    assert all(len(found) == 1 for found in places.values())
    assert {q for found in places.values() for q in found} == {
        f"orders.shard.8.{index}" for index in range(8)
    }


def test_a_worker_of_a_sharded_queue_consumes_all_of_it() -> None:
    """By its name, with or without -Q; and the declaration reaches the hub as plain data."""
    app = app_with(ORDERS, Queue("jobs", max_priority=9))

    @app.task(name="orders.pay", queue="orders")
    def pay(order_id: int) -> None: ...

    manifest = Manifest.from_wire(make_manifest(app).to_wire())

    assert manifest.queues() == ("default", "orders")
    whole = ("orders", *[f"orders.shard.8.{index}" for index in range(8)])
    assert manifest.consumed(manifest.queues()) == ("default", *whole)
    assert manifest.consumed(["jobs", "orders"]) == ("jobs", *whole)


def test_a_chain_finds_the_shard_of_each_step() -> None:
    """Steps whose key is the value of the step before have no shard when the chain is sent."""
    app = app_with(ORDERS, Queue("users", shards=2, shard_key="args[0]"))

    @app.task(name="orders.pay", queue="orders")
    def pay(*_: Any, order_id: int) -> None: ...

    @app.task(name="users.tell", queue="users")
    def tell(user: str, *_: Any) -> None: ...

    (sent,) = app._prepare([chain(tell.s("ann"), pay.s(order_id=7))])
    assert sent.outgoing.queue.startswith("users.shard.2.")
    assert b"orders.shard.8." in sent.outgoing.message.body

    with pytest.raises(KeyExpressionFailed):
        app._prepare([chain(pay.s(order_id=7), tell.s())])
    app._prepare([chain(pay.s(order_id=7), tell.si("ann"))])


def test_a_call_without_its_key_is_refused() -> None:
    """Sent to any shard it would overtake its neighbours."""
    app = app_with(ORDERS)
    with pytest.raises(KeyExpressionFailed, match="order_id"):
        app._prepare([Signature("any", (7,), {}, {"queue": "orders"})])
    by_call = app_with(Queue("orders", shards=2, shard_key=lambda order_id: order_id))
    by_call._prepare([Signature("any", (7,), {}, {"queue": "orders"})])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a b", {}),
        ("orders.high", {}),
        ("orders", {"shards": 8}),
        ("orders", {"shard_key": "args[0]"}),
        ("orders", {"shards": 1, "shard_key": "args[0]"}),
        ("orders", {"shards": -1, "shard_key": "args[0]"}),
        ("orders", {"shards": 1025, "shard_key": "args[0]"}),
        ("orders", {"shards": True, "shard_key": "args[0]"}),
        ("orders", {"shards": 8, "shard_key": "import os"}),
        ("orders", {"shards": 8, "shard_key": "f(args[0])"}),
        ("orders", {"shards": 8, "shard_key": "args[0]", "max_priority": 5}),
        ("orders", {"max_priority": 10}),
        ("orders", {"max_priority": "5"}),
        ("orders", {"max_length": -1}),
        ("orders", {"max_length": "10"}),
        ("orders", {"message_ttl_s": -1}),
        ("orders", {"message_ttl_s": float("nan")}),
        ("orders", {"message_ttl_s": 400 * 86400}),
        ("orders", {"max_length": 10, "overflow": "drop-head"}),
        ("orders", {"overflow": "drop-head-to-dead"}),
        ("orders", {"shards": 8, "shard_key": "args[0]", "max_length": 5}),
    ],
)
def test_a_queue_that_cannot_be_is_refused(name: str, options: dict[str, Any]) -> None:
    """When it is declared, not at the first send."""
    with pytest.raises(ConfigError):
        Queue(name, **options)


@pytest.mark.parametrize("queues", ["orders", ["orders"], {"orders": ORDERS}, [ORDERS, ORDERS]])
def test_declarations_that_do_not_fit_are_refused(queues: Any) -> None:
    """Two of one name would be two layouts."""
    with pytest.raises(ConfigError):
        TaskQ("x", broker="memory://x", queues=queues)
