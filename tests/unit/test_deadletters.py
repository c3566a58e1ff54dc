"""Dead letters: what they tell, which are wanted, and what becomes of them."""

from collections.abc import Iterator
from typing import Any

import pytest

from taskq import Signature, TaskQ, chain, clock, outcome
from taskq.body import encode_call
from taskq.brokers.base import Delivery, Outgoing
from taskq.calls import prepare
from taskq.dead import DeadLetters, Filter
from taskq.dead.letter import fingerprint, read_letter
from taskq.errors import DecodeError, RemoteError
from taskq.message import HISTORY, REPLAYS, Message
from taskq.resend import REASONS, dead, retried
from taskq.results.base import Record, Write, encode_record

TRACEBACK = """Traceback (most recent call last):
  File "/srv/app/first.py", line 3, in begin
    raise KeyError("a")
KeyError: 'a'

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/srv/app/shop.py", line {line}, in pay
    charge(order)
  File "/srv/venv/lib/python3.11/site-packages/bank/api.py", line {deep}, in charge
    raise {kind}("no money")
{kind}: no money
"""


def trace(line: int = 7, deep: int = 99, kind: str = "ValueError") -> str:
    return TRACEBACK.format(line=line, deep=deep, kind=kind)


def error_of(kind: str = "ValueError", text: str = "no money") -> RemoteError:
    return RemoteError("builtins", kind, text, (), trace(kind=kind))


def letter_of(
    task: str = "shop.pay",
    task_id: str = "id-1",
    reason: str = "failed",
    queue: str = "bills",
    **changes: Any,
) -> Message:
    message = encode_call(task, task_id, [1], {"to": "ann"}, headers={"tenant": "x"})
    error = changes.pop("error", error_of())
    return dead(message, reason, queue, error=error, attempts=4, worker="w1")


def read(message: Message, error: DecodeError | None = None, prefix: str = "") -> Any:
    return read_letter(Delivery(1, "taskq.dead", message, error=error), prefix)


# --- reading


def test_a_letter_tells_its_whole_story(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing here, nobody can find out later: the message is all that is left."""
    monkeypatch.setattr(clock, "now_ms", lambda: 1_700_000_000_000)
    once = retried(encode_call("shop.pay", "id-1", [1], {"to": "ann"}), 1, 0, error_of("OSError"))
    letter = read(dead(once, "failed", "bills", error=error_of(), attempts=2, worker="w1"))

    found = letter.to_json(full=True)

    assert found["id"] == "id-1"
    assert (found["task"], found["queue"], found["reason"]) == ("shop.pay", "bills", "failed")
    assert found["exception"]["type"] == "ValueError"
    assert found["exception"]["message"] == "no money"
    assert len(found["exception"]["fingerprint"]) == 12
    assert found["attempts"] == 2
    assert found["failed_at"] == "2023-11-14T22:13:20+00:00"
    assert (found["args"], found["kwargs"]) == ([1], {"to": "ann"})
    assert found["traceback"] == trace()
    assert found["history"] == [
        {"attempt": 1, "at": "2023-11-14T22:13:20+00:00", "type": "OSError", "message": "no money"}
    ]


def test_the_listing_has_the_documented_fields_and_no_arguments() -> None:
    """Arguments are personal data; a list that goes to a log must not carry them."""
    found = read(letter_of()).to_json()

    wanted = {"id", "task", "queue", "reason", "exception", "attempts", "failed_at"}
    assert set(found) == wanted | {"worker", "replays"}
    assert set(found["exception"]) == {"type", "message", "fingerprint", "module"}


def test_headers_are_the_users_own() -> None:
    """The story is told by fields; its headers beside them would only be noise."""
    letter = read(letter_of().with_headers(**{"x-delivery-count": 3}))

    assert dict(letter.headers) == {"tenant": "x"}


def test_a_letter_without_id_can_be_named_all_the_same() -> None:
    """A malformed message has no id, and must be shown and dropped like any other."""
    message = Message("", "", b"\xc1garbage", {})
    one = read(dead(message, "malformed", "bills"))
    other = read(dead(Message("", "", b"other", {}), "malformed", "bills"))

    assert one.id.startswith("letter-")
    assert one.id != other.id
    assert one.to_json(full=True)["args"] is None
    assert one.to_json(full=True)["problem"]


@pytest.mark.parametrize("junk", [None, -1, 2**70, "x", b"x", [], [[1]], {"a": 1}, True])
def test_hostile_headers_leave_a_letter_readable(junk: Any) -> None:
    """One letter that cannot be listed would hide all the others."""
    names = ("reason", "queue", "at", "attempts", "type", "message", "traceback", "worker")
    headers = {f"taskq-dead-{name}": junk for name in names}
    headers |= {HISTORY: junk, REPLAYS: junk}
    message = Message("shop.pay", "id-1", b"", headers)

    letter = read(message, DecodeError("hostile"))

    assert letter.reason in REASONS
    assert letter.to_json(full=True)["problem"] == "hostile"


def test_the_brokers_own_letters_have_a_reason_and_an_exception() -> None:
    """Whoever reads the JSON takes `exception.message` for granted."""
    headers = {
        "taskq-dead-reason": "delivery_limit",
        "taskq-dead-queue": "test.bills",
        "taskq-dead-at": 1_700_000_000_000,
        "taskq-dead-attempts": 0,
        "taskq-dead-worker": "",
    }
    letter = read(Message("shop.pay", "id-1", b"", headers), prefix="test.")

    assert letter.reason == "delivery_limit"
    assert letter.exception.message
    assert letter.queue == "bills", "a replay puts the prefix before it again"


def test_a_letter_from_nowhere_has_no_queue() -> None:
    """Sent to the dead letters again, a replay would go round in circles."""
    headers = {"taskq-dead-reason": "rejected", "taskq-dead-queue": "taskq.dead"}

    assert read(Message("a", "id", b"", headers)).queue == ""


# --- fingerprints


def test_a_fingerprint_survives_a_change_elsewhere_in_the_file() -> None:
    """Grouped by line number, every deploy would look like new failures."""
    first = fingerprint("ValueError", trace(7, 99), "shop.pay")

    assert fingerprint("ValueError", trace(12, 99), "shop.pay") == first
    assert fingerprint("ValueError", trace(7, 105), "shop.pay") == first


def test_a_fingerprint_tells_places_and_types_apart() -> None:
    """Two bugs in one group are one bug that is never fixed."""
    place = trace().replace("charge(order)", "refund(order)")

    found = {
        fingerprint("ValueError", trace(), "shop.pay"),
        fingerprint("OSError", trace(), "shop.pay"),
        fingerprint("ValueError", place, "shop.pay"),
        fingerprint("ValueError", "", "shop.pay"),
        fingerprint("ValueError", "", "shop.ship"),
    }

    assert len(found) == 5


# --- which are wanted


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Filter(), True),
        (Filter(ids=("id-1",)), True),
        (Filter(ids=("other", "id-1")), True),
        (Filter(ids=("id",)), False),
        (Filter(task="shop.*"), True),
        (Filter(task="shop"), False),
        (Filter(queue="bills"), True),
        (Filter(queue="bill"), False),
        (Filter(reason="failed"), True),
        (Filter(reason="rejected"), False),
        (Filter(exception="ValueError"), True),
        (Filter(exception="builtins.ValueError"), True),
        (Filter(exception="Value"), False),
        (Filter(since_ms=1), True),
        (Filter(since_ms=2**60), False),
        (Filter(task="shop.*", reason="rejected"), False),
    ],
)
def test_filters_choose_letters(wanted: Filter, expected: bool) -> None:
    """A filter that matches too much drops what somebody still needed."""
    assert wanted.matches(read(letter_of())) is expected


def test_a_fingerprint_and_an_id_may_be_cut() -> None:
    """They are typed by hand from a table."""
    letter = read(letter_of(task_id="0123456789"))

    assert Filter(fingerprint=letter.exception.fingerprint[:6]).matches(letter)
    assert Filter(ids=("23456789",)).matches(letter)
    assert not Filter(ids=("3456789",)).matches(letter), "too short to mean one task"
    assert not Filter(ids=("012345678",)).matches(letter), "many ids begin with the same time"


# --- acting


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Iterator[TaskQ]:
    """An app in memory, of this test alone."""
    url = f"memory://{request.node.name.replace('[', '-').replace(']', '')}"
    with TaskQ("dead", broker=url, results=url) as made:
        yield made


def bury(app: TaskQ, *letters: Message) -> None:
    batch = [Outgoing("bills", letter, dead=True) for letter in letters]
    assert app.broker.publish(batch, 5) == [None] * len(batch)


def record(app: TaskQ, task_id: str, state: str) -> None:
    assert app.results is not None
    app.results.store([Write(task_id, encode_record(Record(state, error=error_of())), 60)])


def test_listing_is_repeatable_and_the_newest_are_kept_by_a_limit(app: TaskQ) -> None:
    """Looking must not spend letters; the newest are what an operator looks for."""
    bury(app, *(letter_of(task_id=f"id-{n}") for n in range(5)))
    letters = DeadLetters(app.broker)

    assert [x.id for x in letters.list()] == [x.id for x in letters.list()]
    assert [x.id for x in letters.list(limit=2)] == ["id-3", "id-4"]
    assert len(letters.list()) == 5


def test_a_replay_forgets_the_failure_so_that_it_runs_again(app: TaskQ) -> None:
    """Beside a stored FAILURE, a worker takes the message for a redelivery and does not run it."""
    bury(app, letter_of())
    record(app, "id-1", outcome.FAILURE)
    letters = DeadLetters(app.broker, app.results)

    sent = letters.replay(letters.choose(), create=True)

    assert list(sent) == ["id-1"]
    assert app.result("id-1").state == outcome.PENDING
    depth = app.broker.depths(["bills"])["bills"]
    assert depth is not None
    assert depth.ready == 1
    assert not letters.list()


def test_a_replay_never_undoes_a_success(app: TaskQ) -> None:
    """Another copy of the message may have succeeded: SUCCESS is final."""
    bury(app, letter_of())
    record(app, "id-1", outcome.SUCCESS)
    letters = DeadLetters(app.broker, app.results)

    letters.replay(letters.choose(), create=True)

    assert app.result("id-1").state == outcome.SUCCESS


def test_a_replay_forgets_the_failures_of_the_steps_behind_it(app: TaskQ) -> None:
    """The rest of the chain failed with its first step; each would be acked without being run."""
    first, second = (Signature(n, (), {}, {"task_id": i}) for n, i in (("a", "s-1"), ("b", "s-2")))
    moved = prepare(chain(first, second), lambda name: {}, app.settings).outgoing.message
    bury(app, dead(moved, "failed", "bills", error=error_of(), attempts=1, worker="w"))
    for task_id in ("s-1", "s-2"):
        record(app, task_id, outcome.FAILURE)
    letters = DeadLetters(app.broker, app.results)

    letters.replay(letters.choose(), create=True)

    assert app.result("s-2").state == outcome.UNKNOWN


def test_a_letter_without_a_queue_stays_unless_one_is_named(app: TaskQ) -> None:
    """A replay to nowhere is a loss."""
    bury(app, letter_of(queue="taskq.dead"))
    letters = DeadLetters(app.broker, app.results)
    chosen = letters.choose()

    assert chosen.homeless == ["id-1"]
    assert not letters.replay(chosen, create=True)
    assert len(letters.list()) == 1
    assert list(letters.replay(chosen, to="rescue", create=True)) == ["id-1"]


def test_a_replayed_letter_counts_its_replays_also_after_hostile_ones(app: TaskQ) -> None:
    """The count is a header, and headers come from anywhere."""
    bury(app, letter_of().with_headers(**{REPLAYS: "many"}))
    letters = DeadLetters(app.broker)

    assert list(letters.replay(letters.choose(), create=True)) == ["id-1"]


def test_only_chosen_letters_are_dropped(app: TaskQ) -> None:
    """A letter that arrives between the question and the answer was not agreed to."""
    bury(app, letter_of(task_id="id-1"), letter_of(task_id="id-2", reason="rejected"))
    letters = DeadLetters(app.broker)
    chosen = letters.choose(Filter(reason="rejected"))
    bury(app, letter_of(task_id="id-3", reason="rejected"))

    assert list(letters.drop(chosen)) == ["id-2"]
    assert [letter.id for letter in letters.list()] == ["id-1", "id-3"]


def test_progress_is_told_for_every_letter(app: TaskQ) -> None:
    """A walk over 100,000 letters without a sign of life looks like a hang."""
    bury(app, *(letter_of(task_id=f"id-{n}") for n in range(3)))
    seen: list[int] = []

    DeadLetters(app.broker).list(progress=seen.append)

    assert seen == [1, 2, 3]
