"""Sending: what is refused before anything leaves, and what a message is made of."""

import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from taskq import ConfigError, EncodeError, Middleware, TaskQ, clock
from taskq.body import decode_call
from taskq.brokers.base import Outgoing
from taskq.calls import prepare
from taskq.canvas import Chain, Signature, chain
from taskq.envelope import read_envelope
from taskq.message import DUE

YEAR_S = 366 * 86400
NOW_MS = 1_800_000_000_000


@pytest.fixture
def app() -> Iterator[TaskQ]:
    with TaskQ("calls", broker="memory://", results="memory://") as made:

        @made.task(name="add", queue="sums", priority=3, serializer="json")
        def add(x: int, y: int = 0) -> int:
            return x + y

        @made.task(name="plain")
        def plain(value: Any = None) -> Any:
            return value

        yield made


@pytest.fixture(autouse=True)
def fixed_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "now_ms", lambda: NOW_MS)


def prepared(app: TaskQ, call: Signature[Any] | Chain) -> Outgoing:
    return prepare(call, app._defaults, app.settings).outgoing


def sent(app: TaskQ, name: str = "plain", **options: Any) -> Outgoing:
    return prepared(app, Signature(name, (1,), {}, options))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"countdown": -1}, "countdown is -1"),
        ({"countdown": math.nan}, "countdown is nan"),
        ({"countdown": math.inf}, "countdown is inf"),
        ({"countdown": YEAR_S + 1}, "366 days"),
        ({"countdown": "5"}, "countdown is '5'"),
        ({"countdown": True}, "countdown is True"),
        ({"countdown": 1, "eta": datetime.now(UTC)}, "exclude each other"),
        ({"eta": datetime(2026, 1, 1)}, "aware datetime"),
        ({"eta": "tomorrow"}, "aware datetime"),
        ({"eta": datetime.fromtimestamp(NOW_MS / 1000, UTC) + timedelta(367)}, "366 days"),
        ({"expires": -1}, "expires is -1"),
        ({"expires": math.nan}, "expires is nan"),
        ({"expires": datetime(2026, 1, 1)}, "aware datetime"),
        ({"expires": "1h"}, "expires is '1h'"),
        ({"queue": "no spaces"}, "queue name"),
        ({"queue": "x" * 201}, "queue name"),
        ({"queue": "a/b"}, "queue name"),
        ({"queue": "\u00fcml\u00e4ut"}, "queue name"),
        ({"queue": 5}, "queue name"),
        ({"priority": 10}, "priority is 10"),
        ({"priority": -1}, "priority is -1"),
        ({"priority": True}, "priority is True"),
        ({"priority": "high"}, "priority is 'high'"),
        ({"task_id": "x" * 201}, "task_id"),
        ({"task_id": 7}, "task_id"),
        ({"headers": {"taskq-due": 1}}, "reserved"),
        ({"headers": {"taskq-dead-reason": "x"}}, "reserved"),
        ({"headers": {"task": "x"}}, "reserved"),
        ({"headers": {"id": "x"}}, "reserved"),
        ({"headers": {"x-death": []}}, "reserved"),
        ({"time_limit": 0}, "time_limit is 0"),
        ({"time_limit": math.nan}, "time_limit is nan"),
        ({"time_limit": 1.5}, "whole seconds"),
        ({"soft_time_limit": -1}, "soft_time_limit is -1"),
        ({"link": ["plain"]}, "take signatures"),
        ({"link_error": "plain"}, "take signatures"),
        ({"cuontdown": 1}, "did you mean 'countdown'"),
        ({"nonsense": 1}, "unknown option 'nonsense'"),
    ],
)
def test_an_unusable_option_is_refused_before_anything_is_sent(
    app: TaskQ, options: dict[str, Any], text: str
) -> None:
    """Once sent, it would fail in a worker, where nobody who wrote it is looking."""
    with pytest.raises(ConfigError) as caught:
        sent(app, **options)

    assert text in str(caught.value)


@pytest.mark.parametrize("options", [{"serializer": "pickle"}, {"headers": {"rate": 1.5}}])
def test_what_has_no_form_on_the_wire_is_an_encode_error(
    app: TaskQ, options: dict[str, Any]
) -> None:
    """Pickle is never written; floats have no form in AMQP's headers."""
    with pytest.raises(EncodeError):
        sent(app, **options)


@pytest.mark.parametrize("options", [{"countdown": 0}, {"countdown": None}, {}])
def test_a_task_for_now_has_no_due_time(app: TaskQ, options: dict[str, Any]) -> None:
    """It must not take the way through the delay queues."""
    outgoing = sent(app, **options)

    assert outgoing.due_ms == 0
    assert not outgoing.message.headers


@pytest.mark.parametrize("countdown", [0.001, 1, 1.5, YEAR_S])
def test_a_countdown_sets_the_due_time_in_both_forms(app: TaskQ, countdown: float) -> None:
    """Celery reads `eta`, taskq its own header, to the millisecond."""
    outgoing = sent(app, countdown=countdown)

    assert outgoing.due_ms == NOW_MS + round(countdown * 1000)
    assert outgoing.message.headers[DUE] == outgoing.due_ms
    assert clock.from_iso(outgoing.message.headers["eta"]) == outgoing.due_ms


def test_an_eta_in_another_zone_is_the_same_moment(app: TaskQ) -> None:
    """The wire knows UTC alone."""
    moment = datetime.fromisoformat("2027-06-01T12:00:00+05:30")

    outgoing = sent(app, eta=moment)

    assert outgoing.due_ms == round(moment.timestamp() * 1000)
    assert outgoing.message.headers["eta"].endswith("+00:00")


@pytest.mark.parametrize(
    "expires",
    [60, timedelta(minutes=1), datetime.fromtimestamp(NOW_MS / 1000, UTC) + timedelta(minutes=1)],
)
def test_expiry_is_a_header_and_counts_from_now(app: TaskQ, expires: Any) -> None:
    """The AMQP property would let the broker drop the task without a state."""
    outgoing = sent(app, expires=expires)

    assert read_envelope(outgoing.message).expires_ms == NOW_MS + 60_000


def test_options_override_what_the_task_declares(app: TaskQ) -> None:
    """And what is not given comes from the declaration, then from the app."""
    declared, given = sent(app, "add"), sent(app, "add", queue="mail", priority=0)

    assert (declared.queue, declared.message.priority) == ("sums", 3)
    assert declared.message.content_type == "application/json"
    assert (given.queue, given.message.priority) == ("mail", 0)
    assert sent(app).queue == "default"


def test_a_minimal_message_carries_no_needless_header(app: TaskQ) -> None:
    """Celery sends nineteen; each costs at every hop."""
    assert sent(app).message.headers == {}


def test_every_step_of_a_chain_has_its_id_from_the_start(app: TaskQ) -> None:
    """The last handle exists before the first step runs."""
    add = app.tasks["add"]

    call = prepare(chain(add.s(1), add.s(2), add.s(3)), app._defaults, app.settings)

    embed = decode_call(call.outgoing.message).embed
    assert [step["options"]["task_id"] for step in reversed(embed.chain)] == call.ids[1:]
    assert [step["args"] for step in reversed(embed.chain)] == [[2], [3]]
    assert call.outgoing.message.headers["root_id"] == call.ids[0]
    assert len(set(call.ids)) == 3


def test_only_the_first_step_of_a_chain_can_be_delayed(app: TaskQ) -> None:
    """A date for a later step would be held against the wrong clock, or not at all."""
    plain = app.tasks["plain"]

    with pytest.raises(ConfigError, match="only the first step"):
        prepared(app, plain.s(1) | plain.s().set(countdown=5))
    assert prepared(app, plain.s(1).set(countdown=5) | plain.s()).due_ms == NOW_MS + 5000


@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), ((1, 2, 3), {}), ((1,), {"z": 2}), ((1,), {"x": 2})]
)
def test_arguments_that_do_not_fit_are_a_type_error(
    app: TaskQ, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Python's own error, at the line that is wrong, by every way of sending."""
    add = app.tasks["add"]

    for send in (
        lambda: add.delay(*args, **kwargs),
        lambda: add.apply_async(args, kwargs),
        lambda: app.send_task("add", args, kwargs),
        lambda: app.send_many([add.s(*args, **kwargs)]),
        lambda: add.s(*args, **kwargs).delay(),
    ):
        with pytest.raises(TypeError, match=r"add\(\)"):
            send()


def test_an_unknown_name_can_be_sent_with_any_arguments(app: TaskQ) -> None:
    """The task may live in another program."""
    assert app.send_task("elsewhere.task", (1, 2), {"z": 3}).id


def test_what_cannot_be_encoded_is_named_and_nothing_is_sent(app: TaskQ) -> None:
    """One bad call among many must not leave the others half sent."""
    plain = app.tasks["plain"]

    with pytest.raises(EncodeError, match=r"\[0\]\[0\]\['socket'\]"):
        app.send_many([plain.s(1), plain.s({"socket": object()})])

    depth = app.broker.depths(["default"])["default"]
    assert depth is None or depth.ready == 0


class Tenant(Middleware):
    def send(self, call_next: Any, outgoing: Outgoing) -> Outgoing:
        message = outgoing.message.with_headers(tenant="acme")
        return call_next(Outgoing(outgoing.queue, message, outgoing.due_ms))  # type: ignore[no-any-return]


class Forgetful(Middleware):
    def send(self, call_next: Any, outgoing: Outgoing) -> Any:
        call_next(outgoing)


def test_a_middleware_changes_what_is_sent(app: TaskQ) -> None:
    """On a copy: the message itself is immutable."""
    app.middlewares.append(Tenant())

    (item,) = app._prepare([Signature("plain", (1,))])

    assert item.outgoing.message.headers == {"tenant": "acme"}


def test_a_middleware_that_returns_nothing_is_named(app: TaskQ) -> None:
    """The commonest mistake in one; the broker's own error would name another place."""
    app.middlewares.append(Forgetful())

    with pytest.raises(ConfigError, match="return what call_next returns"):
        app.tasks["plain"].delay()


@pytest.mark.parametrize("calls", [(), ("add",), (len,)])
def test_a_chain_is_made_of_signatures(calls: tuple[Any, ...]) -> None:
    """`chain(add)` for `chain(add.s())` is an easy slip."""
    with pytest.raises(ConfigError):
        chain(*calls)


def test_a_signature_of_no_app_says_so() -> None:
    """One read from the wire has nobody to send it."""
    with pytest.raises(ConfigError, match="belongs to no app"):
        Signature("plain").delay()
