"""Schedulers on threads of the test, and what they have put into the queue."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import processes
import pytest

from taskq import TaskQ, clock
from taskq.embedded.database import open_database
from taskq.embedded.location import parse_location
from taskq.results.base import Record, Write, encode_record
from taskq.scheduler.scheduler import Scheduler
from taskq.schedules.entry import tick_id

LONG_S = 60.0


def until(condition: Callable[[], Any], what: str) -> None:
    processes.wait_for(lambda: bool(condition()), LONG_S, what)


class Setup:
    """An app on an embedded broker, with its schedules in one of the stores."""

    def __init__(self, broker: str, results: str) -> None:
        self.urls = {"broker": broker, "results": results}
        self.app = self.new_app()
        self.running: list[tuple[Scheduler, threading.Thread]] = []
        self.failures: list[BaseException] = []

    def new_app(self) -> TaskQ:
        app = TaskQ("shop", **self.urls)

        @app.task(name="job")
        def job(*args: int) -> None: ...

        return app

    def start(self, app: TaskQ | None = None, **options: Any) -> Scheduler:
        """Run a scheduler on a thread."""
        scheduler = Scheduler(app or self.app, **{"lease_s": 1.0, **options})

        def run() -> None:
            try:
                scheduler.run()
            except BaseException as error:
                self.failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        self.running.append((scheduler, thread))
        return scheduler

    def stop(self) -> None:
        for scheduler, _ in self.running:
            scheduler.stop()
        for _, thread in self.running:
            thread.join(LONG_S)
        self.running.clear()

    def sent(self) -> Counter[str]:
        """Return the ids of the messages in the queue, and how often each is there."""
        with open_database(parse_location(self.app.broker.url)).reading(30) as connection:
            return Counter(task_id for (task_id,) in connection.execute("SELECT id FROM messages"))

    def due(self, name: str) -> list[int]:
        """Return which ticks of a schedule are in the queue, told by their ids."""
        now_ms = clock.now_ms() // 100 * 100
        window = range(now_ms - 600_000, now_ms + 1000, 100)
        ids = {tick_id("shop", name, due_ms): due_ms for due_ms in window}
        return sorted(ids[task_id] for task_id in self.sent() if task_id in ids)

    def back(self, name: str, by_s: float) -> None:
        """Let a schedule have been dealt with so long ago, as if no scheduler had run since."""
        store = self.app.schedules.store
        (row,) = store.rows([name])
        assert row is not None
        store.remove(name)
        store.restore([row._replace(cursor_ms=clock.now_ms() - round(by_s * 1000))], [])

    def record(self, task_id: str, state: str) -> None:
        store = self.app.results
        assert store is not None
        store.store([Write(task_id, encode_record(Record(state)), 600)])

    def info(self, name: str) -> Any:
        return self.app.schedules.get(name)


def opened(kind: str, request: pytest.FixtureRequest, directory: Path) -> Iterator[Setup]:
    """Give a setup, and end what runs in it."""
    broker = f"sqlite:///{directory}/queue.db"
    made = Setup(broker, request.getfixturevalue("redis_url") if kind == "redis" else broker)
    yield made
    made.stop()
    made.app.close()
    assert not made.failures


def assert_whole(setup: Setup, name: str, interval_ms: int, count: int) -> None:
    """Check that ticks follow each other without a gap, each sent once."""
    due = setup.due(name)
    assert len(due) >= count
    assert due == list(range(due[0], due[-1] + 1, interval_ms))
    assert set(setup.sent().values()) == {1}


def quiet(setup: Setup) -> bool:
    """Return whether nothing is sent for a while."""
    before = len(setup.sent())
    threading.Event().wait(1.5)
    return len(setup.sent()) == before
