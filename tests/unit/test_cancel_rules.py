"""Cancel rules: which tasks they mean, and what a worker remembers of them."""

import uuid
from collections.abc import Mapping
from typing import Any

import pytest

from taskq import clock
from taskq.cancels import CancelRule, RuleBook, make_rule, pack_rule, unpack_rule
from taskq.errors import ConfigError, DecodeError
from taskq.ids import made_ms, new_id, sent_ms
from taskq.message import FIRST, REPLAYS, SENT, Message
from taskq.resend import revived

HOUR_MS = 3_600_000


def message(task: str = "mail.send", task_id: str = "", **headers: Any) -> Message:
    named = {name.replace("_", "-") if "taskq" in name else name: v for name, v in headers.items()}
    return Message(task, task_id or new_id(), b"", named)


def rule(
    root_id: str | None = None,
    task: str | None = None,
    headers: Mapping[str, Any] | None = None,
    *,
    in_ms: int = 1000,
) -> CancelRule:
    return make_rule(root_id, task, headers, clock.now_ms() + in_ms)


def test_an_id_tells_when_it_was_made() -> None:
    """And is a valid UUID of version 7, which sorts by time."""
    before_ms = clock.now_ms()
    ids = [new_id() for _ in range(200)]
    after_ms = clock.now_ms()

    assert len(set(ids)) == 200
    for task_id in ids:
        parsed = uuid.UUID(task_id)
        assert str(parsed) == task_id
        assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
        made = made_ms(task_id)
        assert made is not None
        assert before_ms <= made <= after_ms


@pytest.mark.parametrize(
    "task_id",
    [
        "",
        "x",
        "1b4e28ba-2fa1-41d2-883f-0016d3cca427",
        "7" * 36,
        "zzzzzzzz-zzzz-7zzz-zzzz-zzzzzzzzzzzz",
        "00000000-0000-7000-8000-000000000000",
        "ffffffff-ffff-7fff-bfff-ffffffffffff",
    ],
)
def test_other_ids_tell_nothing(task_id: str) -> None:
    """A guess would cancel a new task, or spare an old one."""
    assert made_ms(task_id) is None
    assert sent_ms(Message("t", task_id, b"")) is None


def test_a_header_tells_where_the_id_does_not() -> None:
    """Ids that users choose, and replays; a failed attempt was sent before it failed."""
    assert sent_ms(message(task_id="order-7", taskq_sent=5)) == 5
    assert sent_ms(message(taskq_sent=5)) == 5
    assert sent_ms(message(task_id="order-7", taskq_first=6)) == 6
    assert sent_ms(message(task_id="order-7", taskq_sent="yes", taskq_first=True)) is None


def test_a_name_means_what_was_sent_before() -> None:
    """What is sent afterwards is meant to run."""
    old, other = message(), message("other")
    now = rule(task="mail.send")

    assert now.hits(old, old.id)
    assert not now.hits(other, other.id)
    assert not rule(task="mail.send", in_ms=-HOUR_MS).hits(old, old.id)
    assert not now.hits(message(taskq_sent=clock.now_ms() + HOUR_MS), "r")


def test_a_message_without_a_time_is_spared() -> None:
    """Celery's: dropping a new task is worse than running an old one."""
    assert not rule(task="mail.send").hits(message(task_id=str(uuid.uuid4())), "r")
    assert rule(task="mail.send").hits(message(task_id="x", taskq_first=1), "r")


def test_a_workflow_means_also_what_is_sent_later() -> None:
    """Its running tasks send on; only an operator's replay is stronger."""
    later = message(taskq_sent=clock.now_ms() + HOUR_MS)
    undated = message(task_id="x")
    cancelled = rule("root-1")

    assert cancelled.hits(later, "root-1")
    assert cancelled.hits(undated, "root-1")
    assert not cancelled.hits(later, "root-2")
    assert not cancelled.hits(later.with_headers(taskq_replays=1), "root-1")


def test_a_replay_is_newer_than_a_cancel() -> None:
    """Whoever sends a dead letter again wants it to run."""
    old = message()
    by_name, by_root = rule(task="mail.send", in_ms=-1), rule("root-1", in_ms=-1)

    again = revived(old)

    assert again.headers[REPLAYS] == 1
    assert isinstance(again.headers[SENT], int)
    assert not by_name.hits(again, old.id)
    assert not by_root.hits(again, "root-1")


@pytest.mark.parametrize(
    ("sent", "wanted"),
    [("acme", "acme"), (7, "7"), (7, 7), (True, "true"), (True, True), (b"acme", "acme")],
)
def test_headers_are_compared_as_text(sent: Any, wanted: Any) -> None:
    """On the command line all values are text."""
    given = message(tenant=sent, more="x")

    assert rule(headers={"tenant": wanted}).hits(given, "r")
    assert rule(headers={"tenant": wanted, "more": "x"}).hits(given, "r")
    assert not rule(headers={"tenant": "other"}).hits(given, "r")
    assert not rule(headers={"tenant": wanted, "none": "x"}).hits(given, "r")


def test_all_that_is_named_must_be_so() -> None:
    """`task=` and `headers=` together narrow, never widen."""
    both = rule(task="mail.send", headers={"tenant": "acme"})

    assert both.hits(message(tenant="acme"), "r")
    assert not both.hits(message("other", tenant="acme"), "r")
    assert not both.hits(message(), "r")
    assert str(both) == "task mail.send, header tenant=acme"


@pytest.mark.parametrize(
    ("root_id", "task", "headers", "ttl_s"),
    [
        (None, None, None, 60),
        ("", None, None, 60),
        (None, "", None, 60),
        (None, None, {}, 60),
        (None, "x" * 256, None, 60),
        (7, None, None, 60),
        (None, None, {"": "x"}, 60),
        (None, None, {7: "x"}, 60),
        (None, None, ["tenant"], 60),
        (None, "x", None, 0),
        (None, "x", None, 1.5),
        (None, "x", None, True),
    ],
)
def test_a_rule_that_says_nothing_usable_is_refused(
    root_id: Any, task: Any, headers: Any, ttl_s: Any
) -> None:
    """An empty one would cancel everything."""
    with pytest.raises(ConfigError):
        make_rule(root_id, task, headers, clock.now_ms(), ttl_s)


def test_rules_survive_storage() -> None:
    """Bytes that are no rule, or a newer one, are named."""
    whole = rule("root", "task", {"tenant": "acme"})
    assert unpack_rule(pack_rule(whole)) == whole

    for data in (b"", b"\xc1", b"\x01", b"\x96\x02\xa0\xa0\x80\x00\x00"):
        with pytest.raises(DecodeError):
            unpack_rule(data)


def learned(*rules: CancelRule) -> RuleBook:
    book = RuleBook()
    book.learn(enumerate(map(pack_rule, rules), start=1))
    return book


def test_a_book_finds_every_kind_of_rule() -> None:
    """By workflow, name, header, and their combinations."""
    given = message(tenant="acme")
    for item in (
        rule("root"),
        rule(task="mail.send"),
        rule(headers={"tenant": "acme"}),
        rule("root", "mail.send"),
        rule("root", "mail.send", {"tenant": "acme"}),
    ):
        assert learned(rule("other"), item).hit(given, "root") == item
    assert learned(rule("other"), rule(task="other")).hit(given, "root") is None
    assert RuleBook().hit(given, "root") is None


def test_a_later_cancel_of_the_same_replaces_the_earlier() -> None:
    """A name that is cancelled every night must not grow the list."""
    given = message()
    book = learned(rule(task="mail.send", in_ms=-HOUR_MS))
    assert book.hit(given, "r") is None

    book.learn([(2, pack_rule(rule(task="mail.send", in_ms=1)))])

    assert book.hit(given, "r") is not None
    assert book.last == 2


def test_unreadable_and_ended_rules_are_passed_over() -> None:
    """A worker that stopped over a newer taskq's rule would run nothing."""
    book = RuleBook()
    ended = make_rule("root", None, None, clock.now_ms() - HOUR_MS, 1)

    book.learn([(1, b"newer"), (2, pack_rule(ended)), (3, pack_rule(rule("other")))])

    assert book.last == 3
    assert book.hit(message(), "root") is None
    assert book.hit(message(), "other") is not None


def test_a_rule_ends_with_its_time() -> None:
    """Also in a worker that has known it for long."""
    short = make_rule(None, "mail.send", None, clock.now_ms(), 1)
    book = learned(short)
    given = message()
    assert book.hit(given, "r") == short

    while clock.now_ms() <= short.ends_ms:
        pass

    assert book.hit(given, "r") is None


def test_thousands_of_rules_cost_no_more_than_one() -> None:
    """They are found by what they name, and ended ones are swept out."""
    now_ms = clock.now_ms()
    ended = [make_rule(f"old-{n}", None, None, now_ms - HOUR_MS + n, 3601) for n in range(900)]
    book = learned(*ended, *(rule(f"root-{n}") for n in range(5000)))

    assert book.hit(message(), "root-4999") is not None
    assert book.hit(message(), "root-5000") is None
    assert FIRST not in message().headers
