"""Delayed tasks while workers die: each runs, none before its time."""

import random
import signal
import time
import uuid
from datetime import UTC, datetime

from conftest import LONG
from fleet import Fleet

from taskq.errors import PublishError

COUNT, LONGEST_S, LATE_S = (1000, 60.0, 0.25) if LONG else (150, 6.0, 60.0)
"""How many, their longest delay, and how late 99 of 100 may be; the short form is no clock."""
BATCH = 10


def send_delayed(fleet: Fleet) -> dict[str, float]:
    """Send tasks in small batches, and return when each is due, in epoch seconds.

    The first message of a delay declares its queue: on a busy machine dozens of them take longer
    than one send may.
    """
    due: dict[str, float] = {}
    for _ in range(COUNT // BATCH):
        now_s = time.time()
        left = {str(uuid.uuid4()): now_s + random.uniform(0.5, LONGEST_S) for _ in range(BATCH)}
        due |= left
        deadline = time.monotonic() + 120
        while left:
            try:
                with fleet.app.batch():
                    for task_id, due_s in left.items():
                        eta = datetime.fromtimestamp(due_s, UTC)
                        fleet.send("nap", 0.0, task_id=task_id, eta=eta)
                left = {}
            except PublishError as error:
                left = {task_id: left[task_id] for task_id in error.failed_ids}
            assert not left or time.monotonic() < deadline, f"{len(left)} sends never confirmed"
    return due


def test_no_task_runs_before_its_time(crash_fleet: Fleet) -> None:
    """A worker is killed in the middle, with delayed tasks in its hands (their last second)."""
    fleet = crash_fleet
    doomed = fleet.start(slots=4)
    fleet.start(slots=4)
    due = send_delayed(fleet)
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
