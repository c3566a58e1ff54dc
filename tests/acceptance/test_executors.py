"""The life of executors: their deaths, their replacement, and work behind a long task."""

import time
from collections import Counter
from pathlib import Path

import pytest
from fleet import Fleet, until

from taskq import TaskFailed, outcome


@pytest.mark.parametrize("pool", ["process", "thread", "asyncio"])
@pytest.mark.parametrize("how", ["kill", "exit", "segfault"])
def test_a_death_costs_the_running_task_one_attempt(fleet: Fleet, pool: str, how: str) -> None:
    """The out-of-memory killer takes one task's process; the task gets its retry."""
    fleet.start(pool=pool, slots=1)

    handle = fleet.send("die", how, 1)

    assert handle.get(timeout=20) == "alive"
    assert [run.attempt for run in fleet.runs(handle.id)] == [1, 2]
    assert not fleet.letters()


@pytest.mark.parametrize("pool", ["process", "thread", "asyncio"])
def test_a_stack_that_overflows_costs_one_attempt(sqlite_fleet: Fleet, pool: str) -> None:
    """Recursion through C code ends the process, not the call; its successor is there at once."""
    worker = sqlite_fleet.start(pool=pool, slots=1)
    (first,) = worker.children()

    handle = sqlite_fleet.send("die", "overflow", 1)

    assert handle.get(timeout=60) == "alive"
    assert [run.attempt for run in sqlite_fleet.runs(handle.id)] == [1, 2]
    until(lambda: worker.children() and first not in worker.children(), "the successor", 30)


@pytest.mark.parametrize("pool", ["process", "thread", "asyncio"])
def test_a_task_that_always_dies_ends_as_a_letter(fleet: Fleet, pool: str) -> None:
    """A poison message would otherwise kill every worker of the fleet, one after the other."""
    worker = fleet.start(pool=pool, slots=1)

    handle = fleet.send("die")

    with pytest.raises(TaskFailed) as caught:
        handle.get(timeout=20)
    (letter,) = fleet.until_letters(1)
    assert caught.value.remote_type == "WorkerLost"
    assert "SIGKILL" in caught.value.remote_message
    assert [run.attempt for run in fleet.runs(handle.id)] == [1, 2, 3]
    assert letter.story["reason"] == "worker_lost"
    assert letter.story["attempts"] == 3
    assert worker.process.poll() is None
    assert fleet.send("add", 1, 2).get(timeout=10) == 3


def test_neighbours_of_a_death_are_neither_lost_nor_charged(fleet: Fleet) -> None:
    """What waited in the dead process's window costs nothing and runs elsewhere."""
    fleet.start(slots=2)
    fleet.settled(fleet.send_many("nap", 20, 0.005))
    before = len(fleet.runs())

    with fleet.app.batch():
        handles = []
        for number in range(200):
            handles.append(fleet.send("nap", 0.005))
            if number % 50 == 25:
                handles.append(fleet.send("die", "kill", 1))
    fleet.settled(handles)

    runs = fleet.runs()[before:]
    deadly = {run.id for run in runs if run.attempt == 2}
    assert len(deadly) == 4
    counts = Counter(run.id for run in runs)
    wrong = {task_id for task_id, n in counts.items() if n != (2 if task_id in deadly else 1)}
    assert not wrong
    assert len(counts) == len(handles)


def test_tasks_beside_a_death_in_one_process_are_charged_with_it(fleet: Fleet) -> None:
    """Threads of one process die together; each was running, so each costs an attempt."""
    fleet.start(pool="thread", slots=2)
    beside = fleet.send("nap", 1.0, "beside")
    fleet.until_runs(1)

    handle = fleet.send("die", "kill", 1, 0.2)

    assert handle.get(timeout=20) == "alive"
    assert beside.get(timeout=20) == "beside"
    assert [run.attempt for run in fleet.runs(beside.id)] == [1, 2]


def test_executors_are_replaced_after_so_many_tasks(fleet: Fleet) -> None:
    """Leaks of a library are bounded: ten tasks a process, and no task pays for it."""
    fleet.start("--max-tasks-per-child", "10", slots=2)

    handles = fleet.send_many("nap", 100)

    fleet.settled(handles)
    fleet.assert_each_once(handles)
    ran = Counter(run.pid for run in fleet.runs())
    assert max(ran.values()) <= 10
    # Each is used up before it is replaced, but for the two that are in use at the end.
    assert sorted(ran.values())[2:] == [10] * (len(ran) - 2)


@pytest.mark.parametrize("pool", ["thread", "asyncio"])
def test_executors_of_many_slots_are_replaced_too(fleet: Fleet, pool: str) -> None:
    """The successor takes over while the last tasks of the old one finish."""
    fleet.start("--max-tasks-per-child", "10", pool=pool, slots=4)

    handles = fleet.send_many("nap", 100, 0.01)

    fleet.settled(handles)
    fleet.assert_each_once(handles)
    assert max(Counter(run.pid for run in fleet.runs()).values()) <= 10


@pytest.mark.parametrize("pool", ["process", "thread"])
def test_an_executor_that_has_grown_is_replaced(fleet: Fleet, pool: str) -> None:
    """A leak ends with its process before it takes the node."""
    worker = fleet.start("--max-memory-per-child", "150", pool=pool, slots=1)
    (first,) = worker.children()

    fleet.settled([fleet.send("grow", 200)])

    until(lambda: first not in worker.children(), "the replacement")
    handles = fleet.send_many("nap", 10)
    fleet.settled(handles)
    fleet.assert_each_once(handles)
    assert "max_memory_per_child_mb" in worker.log()


def test_short_tasks_do_not_wait_behind_a_long_one(fleet: Fleet) -> None:
    """What was put into the busy executor's window goes to the idle one."""
    fleet.start(slots=2)
    fleet.settled(fleet.send_many("nap", 40, 0.002))

    with fleet.app.batch():
        long = fleet.send("nap", 5.0)
        handles = [fleet.send("nap", 0.002) for _ in range(50)]
    began = time.monotonic()
    fleet.settled(handles)

    assert time.monotonic() - began < 2
    assert long.state in (outcome.STARTED, outcome.PENDING)
    fleet.assert_each_once([*handles, long]) if long.ready() else None


def test_another_worker_gets_what_waits_behind_long_tasks(fleet: Fleet) -> None:
    """A worker whose every slot is busy holds nothing that another could start."""
    busy = fleet.start("--prefetch", "auto", slots=1)
    fleet.settled(fleet.send_many("nap", 100, 0.001))
    with fleet.app.batch():
        long = fleet.send("nap", 6.0)
        handles = [fleet.send("nap", 0.001) for _ in range(20)]
    fleet.until_runs(101)

    fleet.start(slots=1)

    began = time.monotonic()
    fleet.settled(handles)
    assert time.monotonic() - began < 4
    assert not long.ready()
    fleet.assert_each_once(handles)
    assert busy.process.poll() is None


def test_consuming_goes_on_when_the_long_task_that_paused_it_is_killed(
    sqlite_fleet: Fleet,
) -> None:
    """Behind a long task consuming pauses; its end by a kill tells nobody that a slot is free."""
    sqlite_fleet.start(slots=1)
    long = sqlite_fleet.send("die", "kill", 1, 3.0)
    sqlite_fleet.until_runs(1, timeout_s=30)

    handles = sqlite_fleet.send_many("nap", 5)

    sqlite_fleet.settled(handles, 60)
    assert long.get(timeout=60) == "alive"


def test_an_outcome_is_told_while_a_neighbour_runs_on(fleet: Fleet) -> None:
    """A result must not wait in the process until a slower task of it has ended."""
    for pool in ("thread", "asyncio"):
        worker = fleet.start(pool=pool, slots=2)
        slow = fleet.send("nap", 4.0)
        until(lambda handle=slow: fleet.runs(handle.id), "the slow task's start")

        quick = fleet.send("nap", 0.0, "quick")

        assert quick.get(timeout=2) == "quick"
        assert worker.term() == 0


def test_an_app_whose_executors_die_at_their_start_ends_the_worker(
    sqlite_fleet: Fleet, tmp_path: Path
) -> None:
    """Forking for ever at full speed would hide the cause and heat the machine."""
    (tmp_path / "doomed.py").write_text(
        "import os\n"
        "from taskq import TaskQ\n"
        "app = TaskQ('doomed')\n"
        "@app.on_worker_start\n"
        "def begin():\n"
        "    os._exit(4)\n"
    )

    worker = sqlite_fleet.start(app="doomed:app", slots=1, ready=False)

    assert worker.wait() == 75
    assert "died before they were ready" in worker.log()


def test_an_executor_inherits_nothing_of_the_hub(sqlite_fleet: Fleet) -> None:
    """A task that reads from the terminal, or logs as the worker does, would disturb the worker."""
    sqlite_fleet.start(slots=1)

    found = sqlite_fleet.send("surroundings").get(timeout=60)

    assert found == [b"", 0, False]
