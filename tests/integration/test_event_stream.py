"""Events of real workers on every broker: what happened, in which order, at what cost to tasks."""

import itertools
import json
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from processes import wait_for

from taskq import RetryPolicy, TaskQ
from taskq.events import Event, Watermark, read_batch, to_cloudevent
from taskq.events.feed import EventFeed
from taskq.events.schema import load_schema
from taskq.testing import running_worker

_names = itertools.count()


@pytest.fixture(params=["memory", "sqlite", "rabbitmq"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty broker."""
    if request.param == "rabbitmq":
        return str(request.getfixturevalue("rabbitmq_url"))
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/work.db"
    return f"memory://events{next(_names)}"


def make_app(url: str, **settings: Any) -> TaskQ:
    results = f"memory://events{next(_names)}"
    app = TaskQ("shop", broker=url, results=results, max_retries=1, **settings)

    @app.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="fail", max_retries=0)
    def fail(password: str = "", user: str = "") -> None:
        raise ValueError("no luck")

    return app


class Collected:
    """Events of a feed so far, read on demand."""

    def __init__(self, feed: EventFeed) -> None:
        self.events: list[Event] = []
        self.receipts: list[Any] = []
        self._feed = feed

    def types(self, task_id: str) -> list[str]:
        return [e.type for e in self.events if e.task_id == task_id]

    def until(self, kind: str, subject: str = "") -> Event:
        found: list[Event] = []

        def there() -> bool:
            for receipt, body in self._feed.get(0.1):
                self.receipts.append(receipt)
                self.events += read_batch(body)
            found.extend(e for e in self.events if e.type == kind and subject in ("", e.subject))
            return bool(found)

        wait_for(there, 60, f"{kind} of {subject}")
        return found[0]


@pytest.fixture
def app(url: str) -> Iterator[TaskQ]:
    made = make_app(url)
    yield made
    made.close()


@pytest.mark.parametrize("mode", ["on", "durable"])
def test_the_life_of_tasks_is_told_in_order(url: str, mode: str) -> None:
    """Sent, started, ended; a failure with its exception and its dead letter; nothing twice."""
    app = make_app(url, events=mode)
    seen = Collected(app.broker.events())
    with running_worker(app):
        good, bad = app.send_task("add", (1, 2)).id, app.send_task("fail").id
        seen.until("task.succeeded", good)
        failed = seen.until("task.failed", bad)
        seen.until("task.dead_lettered", bad)
    seen.until("worker.offline")
    app.close()

    run = ["task.sent", "task.received", "task.started"]
    assert seen.types(good) == [*run, "task.succeeded"]
    assert seen.types(bad) == [*run, "task.failed", "task.dead_lettered"]
    assert failed.data["error"] == {"type": "ValueError", "message": "no luck"}
    assert failed.data["reason"] == "failed"
    mark = Watermark()
    assert mark.fresh(seen.events) == seen.events
    assert (mark.duplicates, mark.gaps) == (0, 0)
    check = jsonschema.Draft202012Validator(load_schema())
    for event in seen.events:
        check.validate(json.loads(json.dumps(to_cloudevent(event))))


def test_retries_delays_and_chains_are_told(app: TaskQ) -> None:
    """Each attempt has its start; what a task sends names it as its parent."""
    calls: list[int] = []

    @app.task(name="flaky", retry=RetryPolicy(base_s=0))
    def flaky() -> int:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("once")
        return 5

    @app.task(name="double")
    def double(x: int) -> int:
        return 2 * x

    seen = Collected(app.broker.events())
    with running_worker(app):
        last = (flaky.s() | double.s()).delay()
        first = last.parent
        assert first is not None
        done = seen.until("task.succeeded", last.id)

    assert seen.types(first.id) == [
        "task.sent",
        "task.received",
        "task.started",
        "task.retried",
        "task.received",
        "task.started",
        "task.succeeded",
    ]
    retried = next(e for e in seen.events if e.type == "task.retried")
    assert retried.data["error"] == {"type": "OSError", "message": "once"}
    assert retried.data["due_ms"] > 0
    assert done.root_id == first.id


def test_off_means_silence(url: str) -> None:
    """Nothing is published, and no table or exchange is made for it."""
    app = make_app(url, events="off")
    seen = Collected(app.broker.events())
    with running_worker(app):
        assert app.send_task("add", (1, 2)).get(timeout=60) == 3
    loud = make_app(url)
    loud.send_task("add", (1, 2))
    seen.until("task.sent")
    loud.close()
    app.close()

    assert [e.type for e in seen.events] == ["task.sent"]


def test_arguments_are_shown_on_request_without_secrets(url: str) -> None:
    """Off by default: topics are read by many."""
    quiet, loud = make_app(url), make_app(url, event_arguments=True)
    seen = Collected(quiet.broker.events())
    plain = quiet.send_task("fail", (), {"password": "hunter2"}).id
    shown = loud.send_task("fail", (), {"password": "hunter2", "user": "ada"}).id
    hidden, told = seen.until("task.sent", plain), seen.until("task.sent", shown)
    quiet.close()
    loud.close()

    assert "kwargs" not in hidden.data
    assert told.data["kwargs"] == "{'password': '***', 'user': 'ada'}"


def test_a_named_reader_misses_nothing_between_two_lives(app: TaskQ) -> None:
    """A bridge that is restarted goes on where the last one acknowledged."""
    first = app.broker.events("probe")
    seen = Collected(first)
    ids = [app.send_task("add", (n, n)).id for n in range(3)]
    seen.until("task.sent", ids[2])
    place = next(
        receipt
        for receipt, event in zip(seen.receipts, seen.events, strict=True)
        if event.subject == ids[0]
    )
    first.ack(place)
    first.close()
    late = app.send_task("add", (9, 9)).id

    second = app.broker.events("probe")
    again = Collected(second)
    again.until("task.sent", late)
    second.close()

    assert [e.subject for e in again.events] == [ids[1], ids[2], late]


def test_one_reader_of_a_name_at_a_time(app: TaskQ) -> None:
    """Two bridges by mistake: one stands by, and takes over in order."""
    first = app.broker.events("probe")
    ids = [app.send_task("add", (0, 0)).id]
    Collected(first).until("task.sent", ids[0])
    second = app.broker.events("probe")
    standby = Collected(second)
    ids.append(app.send_task("add", (1, 1)).id)
    Collected(first).until("task.sent", ids[1])

    assert second.get(0.5) == []
    first.close()
    standby.until("task.sent", ids[1])
    second.close()

    assert [e.subject for e in standby.events] == ids


def test_subscriptions_filter_and_survive_their_handler(app: TaskQ) -> None:
    """A handler is user code: one exception must not end the stream."""
    got: list[Event] = []
    both = threading.Event()

    def handler(event: Event) -> None:
        got.append(event)
        if len(got) == 2:
            both.set()
        raise RuntimeError("a handler's own mistake")

    with app.events.subscribe(handler, types=["task.failed"]), running_worker(app):
        first = app.send_task("fail")
        app.send_task("add", (1, 1))
        second = app.send_task("fail")
        assert both.wait(60)

    assert [e.task_id for e in got] == [first.id, second.id]


def test_tell_publishes_events_of_ones_own(app: TaskQ) -> None:
    """The scheduler and users' code say what happened through the same stream."""
    seen = Collected(app.broker.events())

    assert app.events.tell("schedule.fired", {"schedule": "nightly"})

    event = seen.until("schedule.fired", "nightly")
    assert event.data == {"app": "shop", "schedule": "nightly"}


def test_sends_of_many_threads_are_told_in_order(
    app: TaskQ, request: pytest.FixtureRequest
) -> None:
    """A batch that overtakes another of its source would count as a gap, the other as a double."""
    request.addfinalizer(partial(sys.setswitchinterval, sys.getswitchinterval()))
    sys.setswitchinterval(1e-6)
    app.send_task("add", (1, 2))
    seen = Collected(app.broker.events())
    start = threading.Barrier(4)

    def send() -> None:
        start.wait()
        for _ in range(20):
            app.send_task("add", (1, 2))

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    app.send_task("add", (1, 2), task_id="last")
    seen.until("task.sent", "last")

    mark = Watermark()
    assert len(mark.fresh(seen.events)) == 81
    assert (mark.duplicates, mark.gaps) == (0, 0)
