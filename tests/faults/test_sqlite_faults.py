"""The embedded file under another program's lock."""

import sqlite3
import time
from pathlib import Path

from conftest import LONG
from fleet import Fleet

from taskq.errors import PublishError


def test_another_programs_lock_costs_nothing(tmp_path: Path) -> None:
    """A backup holds the file longer than any lease: sends raise in time, nothing runs twice."""
    url = f"sqlite:///{tmp_path}/work.db"
    fleet = Fleet(tmp_path, url, url)
    env = {"TASKQ_LEASE_S": "1"}
    workers = [fleet.start(slots=2, env=env) for _ in range(2)]
    handles = fleet.send_many("nap", 100, 0.05)
    fleet.until_runs(20)
    other = sqlite3.connect(tmp_path / "work.db", timeout=30, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    end = time.monotonic() + (10 if LONG else 5)
    raised = 0
    while time.monotonic() < end:
        began = time.monotonic()
        try:
            handles.append(fleet.send("nap", 0.0))
        except PublishError:
            raised += 1
        # publish_timeout_s is 5.
        assert time.monotonic() - began < 10
    other.execute("ROLLBACK")
    other.close()

    fleet.settled(handles, 90)
    assert raised
    fleet.assert_each_once(handles)
    assert [worker.term() for worker in workers] == [0, 0]
    assert all("Traceback" not in worker.log() for worker in workers)
    fleet.close()
