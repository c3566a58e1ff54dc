"""One message in, one ending out."""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from taskq import Ignore, Reject, RetryPolicy, TaskQ, outcome
from taskq.codecs import dumps, loads
from taskq.message import Message
from taskq.request import current
from taskq.results.base import decode_record
from taskq.worker import endings
from taskq.worker.endings import Ending
from taskq.worker.limits import Interrupted
from taskq.worker.registry import AppRegistry
from taskq.worker.runner import Runner

_names = itertools.count()


class Hostile(Exception):
    """Raises wherever it is looked at."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __repr__(self) -> str:
        raise RuntimeError("no text either")


@pytest.fixture
def app() -> Iterator[TaskQ]:
    url = f"memory://runner-{next(_names)}"
    with TaskQ("runner", broker=url, results=url) as made:
        yield made


def run(app: TaskQ, name: str, *args: Any, embed: Any = None, **headers: Any) -> Ending:
    runner = Runner(AppRegistry(app), "w")
    message = Message(name, "id-1", dumps([list(args), {}, embed]), headers)
    job = runner.decode(message, "q", False)
    if isinstance(job, Ending):
        return job
    if job.runnable.is_async:
        return asyncio.run(runner.arun(job, job.runnable.call))
    return runner.run(job, job.runnable.call)


def declare(app: TaskQ, work: Callable[..., Any], kind: str, **options: Any) -> None:
    """Declare a plain or an async task that does the same."""
    if kind == "plain":
        app.task(name="t", **options)(work)
        return

    async def asynchronous(*args: Any) -> Any:
        return work(*args)

    app.task(name="t", **options)(asynchronous)


def raising(error: BaseException) -> Callable[..., Any]:
    def work() -> None:
        raise error

    return work


kinds = pytest.mark.parametrize("kind", ["plain", "async"])


@kinds
def test_a_value_is_encoded_into_the_record(app: TaskQ, kind: str) -> None:
    declare(app, lambda x: {"got": x}, kind)

    ending = run(app, "t", 5)

    assert ending.code == outcome.SUCCESS
    assert decode_record(ending.writes[0].record).result() == {"got": 5}
    assert ending.runtime_us >= 0


@kinds
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("x"), outcome.RETRY),
        (SystemExit(3), outcome.FAILURE),
        (KeyboardInterrupt(), outcome.FAILURE),
        (GeneratorExit(), outcome.FAILURE),
        (MemoryError(), outcome.RETRY),
        (RecursionError(), outcome.RETRY),
        (Hostile(), outcome.RETRY),
        (asyncio.CancelledError(), outcome.CANCELLED),
        (Interrupted(), endings.REQUEUED),
        (Ignore(), endings.IGNORED),
        (Reject("no", requeue=True), endings.REQUEUED),
        (Reject("no"), outcome.FAILURE),
    ],
)
def test_everything_that_can_be_raised_is_an_ending(
    app: TaskQ, kind: str, error: BaseException, code: str
) -> None:
    """What got out would end the executor."""
    declare(app, raising(error), kind)

    assert run(app, "t").code == code
    assert current.get() is None


def test_the_policy_decides_what_is_retried(app: TaskQ) -> None:
    policy = RetryPolicy(on=(OSError,), dead_on=(FileNotFoundError,))
    codes = []
    for number, error in enumerate([OSError(), FileNotFoundError(), ValueError()]):
        app.task(name=f"t{number}", retry=policy)(raising(error))
        codes.append(run(app, f"t{number}").code)

    assert codes == [outcome.RETRY, outcome.FAILURE, outcome.FAILURE]


@kinds
def test_a_value_that_cannot_be_encoded_is_a_failure_without_retry(app: TaskQ, kind: str) -> None:
    declare(app, object, kind)

    ending = run(app, "t")

    assert ending.code == outcome.FAILURE
    error = decode_record(ending.writes[0].record).error
    assert error is not None
    assert error.type == "EncodeError"


def test_a_value_that_nobody_keeps_need_not_be_encodable(app: TaskQ) -> None:
    app.task(name="t", ignore_result=True)(object)
    app.task(name="u")(object)

    assert run(app, "t").code == outcome.SUCCESS
    assert run(app, "u", ignore_result=True).code == outcome.SUCCESS


@kinds
def test_arguments_that_do_not_fit_are_malformed(app: TaskQ, kind: str) -> None:
    app.task(name="plain")(lambda x: x)

    @app.task(name="async")
    async def work(x: int) -> int:
        return x

    assert run(app, kind).code == endings.MALFORMED
    assert run(app, kind, 1, 2).code == endings.MALFORMED


def test_a_type_error_inside_the_function_is_a_failed_attempt(app: TaskQ) -> None:
    app.task(name="t")(lambda x: x + "text")

    assert run(app, "t", 1).code == outcome.RETRY


def test_the_next_step_gets_the_value(app: TaskQ) -> None:
    app.task(name="t")(lambda: 41)
    step = {"task": "u", "args": [1], "kwargs": {}, "options": {"task_id": "s2", "queue": "two"}}

    ending = run(app, "t", embed={"chain": [step]})

    (item,) = ending.follow
    assert (item.queue, item.message.task, item.message.id) == ("two", "u", "s2")
    assert loads(item.message.body)[0] == [41, 1]
    assert item.message.headers["parent_id"] == "id-1"
    record = decode_record(ending.writes[0].record)
    assert record.follow is not None
    assert endings.unpack_follow(record.follow) == [item]


def test_the_request_is_there_while_the_task_runs_and_only_then(app: TaskQ) -> None:
    seen: list[Any] = []

    @app.task(name="t", bind=True)
    def work(self: Any, x: int) -> None:
        seen.append((self.request.id, self.request.retries, self.request.args, self.request.worker))

    run(app, "t", 5, retries=2)

    assert seen == [("id-1", 2, (5,), "w")]
    assert work.request.called_directly


def test_a_traceback_begins_in_the_users_function(app: TaskQ) -> None:
    @app.task(name="t", max_retries=0)
    def work() -> None:
        raise ValueError("here")

    ending = run(app, "t")

    error = decode_record(ending.writes[0].record).error
    assert error is not None
    first = next(line for line in error.traceback.splitlines() if line.startswith("  File"))
    assert "in work" in first


def test_a_listener_that_raises_changes_nothing(
    app: TaskQ, caplog: pytest.LogCaptureFixture
) -> None:
    @app.on_task_start
    @app.on_task_success
    def broken(*_details: Any) -> None:
        raise RuntimeError("listener")

    app.task(name="t")(lambda: 1)

    assert run(app, "t").code == outcome.SUCCESS
    assert caplog.text.count("listener failed") == 2


def test_a_task_that_this_executor_does_not_know_is_malformed(app: TaskQ) -> None:
    """The hub parks unknown tasks; one that gets past it must not end the executor."""
    assert run(app, "nowhere").code == endings.MALFORMED
