"""Delayed tasks while workers die: each runs, none before its time."""

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import LONG
from fleet import Fleet

COUNT, LONGEST_S, LATE_S = (1000, 60.0, 0.25) if LONG else (150, 6.0, 60.0)
"""How many, their longest delay, and how late 99 of 100 may be; the short form is no clock."""


@pytest.fixture(params=["sqlite", "rabbitmq"])
def delay_fleet(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Fleet]:
    if request.param == "sqlite":
        urls = (f"sqlite:///{tmp_path}/work.db",) * 2
    else:
        urls = (request.getfixturevalue("rabbitmq_url"), request.getfixturevalue("redis_url"))
    made = Fleet(tmp_path, *urls)
    yield made
    made.close()


def test_no_task_runs_before_its_time(delay_fleet: Fleet) -> None:
    """A worker is killed in the middle, with delayed tasks in its hands (their last second)."""
    fleet = delay_fleet
    doomed = fleet.start(slots=4)
    fleet.start(slots=4)
    due: dict[str, float] = {}
    with fleet.app.batch():
        for _ in range(COUNT):
            delay_s = random.uniform(0.5, LONGEST_S)
            # Before the send, which reads the clock later: what is early by this is early.
            due_s = time.time() + delay_s
            due[fleet.send("nap", 0.0, countdown=delay_s).id] = due_s
    kill_s = time.time() + LONGEST_S / 2
    fleet.until_runs(1, timeout_s=60)
    time.sleep(max(0.0, kill_s - time.time()))
    if not LONG:
        # The long form measures lateness, which the death of a worker would add to.
        doomed.signal(signal.SIGKILL)

    fleet.settled([fleet.app.result(task_id) for task_id in due], LONGEST_S + 90)

    first: dict[str, float] = {}
    for run in fleet.runs():
        first[run.id] = min(first.get(run.id, run.at_s), run.at_s)
    late = sorted(first[task_id] - at_s for task_id, at_s in due.items())
    # Moments on the wire and in the file of runs are rounded to the ms.
    assert late[0] > -0.002, "a task ran before its time"
    late_s = late[int(COUNT * 0.99)]
    print(f"99 of 100 were late by at most {late_s * 1000:.0f} ms")
    assert late_s < LATE_S
    assert fleet.ready() == 0
    assert fleet.app.broker.due_within(400 * 86400) == 0
