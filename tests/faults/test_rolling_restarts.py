"""Workers that are replaced under load, as a deployment does: nothing lost, nothing twice."""

import threading
from typing import Any

from conftest import LONG
from fleet import Fleet, until
from supervisor import APP

from taskq.result import AsyncResult

_RESTARTS = 100 if LONG else 5


class Load:
    """A client that sends short tasks until it is told to stop."""

    def __init__(self, fleet: Fleet) -> None:
        self.handles: list[AsyncResult[Any]] = []
        self._fleet = fleet
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send)
        self._thread.start()

    def _send(self) -> None:
        while not self._stop.wait(0.1):
            if self._fleet.ready() > 60:
                # A slow machine: what piles up now would have to be waited for at the end.
                continue
            with self._fleet.app.batch():
                batch = [self._fleet.send("step", 0.025 * (number % 5)) for number in range(8)]
            self.handles += batch

    def stop(self) -> list[AsyncResult[Any]]:
        """End it and return what was sent."""
        self._stop.set()
        self._thread.join()
        return self.handles


def test_rolling_restarts_lose_and_double_nothing(crash_fleet: Fleet) -> None:
    """Each worker is stopped in mid work, while its successor consumes already."""
    fleet = crash_fleet
    workers = [fleet.start(app=APP, slots=2) for _ in range(2)]
    load = Load(fleet)
    try:
        for _ in range(_RESTARTS):
            workers.append(fleet.start(app=APP, slots=2))
            leaving = workers.pop(0)
            assert leaving.term(60) == 0, leaving.log()
    finally:
        handles = load.stop()

    # The long form has sent tens of thousands, and every result is asked for.
    fleet.settled(handles, 90 + len(handles) / 50)
    print(f"{_RESTARTS} restarts, {len(handles)} tasks")
    assert len(handles) >= 8 * _RESTARTS
    fleet.assert_each_once(handles)


def test_executors_are_replaced_in_mid_work_without_a_gap(crash_fleet: Fleet) -> None:
    """HUP: the successors are there before the old ones are gone, and no task notices."""
    fleet = crash_fleet
    worker = fleet.start(app=APP, slots=2)
    load = Load(fleet)
    try:
        for _ in range(3):
            before = set(worker.children())
            worker.signal(1)
            until(
                lambda old=before: len(now := set(worker.children())) == 2 and not now & old,
                "the replacement of every executor",
                60,
            )
    finally:
        handles = load.stop()

    fleet.settled(handles, 90)
    fleet.assert_each_once(handles)
    assert worker.term(60) == 0
    assert "killed by" not in worker.log()
