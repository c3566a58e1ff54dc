"""Soft and hard limits in every pool."""

import os
from pathlib import Path

import pytest
from fleet import Fleet, until

from taskq import SoftTimeLimitExceeded, TaskFailed, TimeLimitExceeded, WorkerLost, outcome

SOFT = [
    *[("process", name) for name in ("soft_sleep", "soft_block", "soft_spin", "soft_async")],
    *[("thread", name) for name in ("soft_sleep", "soft_spin", "soft_async")],
    *[("asyncio", name) for name in ("soft_sleep", "soft_spin", "soft_async")],
    *[("solo", name) for name in ("soft_sleep", "soft_block", "soft_spin", "soft_async")],
]


@pytest.mark.parametrize(("pool", "name"), SOFT)
def test_a_soft_limit_is_raised_in_the_task(fleet: Fleet, pool: str, name: str) -> None:
    """The task can put things in order, and the executor lives on."""
    fleet.start(pool=pool, slots=1)

    handle = fleet.send(name)

    with pytest.raises(SoftTimeLimitExceeded):
        handle.get(timeout=10)
    runs = fleet.runs(handle.id)
    assert [run.word for run in runs] == ["", "soft"]
    assert runs[1].at_s - runs[0].at_s < 1.5
    after = fleet.send("threads").get(timeout=10)
    assert after[0] == runs[0].pid


@pytest.mark.parametrize("pool", ["process", "thread", "asyncio", "solo"])
def test_a_task_may_end_well_after_its_soft_limit(fleet: Fleet, pool: str) -> None:
    """Catching the exception is the task's right: it is a request."""
    fleet.start(pool=pool, slots=1)

    handle = fleet.send("soft_caught")

    assert handle.get(timeout=10) == "cleaned up"


@pytest.mark.parametrize("pool", ["process", "thread", "asyncio", "solo"])
def test_a_soft_limit_never_hits_the_next_task(fleet: Fleet, pool: str) -> None:
    """A timer left over from a finished task would fail an innocent one."""
    fleet.start(pool=pool, slots=1)

    handles = [fleet.send("nap", 0.2, soft_time_limit=1) for _ in range(3)]
    handles += [fleet.send("nap", 1.3, "long")]

    assert fleet.settled(handles)[-1] == "long"


HARD = [
    *[("process", name) for name in ("hard_sleep", "hard_async", "hard_stubborn")],
    *[("thread", name) for name in ("hard_sleep", "hard_async", "hard_stubborn")],
    *[("asyncio", name) for name in ("hard_sleep", "hard_async", "hard_stubborn")],
]


@pytest.mark.parametrize(("pool", "name"), HARD)
def test_a_hard_limit_ends_the_task(fleet: Fleet, pool: str, name: str) -> None:
    """Whatever the task does, its slot is free again soon after the limit."""
    worker = fleet.start(pool=pool, slots=1)
    before = set(worker.children())

    handle = fleet.send(name)

    with pytest.raises(TimeLimitExceeded):
        handle.get(timeout=10)
    (letter,) = fleet.until_letters(1)
    assert (letter.story["reason"], letter.story["type"]) == ("failed", "TimeLimitExceeded")
    assert letter.story["attempts"] == 1
    assert fleet.send("add", 1, 2).get(timeout=5) == 3
    assert len(fleet.runs(handle.id)) == 1
    until(lambda: not before & set(worker.children()), "the replacement")


@pytest.mark.parametrize("pool", ["process", "thread", "asyncio"])
def test_a_hard_limit_is_an_attempt_that_is_retried(fleet: Fleet, pool: str) -> None:
    """`while True: pass` holds the interpreter; nothing inside could stop it."""
    fleet.start(pool=pool, slots=1)

    handle = fleet.send("hard_spin")

    with pytest.raises(TaskFailed) as caught:
        handle.get(timeout=15)
    assert caught.value.remote_type == "TimeLimitExceeded"
    assert [run.attempt for run in fleet.runs(handle.id)] == [1, 2]


@pytest.mark.parametrize("pool", ["thread", "asyncio"])
def test_a_hard_limit_spares_the_neighbours(fleet: Fleet, pool: str) -> None:
    """One task of a process of many is stopped; the others finish in their own time."""
    fleet.start(pool=pool, slots=4)
    name = "anap" if pool == "asyncio" else "nap"
    neighbours = [fleet.send(name, 3.0, "well") for _ in range(3)]
    fleet.until_runs(3)

    handle = fleet.send("hard_async" if pool == "asyncio" else "hard_sleep")

    with pytest.raises(TimeLimitExceeded):
        handle.get(timeout=10)
    assert fleet.settled(neighbours) == ["well"] * 3
    assert all(len(fleet.runs(each.id)) == 1 for each in neighbours)


def test_a_hard_limit_in_solo_ends_the_process_for_its_supervisor(fleet: Fleet) -> None:
    """Nobody is left inside to enforce it: exit 75 says "start me again".

    The start is an attempt, as whenever a worker goes down with a task.
    """
    worker = fleet.start(pool="solo", env={"TASKQ_LEASE_S": "1"})

    handle = fleet.send("hard_sleep")

    assert worker.wait(timeout_s=60) == 75
    fleet.start(slots=1, env={"TASKQ_LEASE_S": "1"})
    with pytest.raises(WorkerLost):
        handle.get(timeout=60)
    (letter,) = fleet.until_letters(1, 60)
    assert letter.story["reason"] == "worker_lost"
    assert len(fleet.runs(handle.id)) == 1


def test_a_call_may_bring_its_own_limits(fleet: Fleet) -> None:
    """`apply_async(soft_time_limit=1)` is for the one file that is known to be odd."""
    fleet.start(slots=2)

    soft = fleet.send("nap", 30, soft_time_limit=1)
    hard = fleet.send("stubborn", 30, time_limit=1)

    until(lambda: soft.state == outcome.RETRY, "the soft limit")
    until(lambda: hard.state == outcome.RETRY, "the hard limit")
    types = [handle.record().error.type for handle in (soft, hard)]
    assert types == ["SoftTimeLimitExceeded", "TimeLimitExceeded"]


def test_programs_started_by_a_stopped_task_do_not_hold_its_end_up(
    sqlite_fleet: Fleet, tmp_path: Path
) -> None:
    """A child program inherits sockets; death is seen by the process, not by end of file."""
    (tmp_path / "parents.py").write_text(
        "import os, subprocess, sys, time\n"
        "from taskq import TaskQ\n"
        "app = TaskQ('parents')\n"
        "@app.task(name='parent', max_retries=0, time_limit=0.5)\n"
        "def parent(path):\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(20)'],\n"
        "                             close_fds=False)\n"
        "    open(path, 'w').write(str(child.pid))\n"
        "    time.sleep(20)\n"
    )
    path = tmp_path / "child"
    sqlite_fleet.start(app="parents:app", slots=1)

    handle = sqlite_fleet.send("parent", str(path))

    with pytest.raises(TimeLimitExceeded):
        handle.get(timeout=8)
    os.kill(int(path.read_text()), 9)
