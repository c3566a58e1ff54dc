"""Consuming pauses behind long tasks, and goes on whatever way they end."""

import time
from typing import Any

import pytest

from taskq.brokers.base import Delivery
from taskq.config import WorkerSettings
from taskq.envelope import Envelope
from taskq.message import Message
from taskq.worker.held import Held
from taskq.worker.prefetch import Prefetch
from taskq.worker.ready import Ready
from taskq.worker.window import Pace


class Slots:
    """As much of a pool as is asked here."""

    idle = 0

    def idle_slots(self) -> int:
        return self.idle


class Consuming:
    """As much of a consumer as is told here."""

    paused = False
    size = 0

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def resize(self, prefetch: int) -> None:
        self.size = prefetch


@pytest.fixture
def now_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    moment = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: moment[0])
    return moment


@pytest.fixture
def made(now_s: list[float]) -> tuple[Prefetch, Any, Any, Ready]:
    pool: Any = Slots()
    consumer: Any = Consuming()
    ready = Ready()
    prefetch = Prefetch(WorkerSettings(), Pace(1, 0), pool, ready)
    prefetch.consumer = consumer
    for tag in range(3):
        held = Held(tag, Delivery(tag, "q", Message("t", str(tag), b"")), Envelope(), None)
        held.since_s = now_s[0]
        ready.append(held)
    return prefetch, pool, consumer, ready


def test_what_waits_behind_a_long_task_is_given_back(
    made: tuple[Prefetch, Any, Any, Ready], now_s: list[float]
) -> None:
    """Another worker may be idle, and what is given back must not come again at once."""
    prefetch, _, consumer, ready = made
    now_s[0] += 2

    given_back = prefetch.hoarded()

    assert len(given_back) == 3
    assert not ready
    assert consumer.paused


def test_short_tasks_on_a_slow_machine_are_kept(
    made: tuple[Prefetch, Any, Any, Ready], now_s: list[float]
) -> None:
    """A deep window of no-ops waits for seconds too when others have the processor."""
    prefetch, _, consumer, ready = made
    now_s[0] += 2
    prefetch.adapt(quiet=False)

    given_back = prefetch.hoarded()

    assert not given_back
    assert len(ready) == 3
    assert not consumer.paused


def test_consuming_goes_on_though_no_further_run_ends(
    made: tuple[Prefetch, Any, Any, Ready], now_s: list[float]
) -> None:
    """The last run may end before its executor returns the rest: then nothing more is heard."""
    prefetch, pool, consumer, _ = made
    now_s[0] += 2
    prefetch.hoarded()
    prefetch.adapt(quiet=False)
    assert consumer.paused

    pool.idle = 1
    prefetch.resume(quiet=False)

    assert not consumer.paused


def test_a_worker_that_stops_does_not_consume_again(
    made: tuple[Prefetch, Any, Any, Ready], now_s: list[float]
) -> None:
    """A stop that takes deliveries again would run them, or hold them up."""
    prefetch, pool, consumer, _ = made
    now_s[0] += 2
    prefetch.hoarded()

    pool.idle = 1
    prefetch.resume(quiet=True)

    assert consumer.paused


def paced(run_us: int, now_s: list[float]) -> tuple[Prefetch, Pace, Any]:
    """Return a prefetch that has fitted itself to tasks of this run time."""
    pool: Any = Slots()
    consumer: Any = Consuming()
    pace = Pace(1, 0)
    prefetch = Prefetch(WorkerSettings(), pace, pool, Ready())
    prefetch.consumer = consumer
    pace.ran([run_us] * 20)
    now_s[0] += 1
    prefetch.adapt(quiet=False)
    return prefetch, pace, consumer


def test_a_moment_of_slowness_does_not_shrink_the_prefetch(now_s: list[float]) -> None:
    """At each swap of consumers the broker returns what is under way; each of that starts alone."""
    prefetch, pace, consumer = paced(20, now_s)
    big = consumer.size

    for _ in range(3):
        pace.ran([2_000] * 20)
        now_s[0] += 0.5
        prefetch.adapt(quiet=False)
    pace.ran([20] * 20)
    now_s[0] += 0.5
    prefetch.adapt(quiet=False)

    assert big > 1000
    assert consumer.size == big


def test_slowness_that_lasts_shrinks_it(now_s: list[float]) -> None:
    prefetch, pace, consumer = paced(20, now_s)

    for _ in range(6):
        pace.ran([2_000] * 20)
        now_s[0] += 0.5
        prefetch.adapt(quiet=False)

    assert consumer.size == pace.prefetch() < 100


def test_long_tasks_shrink_it_at_once(now_s: list[float]) -> None:
    """Two seconds of hoarding would be a hundred tasks that idle workers could run."""
    prefetch, pace, consumer = paced(20, now_s)

    pace.ran([100_000])
    now_s[0] += 0.5
    prefetch.adapt(quiet=False)

    assert consumer.size <= 3
