"""Hubs, executors and brokers that die between any two steps of a task's end: nothing is lost."""

import os
import random
import signal
from collections import Counter
from pathlib import Path

import pytest
from conftest import LONG
from fleet import Fleet, until
from servers import RabbitServer
from supervisor import APP

from taskq import Signature, chain
from taskq.results.base import is_terminal
from taskq.torture.campaign import make_random
from taskq.worker.failpoints import BEGUN, EXECUTOR_POINTS, GIVEN, POINTS

_COUNT = 12


@pytest.fixture
def rng() -> random.Random:
    """Decides at which time a point is the end; SEED repeats a run."""
    seed = os.environ.get("SEED")
    made, used = make_random(int(seed) if seed else None)
    print(f"seed {used}")
    return made


def is_stopped(pid: int) -> bool:
    """Return whether a process has been stopped by SIGSTOP."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.parametrize("point", POINTS)
def test_a_death_at_any_point_of_the_settlement_loses_nothing(
    crash_fleet: Fleet, point: str, rng: random.Random
) -> None:
    """What was stored is not run again, and what follows from it is sent all the same."""
    fleet = crash_fleet
    with fleet.app.batch():
        plain = [fleet.send("step", 0.001) for _ in range(_COUNT)]
        dead = [fleet.send("fail_always") for _ in range(3)]
        again = [fleet.send("fail_first") for _ in range(3)]
    steps = [Signature("step", (0.001, 0.001), {}, {}), Signature("step", (), {}, {})]
    chained = fleet.app.send([chain(*steps) for _ in range(3)])
    handles = [*plain, *dead, *again, *chained]
    ids = [handle.id for handle in handles]

    env = {"TASKQ_FAILPOINT": f"{point}:kill:{rng.randint(1, 3)}"}
    doomed = fleet.start(app=APP, slots=2, ready=False, env=env)
    assert doomed.wait(60) == -9, doomed.log()
    store = fleet.app.results
    assert store is not None
    finished = {
        task_id
        for task_id, data in zip(ids, store.fetch(ids), strict=True)
        if data is not None and is_terminal(data)
    }
    ran_before = Counter(run.id for run in fleet.runs() if run.id in finished)
    fleet.start(app=APP, slots=2)

    until(lambda: all(handle.ready() for handle in handles), "the end of every task", 60)
    assert [handle.state for handle in plain + again + chained] == ["SUCCESS"] * (_COUNT + 6)
    assert [handle.state for handle in dead] == ["FAILURE"] * 3
    until(
        lambda: {letter.message.id for letter in fleet.letters()} == {h.id for h in dead},
        "a letter of each failure",
        60,
    )
    ran_after = Counter(run.id for run in fleet.runs() if run.id in finished)
    assert ran_after == ran_before
    until(lambda: fleet.ready() == 0, "the empty queue", 60)


@pytest.mark.parametrize("point", EXECUTOR_POINTS)
def test_the_death_of_an_executor_at_any_point_costs_no_more_than_what_it_ran(
    crash_fleet: Fleet, point: str, rng: random.Random
) -> None:
    """Executor after executor dies there: its task loses an attempt, its neighbours nothing."""
    fleet = crash_fleet
    handles = fleet.send_many("sturdy", 40, 0.005)
    # Work arrives in few portions, and an executor that dies of each first one does none.
    pool = rng.choice(("process", "asyncio"))
    nth = 2 if point == GIVEN else rng.randint(3, 9)

    env = {"TASKQ_FAILPOINT": f"{point}:kill:{nth}"}
    worker = fleet.start(app=APP, pool=pool, slots=2, env=env, ready=False)

    until(lambda: all(handle.ready() for handle in handles), "the end of every task", 90)
    assert {handle.state for handle in handles} == {"SUCCESS"}
    deaths = worker.log().count("executor ended pid=")
    assert deaths
    again = len(fleet.runs()) - len(handles)
    # An executor of the asyncio pool runs two.
    at_once = 1 if pool == "process" else 2
    assert 0 <= again <= deaths * at_once
    if point == BEGUN and pool == "process":
        assert not again
    until(lambda: fleet.ready() == 0, "the empty queue", 60)
    assert fleet.letters() == []


def test_a_broker_that_dies_at_a_point_of_the_settlement_loses_nothing(
    node: RabbitServer, node_fleet: Fleet, rng: random.Random
) -> None:
    """The worker stands still there until the broker is back; then it goes on with what it has."""
    for point in POINTS if LONG else (rng.choice(POINTS),):
        _kill_broker_at(f"{point}:stop:{rng.randint(1, 3)}", node, node_fleet)


def _kill_broker_at(failpoint: str, node: RabbitServer, fleet: Fleet) -> None:
    with fleet.app.batch():
        good = [fleet.send("step", 0.001) for _ in range(_COUNT)]
        good += [fleet.send("fail_first") for _ in range(3)]
        dead = [fleet.send("fail_always") for _ in range(3)]
    env = {"TASKQ_FAILPOINT": failpoint}
    worker = fleet.start(app=APP, slots=2, ready=False, env=env)
    until(lambda: is_stopped(worker.pid), f"the stop at {failpoint}", 60)

    node.kill()
    node.start()
    os.kill(worker.pid, signal.SIGCONT)

    until(lambda: all(h.ready() for h in good + dead), f"the end of all, {failpoint}", 120)
    assert [handle.state for handle in good] == ["SUCCESS"] * len(good)
    assert [handle.state for handle in dead] == ["FAILURE"] * 3
    ids = {handle.id for handle in dead}
    until(lambda: ids <= {letter.message.id for letter in fleet.letters()}, "letters", 60)
    until(lambda: fleet.ready() == 0, "the empty queue", 60)
    assert worker.term(60) == 0, worker.log()
