"""Tasks that must say that they make progress, and limits where neighbours are held up."""

import pytest
from fleet import Fleet, until

from taskq import TimeLimitExceeded, outcome

APP = "cancel_app:app"
PATIENT_S = 60.0


@pytest.mark.parametrize(
    ("pool", "name"), [("process", "silent"), ("thread", "silent"), ("asyncio", "asilent")]
)
def test_a_silent_task_is_stopped(sqlite_fleet: Fleet, pool: str, name: str) -> None:
    """As at its time limit: an attempt, and the dead letter says why."""
    fleet = sqlite_fleet
    fleet.start(pool=pool, slots=1, app=APP)

    handle = fleet.send(name)

    with pytest.raises(TimeLimitExceeded, match="no heartbeat for 1 s"):
        handle.get(timeout=PATIENT_S)
    (letter,) = fleet.until_letters(1, PATIENT_S)
    assert (letter.story["reason"], letter.story["type"]) == ("failed", "TimeLimitExceeded")
    attempts = [1, 2] if name == "silent" else [1]
    assert [run.attempt for run in fleet.runs(handle.id)] == attempts
    assert fleet.send("add", 1, 2).get(timeout=PATIENT_S) == 3


@pytest.mark.parametrize(
    ("pool", "name"),
    [
        ("process", "lively"),
        ("thread", "lively"),
        ("asyncio", "alively"),
        ("solo", "alively"),
    ],
)
def test_a_lively_task_may_take_its_time(sqlite_fleet: Fleet, pool: str, name: str) -> None:
    """Longer than its patience in whole, never between two heartbeats."""
    sqlite_fleet.start(pool=pool, slots=1, app=APP)

    assert sqlite_fleet.send(name, 25).get(timeout=PATIENT_S) == "alive"


def test_a_silent_task_in_solo_ends_the_process(sqlite_fleet: Fleet) -> None:
    """Nobody is left inside to stop it: exit 75 says "start me again"."""
    worker = sqlite_fleet.start(pool="solo", app=APP)

    sqlite_fleet.send("silent")

    assert worker.wait(timeout_s=PATIENT_S) == 75
    assert "no heartbeat for 1 s" in worker.log()


@pytest.mark.parametrize(("pool", "name"), [("asyncio", "aspins"), ("thread", "backtracks")])
def test_neighbours_of_a_task_that_lets_nobody_run_are_freed(
    sqlite_fleet: Fleet, pool: str, name: str
) -> None:
    """It holds the loop, or the interpreter, and only the end of the process frees them."""
    fleet = sqlite_fleet
    worker = fleet.start(pool=pool, slots=3, app=APP)
    before = set(worker.children())
    neighbour = "anap_again" if pool == "asyncio" else "nap_again"
    handles = [fleet.send(neighbour, 1.5) for _ in range(2)]
    fleet.until_runs(2, timeout_s=PATIENT_S)

    handle = fleet.send(name)

    with pytest.raises(TimeLimitExceeded):
        handle.get(timeout=PATIENT_S)
    until(lambda: not before & set(worker.children()), "the replacement", PATIENT_S)
    for each in handles:
        assert each.get(timeout=PATIENT_S) == "well"
    assert fleet.send("add", 1, 2).get(timeout=PATIENT_S) == 3


@pytest.mark.parametrize("name", ["hashes", "backtracks"])
def test_a_process_that_computes_in_c_is_stopped(sqlite_fleet: Fleet, name: str) -> None:
    """Signals wait until the call returns; a kill does not."""
    sqlite_fleet.start(slots=1, app=APP)

    handle = sqlite_fleet.send(name)

    with pytest.raises(TimeLimitExceeded, match="longer than 1 s"):
        handle.get(timeout=PATIENT_S)
    assert sqlite_fleet.send("add", 1, 2).get(timeout=PATIENT_S) == 3


def test_a_soft_limit_stops_a_slow_regular_expression(sqlite_fleet: Fleet) -> None:
    """The engine looks for signals while it backtracks."""
    sqlite_fleet.start(slots=1, app=APP)

    handle = sqlite_fleet.send("backtracks", soft_time_limit=1, time_limit=50)

    until(lambda: handle.state in outcome.TERMINAL, "its end", PATIENT_S)
    assert handle.record().error.type == "SoftTimeLimitExceeded"
    assert len({run.pid for run in sqlite_fleet.runs(handle.id)}) == 1


def test_work_goes_on_behind_a_long_task_that_was_stopped(sqlite_fleet: Fleet) -> None:
    """Consuming pauses while every slot is taken by long work, and must not stay so."""
    sqlite_fleet.start(slots=1, app=APP)
    handle = sqlite_fleet.send("stubborn", 600, time_limit=3)
    sqlite_fleet.until_runs(1, timeout_s=PATIENT_S)

    behind = [sqlite_fleet.send("add", 1, number) for number in range(3)]

    assert sqlite_fleet.settled(behind, PATIENT_S) == [1, 2, 3]
    handle.cancel()
