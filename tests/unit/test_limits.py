"""Soft limits and interruption inside an executor."""

import asyncio
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from taskq.errors import SoftTimeLimitExceeded
from taskq.request import Request
from taskq.worker.limits import (
    AlarmLimiter,
    Interrupted,
    Limiter,
    WatchdogLimiter,
    limited_coroutine,
)


@pytest.fixture(params=["alarm", "watchdog"])
def limiter(request: pytest.FixtureRequest) -> Iterator[Limiter]:
    before = signal.getsignal(signal.SIGALRM)
    made: Limiter = AlarmLimiter() if request.param == "alarm" else WatchdogLimiter()
    made.enter(1)
    yield made
    made.leave(1)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def spin(_request: Request) -> None:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        pass
    raise AssertionError("nothing stopped it")


def test_a_limit_is_raised_in_the_running_call(limiter: Limiter) -> None:
    began = time.monotonic()

    with pytest.raises(SoftTimeLimitExceeded):
        limiter.call(spin, Request(), 0.1)

    assert 0.099 <= time.monotonic() - began < 5


def test_a_call_that_ends_in_time_returns_and_leaves_no_timer(limiter: Limiter) -> None:
    """Left over, it would hit the next task."""

    def quick(_request: Request) -> str:
        return "done"

    for _ in range(50):
        assert limiter.call(quick, Request(), 0.05) == "done"
    end = time.monotonic() + 0.2
    while time.monotonic() < end:
        pass


def test_calls_that_end_at_their_limit_never_hit_what_comes_after(limiter: Limiter) -> None:
    """The race between the end and the alarm: one of both, and inside of the call."""

    def about(_request: Request) -> str:
        end = time.monotonic() + 0.003
        while time.monotonic() < end:
            pass
        return "done"

    results = {"done": 0, "late": 0}
    for _ in range(200):
        try:
            results[limiter.call(about, Request(), 0.003)] += 1
        except SoftTimeLimitExceeded:
            results["late"] += 1
        sum(range(100))

    assert sum(results.values()) == 200


def test_an_interruption_reaches_the_task_it_names(limiter: Limiter) -> None:
    """A stop whose grace is over."""
    threading.Timer(0.1, limiter.interrupt, [{1, 5}]).start()

    with pytest.raises(Interrupted):
        spin(Request())


def test_an_interruption_of_another_task_reaches_nothing(limiter: Limiter) -> None:
    limiter.interrupt({2})
    limiter.leave(1)
    limiter.interrupt({1})

    end = time.monotonic() + 0.1
    while time.monotonic() < end:
        pass


def test_an_alarm_wakes_a_blocking_call() -> None:
    before = signal.getsignal(signal.SIGALRM)
    limiter = AlarmLimiter()
    limiter.enter(1)
    began = time.monotonic()

    with pytest.raises(SoftTimeLimitExceeded):
        limiter.call(lambda _request: time.sleep(10), Request(), 0.1)

    assert time.monotonic() - began < 5
    limiter.leave(1)
    signal.signal(signal.SIGALRM, before)


def test_limits_of_several_threads_hit_each_its_own() -> None:
    """One watchdog serves all threads; the shortest limit must not end the others."""
    limiter = WatchdogLimiter()
    ended: dict[int, float] = {}

    def work(number: int) -> None:
        limiter.enter(number)
        began = time.monotonic()
        try:
            limiter.call(spin, Request(), 0.1 * number)
        except SoftTimeLimitExceeded:
            ended[number] = time.monotonic() - began
        finally:
            limiter.leave(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in (3, 1, 2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(10)

    assert sorted(ended) == [1, 2, 3]
    assert all(took >= 0.1 * number - 0.001 for number, took in ended.items())


def test_a_coroutine_is_cancelled_inside_and_limited_outside() -> None:
    seen: list[str] = []

    async def slow(_request: Request) -> None:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    with pytest.raises(SoftTimeLimitExceeded):
        asyncio.run(limited_coroutine(slow, 0.05)(Request()))

    assert seen == ["cancelled"]


def test_a_timeout_of_the_coroutine_itself_stays_one() -> None:
    """A library's TimeoutError is the task's own failure, not a limit."""

    async def fails(_request: Request) -> Any:
        raise TimeoutError("the server's")

    with pytest.raises(TimeoutError, match="the server's"):
        asyncio.run(limited_coroutine(fails, 5)(Request()))
