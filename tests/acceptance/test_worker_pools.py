"""The four pools run plain and `async def` tasks, as many at once as they were told."""

import os
import signal
from pathlib import Path

import pytest
from fleet import POOLS, Fleet, until

from taskq import TaskFailed

BASES = [
    "SystemExit",
    "KeyboardInterrupt",
    "GeneratorExit",
    "MemoryError",
    "CancelledError",
    "StopIteration",
]


@pytest.mark.parametrize("pool", POOLS)
def test_plain_and_async_tasks_run_in_every_pool(fleet: Fleet, pool: str) -> None:
    """The pool is the operator's choice; a task must not care."""
    fleet.start(pool=pool)

    handles = [fleet.send(name, 0.01, name) for name in ("nap", "anap", "anap", "nap")]

    assert fleet.settled(handles) == ["nap", "anap", "anap", "nap"]


@pytest.mark.parametrize(
    ("pool", "name", "options"),
    [
        ("process", "meet", ()),
        ("process", "ameet", ()),
        ("thread", "meet", ()),
        ("thread", "ameet", ()),
        ("thread", "meet", ("--executors", "2")),
        ("asyncio", "ameet", ()),
        ("asyncio", "meet", ()),
        ("asyncio", "ameet", ("--executors", "2")),
    ],
)
def test_as_many_tasks_run_at_once_as_asked(
    fleet: Fleet, tmp_path: Path, pool: str, name: str, options: tuple[str, ...]
) -> None:
    """Each of six tasks waits for the other five: fewer slots, and none would end."""
    place = tmp_path / "meeting"
    place.mkdir()
    fleet.start(*options, pool=pool, slots=6)

    handles = [fleet.send(name, str(place), 6) for _ in range(6)]

    pids = set(fleet.settled(handles))
    executors = 6 if pool == "process" else 2 if options else 1
    assert len(pids) == executors


def test_async_tasks_share_one_loop_in_the_asyncio_pool(fleet: Fleet) -> None:
    """A hundred coroutines that sleep a second take about a second."""
    fleet.start(pool="asyncio", slots=100)
    fleet.settled(fleet.send_many("anap", 2))
    before = len(fleet.runs())

    handles = fleet.send_many("anap", 100, 1.0)

    fleet.settled(handles)
    runs = fleet.runs()[before:]
    assert max(run.at_s for run in runs) - min(run.at_s for run in runs) < 3
    assert len({run.pid for run in runs}) == 1


def test_a_blocking_function_does_not_stop_the_loop_of_the_asyncio_pool(fleet: Fleet) -> None:
    """Plain functions go to threads there, so coroutines run beside them."""
    fleet.start(pool="asyncio", slots=4)
    blocking = fleet.send("nap", 4.0)
    fleet.until_runs(1)

    quick = fleet.send("anap", 0.01, "quick")

    assert quick.get(timeout=2) == "quick"
    assert not blocking.ready()


@pytest.mark.parametrize("pool", POOLS)
def test_whatever_a_task_raises_frees_its_slot(fleet: Fleet, pool: str) -> None:
    """sys.exit() in a task ends that task; a slot that died with it would be missing for ever."""
    fleet.start(pool=pool, slots=1)
    fleet.send("add", 1, 1).get(timeout=10)

    for kind in BASES:
        for name in ("raises", "araises"):
            broken = fleet.send(name, kind)
            after = fleet.send("add", 2, 3)
            assert after.get(timeout=5) == 5, kind
            state = until(lambda handle=broken: handle.ready() and handle.state, kind)
            assert state == ("CANCELLED" if kind == "CancelledError" else "FAILURE"), kind

    executors = {run.pid for run in fleet.runs()}
    assert len(executors) == 1


def test_a_failure_names_what_was_raised(fleet: Fleet) -> None:
    """SystemExit must not end the process that waits for the result."""
    fleet.start(slots=1)

    handle = fleet.send("raises", "SystemExit")

    with pytest.raises(TaskFailed) as caught:
        handle.get(timeout=10)
    assert caught.value.remote_type == "SystemExit"


def test_solo_runs_tasks_on_the_main_thread_of_the_one_process(fleet: Fleet) -> None:
    """Debuggers and profilers work where user code runs in the process one started."""
    worker = fleet.start(pool="solo", slots=8)

    pid, _ident, thread = fleet.send("threads").get(timeout=10)

    assert pid == worker.pid
    assert thread == "MainThread"


def test_processes_run_tasks_on_their_main_thread(fleet: Fleet) -> None:
    """Signals, and libraries that insist on the main thread, work as in a script."""
    worker = fleet.start(pool="process", slots=1)

    pid, _ident, thread = fleet.send("threads").get(timeout=10)

    assert pid in worker.children()
    assert thread == "MainThread"


@pytest.mark.parametrize("pool", ["process", "thread", "asyncio"])
def test_nothing_is_left_when_the_hub_is_killed(fleet: Fleet, pool: str) -> None:
    """An orphan that goes on running tasks would run what others were given again."""
    worker = fleet.start(pool=pool, slots=2)
    executors = worker.children()
    assert executors
    running = fleet.send("stubborn", 60)
    fleet.until_runs(1, running.id, 30)

    worker.signal(signal.SIGKILL)
    worker.wait()

    until(lambda: not any(_alive(pid) for pid in executors), "the end of the executors", 30)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie that nobody reaps here is as dead as can be.
    return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
