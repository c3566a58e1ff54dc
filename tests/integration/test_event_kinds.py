"""Events that few tasks have, and those of workers and queues; each against its schema."""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from processes import wait_for

from taskq import Reject, TaskQ
from taskq.config import WorkerSettings
from taskq.events import Event, read_batch, to_cloudevent
from taskq.events.bus import Recorder
from taskq.events.history import History
from taskq.events.schema import load_schema
from taskq.events.silence import Silence
from taskq.testing import running_worker
from taskq.worker import report
from taskq.worker.worker import LocalWorker

_names = itertools.count()
ROOT = Path(__file__).parents[2]


class Seen:
    """Events of an app from now on; each was checked against its schema."""

    def __init__(self, app: TaskQ) -> None:
        self.events: list[Event] = []
        self._feed = app.broker.events()
        self._check = jsonschema.Draft202012Validator(load_schema())

    def read(self) -> None:
        for _, body in self._feed.get(0.1):
            for event in read_batch(body):
                self.check(event)
                self.events.append(event)

    def check(self, event: Event) -> None:
        self._check.validate(json.loads(json.dumps(to_cloudevent(event))))

    def until(self, kind: str, subject: str = "") -> Event:
        found: list[Event] = []

        def there() -> bool:
            self.read()
            found.extend(e for e in self.events if e.type == kind and subject in ("", e.subject))
            return bool(found)

        wait_for(there, 60, f"{kind} of {subject}")
        return found[0]

    def types(self, task_id: str) -> list[str]:
        return [e.type.removeprefix("task.") for e in self.events if e.task_id == task_id]


@contextlib.contextmanager
def worker_process(directory: Path, url: str, *words: str) -> Iterator[None]:
    """Run `taskq worker` in a directory while the block lasts."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TASKQ_BROKER": url, "TASKQ_RESULTS": url}
    with (directory / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "taskq", "worker", *words],
            cwd=directory,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()
        process.wait()


def make_app(**settings: Any) -> TaskQ:
    place = f"memory://kinds{next(_names)}"
    return TaskQ("shop", broker=place, results=place, max_retries=0, **settings)


@pytest.fixture
def app() -> Iterator[TaskQ]:
    made = make_app()
    yield made
    made.close()


def declare_copier(app: TaskQ, gate_s: float) -> Any:
    @app.task(name="copy", bind=True)
    def copy(self: Any, files: int) -> int:
        for number in range(1, files + 1):
            self.progress(number, files, f"file {number}")
            if gate_s:
                time.sleep(gate_s)
        return files

    return copy


def test_progress_is_told_between_start_and_end(app: TaskQ) -> None:
    """What a progress bar shows: in order, behind the start also of a run that has just begun."""
    copy = declare_copier(app, 0.2)
    seen = Seen(app)

    with running_worker(app):
        task_id = copy.delay(4).id
        seen.until("task.succeeded", task_id)

    types = seen.types(task_id)
    told = [e.data for e in seen.events if e.type == "task.progress"]
    assert types[:3] == ["sent", "received", "started"]
    assert types[3:-1] == ["progress"] * len(told)
    assert types[-1] == "succeeded"
    assert told[-1]["done"] == told[-1]["total"] == 4
    assert told[-1]["note"] == "file 4"
    assert [data["done"] for data in told] == sorted({data["done"] for data in told})


def test_progress_in_a_tight_loop_costs_few_events(app: TaskQ) -> None:
    """A loop over a million rows must not become a million events; its end is told all the same."""
    copy = declare_copier(app, 0.0)
    seen = Seen(app)

    with running_worker(app):
        began_s = time.monotonic()
        task_id = copy.delay(20_000).id
        seen.until("task.succeeded", task_id)
        took_s = time.monotonic() - began_s

    told = [e.data["done"] for e in seen.events if e.type == "task.progress"]
    assert told[-1] == 20_000
    assert len(told) <= 3 + took_s * 25


@pytest.mark.parametrize("pool", ["process", "thread", "asyncio"])
def test_progress_leaves_every_kind_of_executor(pool: Any, tmp_path: Path) -> None:
    """The executor is another process: what is said there reaches the hub while the task runs."""
    module = tmp_path / "far.py"
    module.write_text(
        "import time\n"
        "from taskq import TaskQ\n"
        "app = TaskQ('shop', max_retries=0)\n"
        "@app.task(name='step', bind=True)\n"
        "def step(self):\n"
        "    self.progress(1, 2)\n"
        "    for _ in range(1200):\n"
        "        time.sleep(0.05)\n"
        "        self.checkpoint()\n"
    )
    url = f"sqlite:///{tmp_path}/work.db"
    app = TaskQ("shop", broker=url, results=url)
    seen = Seen(app)
    handle = app.send_task("step")

    with worker_process(tmp_path, url, "-A", "far:app", "-P", pool, "-c", "1"):
        event = seen.until("task.progress", handle.id)
        app.result(handle.id).cancel()
        seen.until("task.cancelled", handle.id)
    app.close()

    assert (event.data["done"], event.data["total"]) == (1, 2)
    assert seen.types(handle.id) == ["sent", "received", "started", "progress", "cancelled"]


def test_progress_is_counted_in_numbers(app: TaskQ) -> None:
    """A mistake in a task shows where it is made, also when it is called in place."""
    copy = declare_copier(app, 0.0)

    assert copy(3) == 3
    for wrong in ("half", float("nan"), None):
        with pytest.raises(TypeError, match="finite numbers"):
            copy.progress(wrong)


def test_a_hard_limit_is_an_event_of_its_own(tmp_path: Path) -> None:
    """`task.failed` says that it ended; why the worker stopped it is what an operator looks for."""
    (tmp_path / "slow.py").write_text(
        "import time\n"
        "from taskq import TaskQ\n"
        "app = TaskQ('shop', max_retries=0)\n"
        "@app.task(name='sleep', time_limit=1)\n"
        "def sleep():\n"
        "    time.sleep(600)\n"
    )
    url = f"sqlite:///{tmp_path}/work.db"
    app = TaskQ("shop", broker=url, results=url)
    seen = Seen(app)
    task_id = app.send_task("sleep").id

    with worker_process(tmp_path, url, "-A", "slow:app", "-c", "1"):
        seen.until("task.dead_lettered", task_id)
    app.close()

    life = ["sent", "received", "started", "timeout", "failed", "dead_lettered"]
    assert seen.types(task_id) == life
    (stopped,) = [e for e in seen.events if e.type == "task.timeout"]
    assert "1" in stopped.data["limit"]


def test_rejected_messages_and_what_waited(app: TaskQ) -> None:
    """A refusal is told apart from a failure; the wait before a start is told with the start."""

    @app.task(name="refuse")
    def refuse() -> None:
        raise Reject("not for me")

    seen = Seen(app)
    task_id = refuse.apply_async(countdown=0.3, priority=3, expires=600).id
    with running_worker(app):
        seen.until("task.dead_lettered", task_id)

    assert seen.types(task_id)[-3:] == ["started", "rejected", "dead_lettered"]
    sent, rejected = seen.until("task.sent"), seen.until("task.rejected")
    started = [e for e in seen.events if e.type == "task.started"][-1]
    assert (sent.data["priority"], rejected.data["reason"]) == (3, "rejected")
    assert sent.data["expires"]
    assert 0 <= started.data["queue_wait_us"] < 60_000_000
    waited_us = started.time_us - sent.data["due_ms"] * 1000
    assert started.data["queue_wait_us"] == max(0, waited_us)


def test_results_and_tracebacks_are_shown_on_request_without_secrets() -> None:
    """Off by default: topics are read by many."""
    apps = [make_app(), make_app(event_results=True, event_tracebacks=True)]
    told: list[dict[str, Any]] = []
    for app in apps:

        @app.task(name="login")
        def login() -> dict[str, str]:
            return {"user": "ada", "token": "hunter2"}

        @app.task(name="crash")
        def crash() -> None:
            raise ValueError("here")

        seen = Seen(app)
        with running_worker(app):
            login.delay()
            crash.delay()
            done, failed = seen.until("task.succeeded"), seen.until("task.failed")
        app.close()
        assert "hunter2" not in str(seen.events)
        told.append({**done.data, **failed.data})

    quiet, loud = told
    assert not {"result", "result_size_bytes"} & set(quiet)
    assert "traceback" not in quiet["error"]
    assert loud["result"] == "{'user': 'ada', 'token': '***'}"
    assert loud["result_size_bytes"] > 10
    assert loud["error"]["traceback"].rstrip().endswith("ValueError: here")


def test_pauses_and_purges_of_queues_are_told(app: TaskQ) -> None:
    """Who stopped the queue at night, and why, is in the log of everything else."""
    seen = Seen(app)

    app.pauses.pause_queue("mail", for_s=60, why="the relay moves", by="ada")
    app.pauses.pause_task("mail.send")
    app.pauses.resume_queue("mail")
    app.pauses.resume_queue("mail")
    app.events.tell("test.end", {})
    seen.until("test.end")

    paused, resumed = seen.events[:2]
    assert (paused.type, resumed.type) == ("queue.paused", "queue.resumed")
    assert (paused.data["by"], paused.data["why"]) == ("ada", "the relay moves")
    assert paused.data["until_ms"] > time.time() * 1000
    assert (paused.subject, len(seen.events)) == ("mail", 3)


def test_off_is_silent_about_queues_and_progress() -> None:
    """Nothing is reported, whoever would report it."""
    app = make_app(events="off")
    copy = declare_copier(app, 0.0)
    seen = Seen(app)

    with running_worker(app):
        app.pauses.pause_queue("mail")
        app.pauses.resume_queue("mail")
        copy.delay(3).get(timeout=60)
    app.events.tell("test.end", {})
    seen.until("test.end")
    app.close()

    assert [e.type for e in seen.events] == ["test.end"]


def test_workers_say_that_they_are_there(app: TaskQ, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when they have nothing to do; `worker.lost` is what readers make of the silence."""
    monkeypatch.setattr(report, "HEARTBEAT_S", 0.05)
    seen = Seen(app)

    with running_worker(app):
        beat = seen.until("worker.heartbeat")
        seen.until("worker.online")

    assert beat.data["interval_s"] == 0.05
    assert (beat.data["slots"], beat.data["running"], beat.data["dropped"]) == (1, 0, 0)


def test_a_worker_that_falls_silent_is_lost_once() -> None:
    """Who stopped in order is not missed, nor who could not be heard; a new life is a new start."""
    now_s = [0.0]
    silence = Silence(lambda: now_s[0])

    def beat(source: str, kind: str = "heartbeat") -> None:
        data = {"app": "shop", "worker": source, "interval_s": 10}
        silence.seen([Event(source, 1, f"worker.{kind}", 0, data)])

    for name in ("dies", "stops", "lives"):
        beat(name, "online")
        beat(name)
    now_s[0] = 25
    beat("stops", "offline")
    beat("lives")
    assert silence.lost() == []
    now_s[0] = 31

    assert [(one["worker"], one["silent_s"]) for one in silence.lost()] == [("dies", 31)]
    assert silence.lost() == []
    now_s[0] = 100
    silence.forgive()
    assert silence.lost() == []
    now_s[0] = 131
    assert [one["lost_source"] for one in silence.lost()] == ["lives"]


def test_the_history_says_which_worker_was_lost(app: TaskQ, tmp_path: Path) -> None:
    """Such as one whose machine lost its power: nothing else will ever say so."""
    seen, feed = Seen(app), app.broker.events("history")
    book = History(str(tmp_path / "h.db"))
    told = Recorder("shop", worker="w1")
    told.tell("worker.heartbeat", {"interval_s": 0.05})
    item = told.take()
    assert item is not None
    assert app.broker.publish([item], 30) == [None]
    found: list[Event] = []

    def lost() -> bool:
        book.read(feed, 0.1)
        found[:] = [e for e in book.between(0, 2**62) if e.type == "worker.lost"]
        return bool(found)

    wait_for(lost, 60, "worker.lost")
    feed.close()
    book.close()

    (event,) = found
    seen.check(event)
    assert (event.data["worker"], event.data["lost_source"]) == ("w1", told.source)


def test_numbers_stay_without_gaps_over_all_kinds(app: TaskQ) -> None:
    """One record may stand for three events: a wrong count would drop what follows."""
    copy = declare_copier(app, 0.0)
    seen = Seen(app)
    settings = WorkerSettings(pool="solo", burst=True)
    worker = LocalWorker(app, settings, share=True)
    for size in (1, 5, 60):
        copy.delay(size)
    worker.start()
    worker.serve()
    seen.until("worker.offline")

    by_source: dict[str, list[int]] = {}
    for event in seen.events:
        by_source.setdefault(event.source, []).append(event.sequence)
    assert len(by_source) == 2
    for numbers in by_source.values():
        assert numbers == list(range(1, len(numbers) + 1))
