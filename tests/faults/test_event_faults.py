"""Events under faults: durable ones are all there, missing lossy ones are counted."""

import contextlib
import signal
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet import Fleet, until
from processes import wait_for
from supervisor import APP

from taskq import TaskQ
from taskq.events import Event, Watermark, read_batch
from taskq.testing import running_worker
from taskq.worker.failpoints import BEFORE_ACK, CONFIRMED, STORED

_COUNT = 30
_ENDS = ("task.succeeded", "task.failed", "task.duplicate")


class Log:
    """All events under a name, without those that came twice."""

    def __init__(self, app: TaskQ, name: str) -> None:
        self.events: list[Event] = []
        self.mark = Watermark()
        self._feed = app.broker.events(name)

    def read(self) -> None:
        batches = self._feed.get(0.2)
        for _, body in batches:
            self.events += self.mark.fresh(read_batch(body))
        if batches:
            self._feed.ack(batches[-1][0])

    def states(self) -> dict[str, str]:
        """Return what each task's last event leaves it in."""
        self.read()
        return {e.task_id: e.data["state"] for e in self.events if e.type in _ENDS}

    def has(self, kind: str) -> bool:
        self.read()
        return any(event.type == kind for event in self.events)

    def close(self) -> None:
        self._feed.close()


@pytest.mark.parametrize("point", [STORED, CONFIRMED, BEFORE_ACK])
def test_a_killed_worker_acknowledges_nothing_that_was_not_told(
    crash_fleet: Fleet, point: str
) -> None:
    """With durable events the log says of every task how it ended, wherever its worker died."""
    fleet = crash_fleet
    log = Log(fleet.app, "audit")
    good = fleet.send_many("step", _COUNT, 0.001)
    bad = fleet.send_many("fail_always", 3)
    durable = {"TASKQ_EVENTS": "durable"}

    env = {**durable, "TASKQ_FAILPOINT": f"{point}:kill:2"}
    doomed = fleet.start(app=APP, slots=2, ready=False, env=env)
    assert doomed.wait(120) == -signal.SIGKILL, doomed.log()
    fleet.start(app=APP, slots=2, env=durable)
    until(lambda: all(handle.ready() for handle in good + bad), "the end of every task", 120)
    wanted = {handle.id: handle.state for handle in good + bad}
    with contextlib.suppress(TimeoutError):
        wait_for(lambda: log.states() == wanted, 60, "an end of each task in the log")
    states = log.states()
    log.close()

    assert states == wanted
    assert log.mark.gaps == 0
    assert set(wanted.values()) == {"SUCCESS", "FAILURE"}


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep every other writer out of an embedded file."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


def test_what_lossy_events_lose_is_counted_and_seen_as_a_gap(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Tasks go on while events cannot be sent; whoever reads the log knows what is missing."""
    path = tmp_path / "work.db"
    results = f"sqlite:///{tmp_path}/results.db"
    app = TaskQ("shop", broker=f"sqlite:///{path}", results=results, publish_timeout_s=0.3)
    started, go_on = threading.Event(), threading.Event()

    @app.task(name="hold", bind=True)
    def hold(self: Any) -> None:
        started.set()
        while not go_on.wait(0.05):
            self.progress(1)

    log = Log(app, "audit")
    with running_worker(app):
        handle = hold.delay()
        try:
            assert started.wait(60)
            # A log that has never heard of a source cannot miss its beginning.
            wait_for(lambda: log.has("worker.online"), 60, "the worker's beginning")
            with locked(path):
                wait_for(lambda: "events are being dropped" in caplog.text, 60, "a loss")
        finally:
            go_on.set()
        handle.get(timeout=60)
    wait_for(lambda: log.has("worker.offline"), 60, "the worker's end")
    log.close()
    app.close()

    (offline,) = [e for e in log.events if e.type == "worker.offline"]
    assert offline.data["dropped"] == log.mark.gaps > 0
    assert [e.type for e in log.events if e.task_id == handle.id][-1] == "task.succeeded"
