"""A worker that was believed dead and comes back: it must not disturb what others took over."""

import os
import signal
import sqlite3
import time
from pathlib import Path

from fleet import Fleet, Worker
from supervisor import APP


def freeze(worker: Worker, fleet: Fleet) -> None:
    """Stop the hub, but not in the middle of a transaction, which would stop everybody."""
    for _ in range(50):
        os.kill(worker.pid, signal.SIGSTOP)
        if not fleet.broker.startswith("sqlite"):
            return
        path = fleet.broker.removeprefix("sqlite:///")
        try:
            connection = sqlite3.connect(Path(path), timeout=2, isolation_level=None)
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
            connection.close()
            return
        except sqlite3.OperationalError:
            connection.close()
            os.kill(worker.pid, signal.SIGCONT)
            time.sleep(0.1)
    raise AssertionError("the worker holds the file's lock all the time")


def test_a_zombie_stores_and_retries_nothing_that_was_taken_over(crash_fleet: Fleet) -> None:
    """Frozen for longer than lease and heartbeat; its executors ended their runs meanwhile."""
    fleet = crash_fleet
    zombie = fleet.start(app=APP, slots=2, env=impatient(fleet))
    handles = [fleet.send("hold", [2.5, 5.0], fails) for fails in (False, True)]
    first = fleet.until_runs(2, timeout_s=60)
    freeze(zombie, fleet)
    other = fleet.start(app=APP, slots=2, env=impatient(fleet), ready=False)
    fleet.until_runs(4, timeout_s=90)
    time.sleep(max(0.0, max(run.at_s for run in first) + 3 - time.time()))

    os.kill(zombie.pid, signal.SIGCONT)

    executors = other.children()
    for handle in handles:
        assert handle.get(timeout=90) == fleet.runs(handle.id)[1].pid
        assert handle.get(timeout=30) in executors
    assert zombie.term(60) == 0, zombie.log()
    assert other.term(60) == 0, other.log()
    assert [len(fleet.runs(handle.id)) for handle in handles] == [2, 2]
    assert fleet.ready() == 0
    assert fleet.letters() == []


def impatient(fleet: Fleet) -> dict[str, str]:
    """Return settings that make a worker's silence be noticed soon."""
    if fleet.broker.startswith("sqlite"):
        return {"TASKQ_LEASE_S": "2"}
    return {"TASKQ_BROKER": f"{fleet.broker}?heartbeat=2"}
