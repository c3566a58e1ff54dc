"""`taskq.testing`: a worker inside the test's own process."""

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from taskq import RetryPolicy, SoftTimeLimitExceeded, TaskFailed, TaskQ, outcome
from taskq.testing import running_worker

_names = itertools.count()


@pytest.fixture(params=["memory", "sqlite"])
def app(request: pytest.FixtureRequest, tmp_path) -> Iterator[TaskQ]:
    url = f"memory://in-process-{next(_names)}"
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/taskq.db"
    with TaskQ("in-process", broker=url, results=url) as made:
        yield made


def test_tasks_run_in_this_process(app: TaskQ) -> None:
    """A test can look at what its tasks did to this process' own objects."""
    seen: list[int] = []

    @app.task
    def remember(x: int) -> int:
        seen.append(x)
        return x + 1

    with running_worker(app):
        assert remember.delay(1).get(timeout=5) == 2
        assert seen == [1]


def test_async_tasks_and_retries_work_as_in_a_worker(app: TaskQ) -> None:
    """The same engine, so a test shows what production would do."""

    @app.task(max_retries=2, retry=RetryPolicy(base_s=0), bind=True)
    async def flaky(self) -> int:
        await asyncio.sleep(0)
        if self.request.retries < 2:
            raise ConnectionError
        return self.request.retries

    with running_worker(app):
        assert flaky.delay().get(timeout=5) == 2


def test_burst_ends_when_the_queues_are_empty(app: TaskQ) -> None:
    """The block's end is the end of all work: no polling in the test."""
    done: list[int] = []

    @app.task
    def work(x: int) -> None:
        done.append(x)

    handles = app.send_many([work.s(number) for number in range(20)])

    with running_worker(app, burst=True):
        pass

    assert sorted(done) == list(range(20))
    assert {handle.state for handle in handles} == {outcome.SUCCESS}


def test_the_end_of_the_block_waits_for_what_runs(app: TaskQ) -> None:
    """A fixture that tears down under a running task gives the strangest failures."""
    begun, let_go = threading.Event(), threading.Event()
    ended: list[bool] = []

    @app.task
    def slow() -> None:
        begun.set()
        let_go.wait(5)
        ended.append(True)

    with running_worker(app):
        slow.delay()
        assert begun.wait(5)
        threading.Timer(0.2, let_go.set).start()

    assert ended == [True]


def test_soft_limits_hold_off_the_main_thread_too(app: TaskQ) -> None:
    """Here the worker has a thread of the test's process."""

    @app.task(soft_time_limit=0.2, max_retries=0)
    def endless() -> None:
        while True:
            time.sleep(0.01)

    with running_worker(app):
        handle = endless.delay()
        with pytest.raises(SoftTimeLimitExceeded):
            handle.get(timeout=5)


def test_one_app_can_have_several_workers_one_after_the_other(app: TaskQ) -> None:
    """Each test of a suite has its own block."""

    @app.task
    def double(x: int) -> int:
        return 2 * x

    for number in range(3):
        with running_worker(app):
            assert double.delay(number).get(timeout=5) == 2 * number


def test_a_failing_task_does_not_reach_the_test(app: TaskQ) -> None:
    """SystemExit included: the test's process goes on."""

    @app.task(max_retries=0)
    def leave() -> None:
        raise SystemExit(3)

    with running_worker(app):
        with pytest.raises(TaskFailed) as caught:
            leave.delay().get(timeout=5)
        assert caught.value.remote_type == "SystemExit"
        with pytest.raises(TaskFailed):
            leave.delay().get(timeout=5)
