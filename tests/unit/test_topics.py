"""Bindings and what matches them, without a broker; the contract tests ask RabbitMQ the same."""

import pytest

from taskq import ConfigError, TaskQ
from taskq.topics import Binding, check_pattern, headers_match, key_matches

KEYS = ["orders", "orders.created", "orders.created.eu", "stock.created", "a.b.c.d", "orders."]


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("orders", ["orders"]),
        ("orders.*", ["orders.created", "orders."]),
        ("orders.#", ["orders", "orders.created", "orders.created.eu", "orders."]),
        ("#", KEYS),
        ("*", ["orders"]),
        ("*.created", ["orders.created", "stock.created"]),
        ("#.created", ["orders.created", "stock.created"]),
        ("#.created.#", ["orders.created", "orders.created.eu", "stock.created"]),
        ("*.*.*", ["orders.created.eu"]),
        ("#.*.#", KEYS),
        ("a.#.d", ["a.b.c.d"]),
        ("a.#.#.d", ["a.b.c.d"]),
    ],
)
def test_patterns(pattern: str, wanted: list[str]) -> None:
    """`*` is one word, `#` any number, none included."""
    assert [key for key in KEYS if key_matches(pattern, key)] == wanted


def test_many_hashes_take_no_time() -> None:
    """A pattern comes from code, a key from anywhere: neither may cost exponential work."""
    assert not key_matches(".".join(["#", "x"] * 40), ".".join(["y"] * 100))


def test_headers() -> None:
    """All by default; with `any` one is enough; a truth value is no number."""
    both = {"type": "pdf", "pages": 1}

    assert headers_match(both, {"type": "pdf", "pages": 1, "more": "x"})
    assert not headers_match(both, {"type": "pdf"})
    assert headers_match({**both, "x-match": "any"}, {"type": "pdf"})
    assert not headers_match({**both, "x-match": "any"}, {"type": "txt"})
    assert not headers_match({"pages": 1}, {"pages": True})


@pytest.mark.parametrize("pattern", ["", "a..b", ".a", "a*.b", "a.#b", "x" * 300])
def test_patterns_that_cannot_match_are_refused(pattern: str) -> None:
    """`orders*` looks as if it meant something; RabbitMQ takes it for a word."""
    with pytest.raises(ConfigError):
        check_pattern(pattern)


def test_declarations_are_checked() -> None:
    """At import, not when the first message does not come."""
    app = TaskQ("t", broker="memory://routing", results="off")

    for arguments in (
        {},
        {"pattern": "a", "headers": {"b": "c"}},
        {"headers": {}},
        {"headers": {"x-match": "some", "a": "b"}},
        {"headers": {"a": 1.5}},
        {"pattern": "a", "queue": "mine"},
    ):
        with pytest.raises(ConfigError):
            app.subscribe(**arguments)(lambda message: None)
    for key in ("", "x" * 300):
        with pytest.raises(ConfigError):
            app.publish(key, 1)
    with pytest.raises(ConfigError, match="reserved"):
        app.publish("a", 1, headers={"taskq-key": "x"})
    app.close()


def test_a_broadcast_queue_bears_its_workers_name() -> None:
    """Two workers with one queue would share what each of them must get."""
    shared = Binding("taskq.sub.a", "a", "x.#")
    each = Binding("taskq.sub.a", "a", "x.#", broadcast=True)

    assert shared.of_worker("w@1") is shared
    assert each.of_worker("w@1").queue == "taskq.sub.a.w-1"
    assert each.of_worker("w@1") != each.of_worker("w@2")
