"""The clock of a worker's host is set a minute ahead, back, and right again, while it works."""

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fleet import HERE, ROOT, Fleet, until
from supervisor import APP

STEPS_S = (60, -60, 0)


def step(path: Path, seconds: int) -> None:
    """Set the clock of the processes that look at this file so far ahead."""
    with path.open("r+b") as file:
        file.write((seconds * 10**9).to_bytes(8, signed=True))


def test_steps_of_a_workers_clock_start_nothing_early_and_lose_nothing(
    crash_fleet: Fleet, tmp_path: Path
) -> None:
    """Delays, expiry and leases are judged by that clock; other hosts have the right one."""
    fleet = crash_fleet
    clock_file = tmp_path / "clock"
    clock_file.write_bytes(bytes(8))
    places = (Path(__file__).parent / "stepped", ROOT, HERE)
    env = {
        "CLOCK_STEP": str(clock_file),
        "PYTHONPATH": os.pathsep.join(map(str, places)),
        "TASKQ_LEASE_S": "5",
    }
    workers = [fleet.start(app=APP, slots=2, env=env) for _ in range(2)]
    due = {}
    # Each would be due, expired, or nobody's any more, by a clock that is a minute ahead.
    for number in range(30):
        delay_s = 2 + number * 0.4
        expires = datetime.now(UTC) + timedelta(seconds=50)
        sent_s = time.time()
        handle = fleet.send("sturdy", 0.01, countdown=delay_s, expires=expires)
        due[handle.id] = sent_s + delay_s - 0.01
    held = [fleet.send("sturdy", 8.0) for _ in range(2)]
    retried = [fleet.send("fail_first") for _ in range(3)]
    fleet.until_runs(2, timeout_s=60)

    for seconds in STEPS_S:
        step(clock_file, seconds)
        done = len(fleet.runs())
        until(lambda done=done: len(fleet.runs()) >= min(35, done + 8), "runs", 90)

    handles = [fleet.app.result(i) for i in due] + held + retried
    until(lambda: all(handle.ready() for handle in handles), "the end of every task", 90)
    assert {handle.state for handle in handles} == {"SUCCESS"}
    early = [run for run in fleet.runs() if run.at_s < due.get(run.id, 0.0)]
    assert not early
    fleet.assert_each_once([*held, *(fleet.app.result(i) for i in due)])
    assert fleet.letters() == []
    assert [worker.term(60) for worker in workers] == [0, 0]
