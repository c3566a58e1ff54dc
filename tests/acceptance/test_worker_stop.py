"""How a worker stops, and what its signals do: nothing lost, nothing run twice, nothing charged."""

import signal
from pathlib import Path

import pytest
from fleet import POOLS, Fleet, until

from taskq import outcome


@pytest.mark.parametrize("pool", POOLS)
def test_every_task_runs_exactly_once_across_a_warm_stop(fleet: Fleet, pool: str) -> None:
    """A deploy stops workers in mid-work; what they held must neither vanish nor run twice."""
    count, slots = (300, 2) if pool != "solo" else (150, 1)
    first = fleet.start(pool=pool, slots=slots)
    handles = fleet.send_many("nap", count, 0.02)
    fleet.until_runs(count // 5)

    code = first.term()

    began = len(fleet.runs())
    fleet.start(pool=pool, slots=slots)
    fleet.settled(handles)
    assert code == 0
    assert began < count, "the first worker finished everything: nothing was shown"
    fleet.assert_each_once(handles)
    assert fleet.ready() == 0
    assert not fleet.letters()


def test_a_worker_that_is_killed_loses_nothing(fleet: Fleet) -> None:
    """After a power cut only what ran at that moment may run again."""
    first = fleet.start(slots=2, env={"TASKQ_LEASE_S": "1"})
    handles = fleet.send_many("nap", 150, 0.02)
    fleet.until_runs(30)

    first.signal(signal.SIGKILL)
    first.wait()

    fleet.start(slots=2, env={"TASKQ_LEASE_S": "1"})
    fleet.settled(handles)
    assert {run.id for run in fleet.runs()} == {handle.id for handle in handles}


@pytest.mark.parametrize("pool", POOLS)
def test_running_tasks_finish_within_the_grace(fleet: Fleet, pool: str) -> None:
    """Half a mail campaign must not be cut off because a node is drained."""
    worker = fleet.start(pool=pool)
    name = "anap" if pool == "asyncio" else "nap"
    handle = fleet.send(name, 1.5, "done")
    fleet.until_runs(1)

    code = worker.term()

    assert code == 0
    assert handle.get(timeout=0) == "done"


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_that_drains_still_answers(fleet: Fleet, pool: str) -> None:
    """Whoever waits for a deployment wants to see what it waits for."""
    worker = fleet.start("--grace", "60", pool=pool, slots=1, app="cancel_app:app")
    released = fleet.directory / "released"
    handle = fleet.send("wait_for_file", str(released))
    fleet.until_runs(1, timeout_s=60)

    worker.signal(signal.SIGTERM)
    worker.until_log("tasks in hand, grace", timeout_s=60)

    def seen() -> bool:
        answers = fleet.app.broker.ask({"command": "active"}, 1.0)
        return any(
            task["id"] == handle.id for answer in answers for task in answer.get("tasks", [])
        )

    until(seen, "the answer of the draining worker", 60)
    assert worker.process.poll() is None
    released.touch()
    assert handle.get(timeout=60) == "done"
    assert worker.wait(60) == 0


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("way", ["QUIT", "INT INT"])
def test_a_cold_stop_requeues_what_runs_without_charging_it(
    fleet: Fleet, pool: str, way: str
) -> None:
    """The worker itself killed them: with max_retries=0 an attempt charged is a task lost."""
    worker = fleet.start(pool=pool, slots=2)
    name = "anap" if pool == "asyncio" else "nap"
    count = 1 if pool == "solo" else 2
    handles = fleet.send_many(name, count, 20)
    fleet.until_runs(count)

    for word in way.split():
        worker.signal(getattr(signal, f"SIG{word}"))
        if way != "QUIT" and word == "INT":
            worker.until_log("signal SIGINT", count=1)
    worker.wait(timeout_s=12)

    fleet.start(pool=pool, slots=2, env={"TASKQ_LEASE_S": "1"})
    runs = fleet.until_runs(2 * count)
    assert {run.id for run in runs} == {handle.id for handle in handles}
    assert {run.attempt for run in runs} == {1}
    assert not fleet.letters()


@pytest.mark.parametrize("pool", POOLS)
def test_after_the_grace_tasks_are_cancelled_and_requeued(fleet: Fleet, pool: str) -> None:
    """A task that overstays must not be killed by the supervisor and counted as lost."""
    worker = fleet.start("--grace", "0.3", pool=pool, slots=2)
    names = ["anap", "nap"] if pool != "solo" else ["nap"]
    handles = [fleet.send(name, 20) for name in names]
    fleet.until_runs(len(names))

    code = worker.term(timeout_s=12)

    fleet.start(pool=pool, slots=2)
    runs = fleet.until_runs(2 * len(names))
    assert code == 0
    assert sorted(run.id for run in runs) == sorted(2 * [handle.id for handle in handles])
    assert {run.attempt for run in runs} == {1}
    assert "grace is over" in worker.log()


@pytest.mark.parametrize("pool", POOLS)
def test_a_task_that_ignores_its_cancellation_is_requeued_all_the_same(
    fleet: Fleet, pool: str
) -> None:
    """Cooperation is asked for, not relied on."""
    worker = fleet.start("--grace", "0.2", pool=pool, slots=1)
    handle = fleet.send("stubborn", 20)
    fleet.until_runs(1)

    code = worker.term(timeout_s=12)

    fleet.start(pool=pool, slots=1)
    fleet.until_runs(2, handle.id)
    assert code == 0
    assert "requeueing 1 tasks that did not stop" in worker.log()
    assert {run.attempt for run in fleet.runs()} == {1}


@pytest.mark.parametrize("pool", ["process", "thread", "asyncio"])
def test_hup_replaces_every_executor_in_mid_work(fleet: Fleet, pool: str) -> None:
    """Fresh executors without a gap: no task lost, none repeated."""
    worker = fleet.start(pool=pool, slots=2)
    handles = fleet.send_many("nap", 150, 0.02)
    fleet.until_runs(30)
    before = set(worker.children())

    worker.signal(signal.SIGHUP)

    fleet.settled(handles)
    until(lambda: not before & set(worker.children()), "the end of the old executors")
    fleet.assert_each_once(handles)
    assert before
    assert worker.term() == 0


def test_tstp_makes_a_worker_quiet_until_it_is_stopped(fleet: Fleet) -> None:
    """An operator drains one node by hand: it takes nothing more, others go on."""
    quiet = fleet.start(slots=1)
    running = fleet.send("nap", 1.0, "kept")
    fleet.until_runs(1)

    quiet.signal(signal.SIGTSTP)
    quiet.until_log("quiet: taking no further tasks")
    later = fleet.send_many("nap", 5)

    assert running.get(timeout=10) == "kept"
    assert len(fleet.runs()) == 1
    fleet.start(slots=1)
    fleet.settled(later)
    assert quiet.process.poll() is None
    assert quiet.term() == 0


@pytest.mark.parametrize("pool", POOLS)
def test_usr1_shows_where_the_hub_and_the_tasks_are(sqlite_fleet: Fleet, pool: str) -> None:
    """Somebody asks why nothing moves: the stack of the user's function is the answer."""
    worker = sqlite_fleet.start(pool=pool, slots=1)
    handle = sqlite_fleet.send("nap", 1.0, "alive")
    sqlite_fleet.until_runs(1)

    worker.signal(signal.SIGUSR1)

    worker.until_log("work_app.py")
    assert "in nap" in worker.log()
    assert handle.get(timeout=10) == "alive"
    assert worker.term() == 0


def test_a_worker_that_is_stopped_while_idle_ends_at_once(fleet: Fleet) -> None:
    """A rolling restart of fifty idle workers should not take fifty graces."""
    worker = fleet.start()

    code = worker.term(timeout_s=5)

    assert code == 0
    assert "stopped" in worker.log()


def test_states_survive_the_stop(fleet: Fleet, tmp_path: Path) -> None:
    """What waits is PENDING, not forgotten, while no worker is there."""
    worker = fleet.start(slots=1)
    worker.term()

    handle = fleet.send("nap")

    assert handle.state == outcome.PENDING
    fleet.start(slots=1)
    handle.get(timeout=10)
    assert handle.state == outcome.SUCCESS
