"""Leaders that die, stores that fail and brokers that refuse, at each step of a tick."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from scheduler_setup import Setup, assert_whole, opened, quiet, until
from servers import RedisServer

from taskq import Middleware, TaskQ, every
from taskq.brokers.base import Outgoing
from taskq.canvas import Chain, Signature
from taskq.errors import PublishError, ResultsUnavailable
from taskq.middleware import SendNext
from taskq.result import AsyncResult
from taskq.schedules.store import ScheduleStore


class Died(BaseException):
    """Stands for a SIGKILL: nothing of the scheduler runs any more."""


@pytest.fixture(params=["embedded", "redis"])
def setup(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Setup]:
    """An app whose schedules are in the embedded file, or in Redis."""
    yield from opened(request.param, request, tmp_path)


def break_in(store: ScheduleStore, step: str, fail: Callable[[], None], *, after: bool) -> None:
    """Let `fail` decide before, or after, each call of a step of the real store."""
    real = getattr(store, step)

    def broken(*args: Any, **kwargs: Any) -> Any:
        if not after:
            fail()
        answer = real(*args, **kwargs)
        if after:
            fail()
        return answer

    setattr(store, step, broken)


def test_a_store_that_fails_at_any_step_costs_no_tick(setup: Setup) -> None:
    """Each connection breaks twice before the request, and twice before the answer."""
    app = setup.new_app()
    app.schedules.add("x", "job", every(0.2), dynamic=True, max_age_s=600)
    setup.back("x", 3)
    faults = Counter[str]()

    def fault(name: str) -> Callable[[], None]:
        def fail() -> None:
            faults[name] += 1
            if faults[name] in (1, 3):
                raise ResultsUnavailable("a fault of the test")

        return fail

    for step in ("beat", "changed", "claim", "settle"):
        for after in (False, True):
            name = f"{step} {after}"
            break_in(app.schedules.store, step, fault(name), after=after)
    setup.start(app)

    until(lambda: len(faults) == 8 and min(faults.values()) >= 2, "the faults")
    until(lambda: len(setup.due("x")) >= 35, "ticks")
    setup.stop()

    assert_whole(setup, "x", 200, 35)


@pytest.mark.parametrize(("step", "after"), [("claim", True), ("settle", False), ("settle", True)])
def test_a_leader_that_dies_between_two_steps_leaves_no_tick_behind(
    setup: Setup, step: str, after: bool
) -> None:
    """Claimed and not sent; sent and not settled; settled: the next leader cannot be told."""
    app = setup.new_app()
    app.schedules.add("x", "job", every(0.2), dynamic=True, max_age_s=600)
    setup.back("x", 3)

    def die() -> None:
        raise Died

    break_in(app.schedules.store, step, die, after=after)
    setup.start(app)
    until(lambda: setup.failures, "the death")
    assert isinstance(setup.failures.pop(), Died)
    setup.start()

    until(lambda: len(setup.due("x")) >= 25, "the next leader's ticks")
    setup.stop()

    due = setup.due("x")
    assert due == list(range(due[0], due[-1] + 1, 200))
    assert setup.info("x").fired == len(due)
    # Where the store cannot see the queue, only a task that has begun shows that it was sent.
    apart = setup.urls["results"] != setup.urls["broker"]
    twice = apart and (step, after) == ("settle", False)
    assert max(setup.sent().values()) == (2 if twice else 1)


def test_a_store_that_is_emptied_while_its_leader_is_frozen_costs_no_tick(
    private_redis: RedisServer, tmp_path: Path
) -> None:
    """Who stands by writes back what it knows to be sent, and no more than that."""
    setup = Setup(f"sqlite:///{tmp_path}/queue.db", private_redis.url)
    frozen, thaw = Event(), Event()

    def freeze() -> None:
        if frozen.is_set():
            thaw.wait()

    try:
        app = setup.new_app()
        app.schedules.add("x", "job", every(0.2), dynamic=True, max_age_s=600)
        break_in(app.schedules.store, "claim", freeze, after=False)
        first = setup.start(app, lease_s=6)
        until(lambda: first.leading and len(setup.due("x")) >= 3, "ticks")
        second = setup.start(lease_s=6)
        until(lambda: second.size and len(setup.due("x")) >= 25, "who stands by")

        frozen.set()
        until(lambda: quiet(setup), "the freeze")
        sent = set(setup.sent())
        private_redis.ctl("FLUSHALL")
        until(lambda: second.leading, "another leader")
        until(lambda: len(setup.sent()) >= len(sent) + 20, "its ticks")
        thaw.set()
        until(lambda: not first.leading, "the end of the first")
    finally:
        thaw.set()
        setup.stop()

    due = setup.due("x")
    assert due == list(range(due[0], due[-1] + 1, 200))
    twice = [task_id for task_id, count in setup.sent().items() if count > 1]
    assert set(twice) <= sent
    assert len(twice) < len(sent), "not only those since the last beats"
    setup.app.close()


class OneRefused(TaskQ):
    """An app one of whose messages the broker never confirms."""

    refused = 10

    def send(self, calls: Sequence[Signature[Any] | Chain]) -> list[AsyncResult[Any]]:
        """Send all but the tenth."""
        if len(calls) <= self.refused:
            raise PublishError(calls[0].options["task_id"], "nacked", "a test")  # type: ignore[union-attr]
        kept = [call for number, call in enumerate(calls) if number != self.refused]
        super().send(kept)
        lost = calls[self.refused]
        assert isinstance(lost, Signature)
        raise PublishError(lost.options["task_id"], "nacked", "a test")


def test_no_cursor_passes_a_tick_that_is_not_sent(setup: Setup) -> None:
    """The tenth is refused, later ones go out, the leader ends: the next one sends the tenth."""
    setup.app.schedules.add("x", "job", every(0.2), dynamic=True, max_age_s=600)
    setup.back("x", 5)
    app = OneRefused("shop", **setup.urls)
    app.task(name="job")(lambda *args: None)
    scheduler = setup.start(app)
    until(lambda: "broker" in scheduler.trouble and len(setup.due("x")) >= 20, "a refused tick")
    setup.stop()
    (row,) = setup.app.schedules.store.rows(["x"])
    assert row is not None
    assert row.fired == OneRefused.refused

    setup.start()
    until(lambda: len(setup.due("x")) >= 35, "the next leader's ticks")
    setup.stop()

    due = setup.due("x")
    assert due == list(range(due[0], due[-1] + 1, 200))


class Auditor(Middleware):
    """Sends a message of its own with every other, which fails at first."""

    def __init__(self) -> None:
        self.failures = 3

    def send(self, call_next: SendNext, outgoing: Outgoing) -> Outgoing:
        """Fail as a nested send does."""
        if self.failures:
            self.failures -= 1
            raise PublishError("another-id", "unavailable", "a test")
        return call_next(outgoing)


def test_a_send_of_a_middleware_that_fails_is_not_taken_for_the_ticks(setup: Setup) -> None:
    app = setup.new_app()
    app.middlewares.append(Auditor())
    app.schedules.add("x", "job", every(0.2), dynamic=True, max_age_s=600)
    setup.back("x", 3)
    setup.start(app)

    until(lambda: len(setup.due("x")) >= 20, "ticks")
    setup.stop()

    assert_whole(setup, "x", 200, 20)
    assert setup.info("x").fired == len(setup.due("x"))
