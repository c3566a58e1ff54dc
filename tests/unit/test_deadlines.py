"""Deadlines: where they come from, whom they bind, and what ends when they pass."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from taskq import ConfigError, Signature, TaskQ, clock, outcome
from taskq.body import Embed, encode_call
from taskq.canvas import errback_outgoing, next_outgoing
from taskq.envelope import read_envelope
from taskq.errors import DecodeError, RemoteError
from taskq.message import DEADLINE, Message
from taskq.request import Request, current
from taskq.resend import retried, revived
from taskq.worker import endings, losses
from taskq.worker.endings import Case
from taskq.worker.manifest import TaskInfo

NOW_MS = 1_700_000_000_000


@pytest.fixture(autouse=True)
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "now_ms", lambda: NOW_MS)


@pytest.fixture
def app() -> TaskQ:
    return TaskQ("deadlines", broker="memory://deadlines")


def deadline_of(app: TaskQ, name: str = "t", **options: Any) -> Any:
    (prepared,) = app._prepare([Signature(name, (), {}, options)])
    return prepared.outgoing.message.headers.get(DEADLINE)


def test_a_call_has_none_unless_one_is_given(app: TaskQ) -> None:
    """The wire carries nothing that is at its default."""
    assert deadline_of(app) is None
    assert deadline_of(app, deadline=2.5) == NOW_MS + 2500
    assert deadline_of(app, deadline=timedelta(minutes=1)) == NOW_MS + 60_000
    moment = datetime.fromtimestamp(NOW_MS / 1000, UTC) + timedelta(hours=1)
    assert deadline_of(app, deadline=moment) == NOW_MS + 3_600_000


def test_a_task_can_declare_one(app: TaskQ) -> None:
    """Counted from each send; the call's own replaces it."""

    @app.task(name="quick", deadline=10)
    def quick() -> None: ...

    assert deadline_of(app, "quick") == NOW_MS + 10_000
    assert deadline_of(app, "quick", deadline=20) == NOW_MS + 20_000
    with pytest.raises(ConfigError):
        app.task(deadline=0)(deadline_of)


@pytest.mark.parametrize("deadline", [-1, True, "soon", float("nan"), datetime(2030, 1, 1), 1e12])
def test_an_unusable_deadline_is_refused(app: TaskQ, deadline: Any) -> None:
    """A date without a zone would be another moment on another machine."""
    with pytest.raises(ConfigError):
        deadline_of(app, deadline=deadline)


def test_a_call_that_could_never_run_is_refused(app: TaskQ) -> None:
    """Due after its deadline: the sender should learn it now."""
    assert deadline_of(app, deadline=10, countdown=9) == NOW_MS + 10_000
    with pytest.raises(ConfigError, match="after its deadline"):
        deadline_of(app, deadline=10, countdown=10)


def test_what_a_task_sends_inherits_its_deadline(app: TaskQ) -> None:
    """A child may have less time than its parent, never more."""
    token = current.set(Request(id="p", headers={DEADLINE: NOW_MS + 5000}))
    try:
        assert deadline_of(app) == NOW_MS + 5000
        assert deadline_of(app, deadline=3) == NOW_MS + 3000
        assert deadline_of(app, deadline=60) == NOW_MS + 5000
        request = current.get()
        assert request is not None
        assert request.remaining_s == 5
    finally:
        current.reset(token)
    assert Request().remaining_s is None


def message(deadline_ms: Any = NOW_MS + 5000, **headers: Any) -> Message:
    return encode_call("t", "id-1", (), {}, headers={DEADLINE: deadline_ms, **headers})


def test_steps_and_callbacks_inherit_it_and_errbacks_do_not() -> None:
    """The steps serve the same purpose; the one who tells of the failure needs time of its own."""
    wire = Signature("next", (), {}, {}, app=None).to_wire()
    embed = Embed(callbacks=(wire,), errbacks=(wire,), chain=(wire,))

    following = next_outgoing(message(), embed, 1, "q", "id-1")
    telling = errback_outgoing(message(), embed, "q", "id-1")

    assert [one.message.headers.get(DEADLINE) for one in following] == [NOW_MS + 5000] * 2
    assert [one.message.headers.get(DEADLINE) for one in telling] == [None]


def test_the_latest_start_is_the_earlier_of_both() -> None:
    """A task must not start after its deadline, whatever `expires` says."""
    early, late = clock.to_iso(NOW_MS + 1000), clock.to_iso(NOW_MS + 9000)

    assert read_envelope(message()).expires_ms == NOW_MS + 5000
    assert read_envelope(message(expires=early)).expires_ms == NOW_MS + 1000
    assert read_envelope(message(expires=late)).expires_ms == NOW_MS + 5000
    assert read_envelope(message(expires=late)).deadline_ms == NOW_MS + 5000
    assert read_envelope(message(None, expires=late)).expires_ms == NOW_MS + 9000


@pytest.mark.parametrize("value", ["soon", -1, True, 2**63 - 1, [1]])
def test_a_hostile_deadline_is_malformed(value: Any) -> None:
    """Anyone can set the header; no worker falls over it."""
    with pytest.raises(DecodeError):
        read_envelope(message(value))


def test_a_replay_forgets_it_and_a_retry_keeps_it() -> None:
    """A replayed letter would otherwise expire at once."""
    error = RemoteError("builtins", "ValueError", "no")

    assert DEADLINE not in revived(message()).headers
    assert retried(message(), 1, NOW_MS + 1, error).headers[DEADLINE] == NOW_MS + 5000


def case(deadline_ms: int, **info: Any) -> Case:
    made = message(deadline_ms)
    known = TaskInfo("t", "q", backoff=(2.0, 1.0, 2.0, "none"), **info)
    return Case(made, read_envelope(made), known, "q", "w", True)


ERROR = RemoteError("builtins", "ValueError", "no")
SOFT = RemoteError("taskq.errors", "SoftTimeLimitExceeded", "late")


@pytest.mark.parametrize(
    ("left_ms", "error", "info", "state"),
    [
        (2001, ERROR, {}, outcome.RETRY),
        (2000, ERROR, {}, outcome.EXPIRED),
        (-1, ERROR, {}, outcome.EXPIRED),
        (-1, ERROR, {"max_retries": 0}, outcome.FAILURE),
        (-1, SOFT, {"max_retries": 0}, outcome.EXPIRED),
        (2001, SOFT, {"max_retries": 0}, outcome.FAILURE),
    ],
)
def test_no_attempt_begins_after_the_deadline(
    left_ms: int, error: RemoteError, info: dict[str, Any], state: str
) -> None:
    """A retry that would come too late is not sent; a failure for its own reason stays one."""
    ending = endings.failed(case(NOW_MS + left_ms, **info), error, True, us=5)

    assert ending.code == state
    assert bool(ending.follow) == (state in (outcome.RETRY, outcome.FAILURE))


def test_what_was_stopped_past_its_deadline_has_expired() -> None:
    """Nobody waits for it any more; it is no failure to look into."""
    ending = losses.timed_out(case(NOW_MS - 5001), "too long", 0.0)

    assert ending.code == outcome.EXPIRED
