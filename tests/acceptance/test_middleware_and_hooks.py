"""Middleware around sends and runs, and listeners, in every pool."""

from pathlib import Path

import pytest
from fleet import POOLS, Fleet, until

APP = '''
import asyncio, os
from dataclasses import replace
from taskq import RetryPolicy, TaskQ
from taskq.middleware import Middleware

def note(*words):
    fd = os.open(os.environ["WORK_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, (" ".join(map(str, words)) + "\\n").encode())
    os.close(fd)

class Both(Middleware):
    """Has both forms, and changes arguments and results."""
    def send(self, call_next, outgoing):
        note("send", outgoing.message.task)
        return call_next(replace(outgoing, message=outgoing.message.with_headers(stamp="blue")))
    def run(self, call_next, request):
        note("both-before", request.task, request.headers.get("stamp"))
        try:
            return ["both", call_next(request)]
        finally:
            note("both-after", request.task)
    async def arun(self, call_next, request):
        note("both-before", request.task, request.headers.get("stamp"))
        try:
            return ["both", await call_next(request)]
        finally:
            note("both-after", request.task)

class OnlyRun(Middleware):
    def run(self, call_next, request):
        note("run-before", request.task)
        return ["run", call_next(request)]

class OnlyArun(Middleware):
    async def arun(self, call_next, request):
        note("arun-before", request.task)
        await asyncio.sleep(0)
        return ["arun", await call_next(request)]

app = TaskQ("wrapped", middlewares=[Both(), OnlyRun(), OnlyArun()])

@app.on_worker_start
def started():
    note("worker_start", os.getpid())

@app.on_worker_stop
def stopped():
    note("worker_stop", os.getpid())

@app.on_task_start
def task_started(request):
    note("task_start", request.task, request.retries)

@app.on_task_success
def task_succeeded(request, value):
    note("task_success", request.task, value[0])

@app.on_task_failure
def task_failed(request, error):
    note("task_failure", request.task, type(error).__name__)

@app.on_task_retry
def task_retried(request, error):
    note("task_retry", request.task, type(error).__name__)

@app.on_task_start
def broken(request):
    raise RuntimeError("a listener changes nothing")

@app.task(name="plain")
def plain(x):
    note("ran", "plain", x)
    return x

@app.task(name="coro")
async def coro(x):
    note("ran", "coro", x)
    return x

@app.task(name="twice", max_retries=1, retry=RetryPolicy(base_s=0))
def twice():
    raise ValueError("no")

@app.task(name="more")
def more():
    plain.delay(7)
'''


@pytest.fixture
def wrapped(fleet: Fleet, tmp_path: Path) -> Fleet:
    (tmp_path / "wrapped.py").write_text(APP)
    return fleet


def lines(fleet: Fleet) -> list[str]:
    try:
        return fleet.runs_path.read_text().splitlines()
    except FileNotFoundError:
        return []


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("name", ["plain", "coro"])
def test_middleware_wraps_every_run_in_order(wrapped: Fleet, pool: str, name: str) -> None:
    """One interface for both kinds of task: each form is bridged to the other where it lacks."""
    wrapped.start(app="wrapped:app", pool=pool, slots=1)

    handle = wrapped.send(name, 5)

    assert handle.get(timeout=20) == ["both", ["run", ["arun", 5]]]
    told = [line for line in lines(wrapped) if name in line and "task_" not in line]
    assert told == [
        f"both-before {name} None",
        f"run-before {name}",
        f"arun-before {name}",
        f"ran {name} 5",
        f"both-after {name}",
    ]


def test_middleware_wraps_the_sends_of_tasks(wrapped: Fleet) -> None:
    """A header that the sender's middleware adds is there when the task runs."""
    wrapped.start(app="wrapped:app", slots=1)

    wrapped.send("more").get(timeout=20)

    until(lambda: "both-before plain blue" in lines(wrapped), "the second task")
    assert "send plain" in lines(wrapped)


@pytest.mark.parametrize("pool", POOLS)
def test_listeners_hear_of_everything(wrapped: Fleet, pool: str) -> None:
    """Connections opened at the start, closed at the end; each run told once."""
    worker = wrapped.start(app="wrapped:app", pool=pool, slots=1)

    handles = [wrapped.send("plain", 1), wrapped.send("coro", 2), wrapped.send("twice")]
    assert wrapped.settled(handles[:2])
    with pytest.raises(ValueError, match="no"):
        handles[2].get(timeout=20)
    code = worker.term()

    told = lines(wrapped)
    starts = [line.split()[1] for line in told if line.startswith("worker_start")]
    stops = [line.split()[1] for line in told if line.startswith("worker_stop")]
    assert code == 0
    assert len(starts) == 1
    assert stops == starts
    assert told.count("task_start plain 0") == 1
    assert told.count("task_success plain both") == 1
    assert told.count("task_success coro both") == 1
    assert [line for line in told if "twice" in line and line.startswith("task_")] == [
        "task_start twice 0",
        "task_retry twice ValueError",
        "task_start twice 1",
        "task_failure twice ValueError",
    ]
