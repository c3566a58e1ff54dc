"""Cancels by id, workflow, name and header: before the start, while delayed, while running."""

from pathlib import Path

import pytest
from fleet import Fleet, until

from taskq import ConfigError, Signature, TaskCancelled, TaskQ, chain, outcome
from taskq.errors import ResultsDisabled

APP = "cancel_app:app"
SOON = {"TASKQ_CANCEL_GRACE_S": "0.3"}
PATIENT_S = 60.0


def is_cancelled(fleet: Fleet, task_id: str) -> bool:
    return fleet.app.result(task_id).state == outcome.CANCELLED


def nothing_runs(fleet: Fleet) -> bool:
    return not any(answer["tasks"] for answer in fleet.app.broker.ask({"command": "active"}, 1.0))


def test_a_name_is_cancelled_with_no_worker_alive(fleet: Fleet) -> None:
    """What waits and what is delayed; what is sent afterwards runs."""
    waiting = [fleet.send("nap") for _ in range(3)]
    delayed = fleet.send("nap", countdown=3)
    other = fleet.send("tell", "other")

    fleet.app.cancel_all(task="nap")

    after = fleet.send("nap", 0, "after")
    fleet.start()
    assert after.get(timeout=PATIENT_S) == "after"
    assert other.get(timeout=PATIENT_S) == "other"
    for handle in [*waiting, delayed]:
        with pytest.raises(TaskCancelled):
            handle.get(timeout=PATIENT_S)
    assert {run.id for run in fleet.runs()} == {after.id, other.id}
    until(lambda: fleet.ready() == 0, "an empty queue", PATIENT_S)
    assert not fleet.letters()


def test_a_task_delayed_for_a_day_is_cancelled_now(fleet: Fleet) -> None:
    """Its state says so at once, and whoever waits for it hears of it."""
    handle = fleet.send("nap", countdown=86400)

    assert handle.cancel()
    assert handle.cancel(), "it still is"

    assert handle.state == outcome.CANCELLED
    with pytest.raises(TaskCancelled):
        handle.get(timeout=PATIENT_S)


def test_a_header_is_cancelled(fleet: Fleet) -> None:
    """`headers={"tenant": "acme"}`: all work of one customer."""
    acme = [fleet.send("nap", headers={"tenant": "acme", "n": number}) for number in range(3)]
    other = fleet.send("nap", 0, "kept", headers={"tenant": "other"})
    third = fleet.send("nap", 0, "third", headers={"tenant": "acme", "n": 7})

    fleet.app.cancel_all(headers={"tenant": "acme", "n": 1})

    fleet.start()
    assert fleet.settled([other, third], PATIENT_S) == ["kept", "third"]
    with pytest.raises(TaskCancelled):
        acme[1].get(timeout=PATIENT_S)
    assert [handle.get(timeout=PATIENT_S) for handle in (acme[0], acme[2])] == [None, None]


def test_a_workflow_is_cancelled_with_what_it_still_sends(fleet: Fleet) -> None:
    """Later steps and children belong to it, whenever they are sent."""
    steps = chain(Signature("nap", (0, 1)), Signature("add", (1,)), Signature("tell", ()))
    last = fleet.app.send([steps])[0]
    assert last.parent is not None
    assert last.parent.parent is not None
    first = last.parent.parent
    other = fleet.send("nap", 0, "other")

    fleet.app.cancel_all(root_id=first.id)

    fleet.start()
    assert other.get(timeout=PATIENT_S) == "other"
    for handle in (last, last.parent, first):
        with pytest.raises(TaskCancelled):
            handle.get(timeout=PATIENT_S)
    assert {run.id for run in fleet.runs()} == {other.id}


def test_a_dry_run_changes_nothing(fleet: Fleet) -> None:
    """The embedded broker counts what waits exactly; RabbitMQ cannot look into its queues."""
    handles = [fleet.send("nap") for _ in range(3)] + [fleet.send("nap", countdown=3600)]
    fleet.send("tell", "other")
    handles[0].cancel()

    counted = fleet.app.cancel_all(task="nap", dry_run=True)

    exact = fleet.broker.startswith("sqlite")
    assert counted.waiting == (3 if exact else None)
    assert (counted.running, counted.held, counted.workers) == (0, 0, 0)
    fleet.start()
    assert fleet.settled(handles[1:3], PATIENT_S) == [None, None]


RUNNING = [
    *[(pool, "listens") for pool in ("process", "thread", "asyncio", "solo")],
    *[(pool, "alistens") for pool in ("process", "thread", "asyncio", "solo")],
]


@pytest.mark.parametrize(("pool", "name"), RUNNING)
def test_a_running_task_is_told(sqlite_fleet: Fleet, pool: str, name: str) -> None:
    """At its checkpoint, or as a cancelled coroutine; its executor lives on."""
    fleet = sqlite_fleet
    fleet.start(pool=pool, slots=1, app=APP)
    handle = fleet.send(name)
    (run,) = fleet.until_runs(1, timeout_s=PATIENT_S)
    until(lambda: handle.state == outcome.STARTED, "its start", PATIENT_S)

    assert handle.cancel()

    until(lambda: [run.word for run in fleet.runs(handle.id)] == ["", "told"], "the end", PATIENT_S)
    with pytest.raises(TaskCancelled):
        handle.get(timeout=PATIENT_S)
    assert fleet.send("threads").get(timeout=PATIENT_S)[0] == run.pid
    until(lambda: nothing_runs(fleet), "a free worker", PATIENT_S)
    assert handle.state == outcome.CANCELLED
    assert not fleet.letters()


def test_running_tasks_of_a_name_are_told(fleet: Fleet) -> None:
    """The rule reaches what runs, too, and is counted."""
    fleet.start(slots=2, app=APP)
    handles = [fleet.send("listens") for _ in range(2)]
    fleet.until_runs(2, timeout_s=PATIENT_S)

    counted = fleet.app.cancel_all(task="listens")

    assert (counted.running, counted.workers) == (2, 1)
    for handle in handles:
        with pytest.raises(TaskCancelled):
            handle.get(timeout=PATIENT_S)
    until(lambda: nothing_runs(fleet), "free slots", PATIENT_S)
    again = fleet.send("listens")
    fleet.until_runs(1, again.id, timeout_s=PATIENT_S)
    assert again.state != outcome.CANCELLED


def test_a_running_task_is_reached_without_a_word_to_the_worker(fleet: Fleet) -> None:
    """The control path may be closed: the worker looks at what is stored by itself."""
    fleet.start(slots=1, app=APP)
    handle = fleet.send("listens")
    fleet.until_runs(1, timeout_s=PATIENT_S)
    store = fleet.app.results
    assert store is not None

    quiet = TaskQ("quiet", broker="memory://elsewhere", results=fleet.results)
    assert quiet.cancel(handle.id)
    quiet.close()

    until(lambda: [r.word for r in fleet.runs(handle.id)] == ["", "told"], "the end", PATIENT_S)


FORCED = [
    *[(pool, "deaf") for pool in ("process", "thread", "asyncio", "solo")],
    *[(pool, "adeaf") for pool in ("process", "thread", "asyncio")],
    ("thread", "stubborn"),
]


@pytest.mark.parametrize(("pool", "name"), FORCED)
def test_a_task_that_does_not_listen_is_stopped(sqlite_fleet: Fleet, pool: str, name: str) -> None:
    """After the grace TaskCancelled is raised in it, and a second later it is ended."""
    fleet = sqlite_fleet
    fleet.start(pool=pool, slots=1, app=APP, env=SOON)
    arguments = (600,) if name == "stubborn" else ()
    handle = fleet.send(name, *arguments)
    fleet.until_runs(1, timeout_s=PATIENT_S)

    assert handle.cancel()

    assert fleet.send("add", 1, 2).get(timeout=PATIENT_S) == 3
    assert handle.state == outcome.CANCELLED
    assert [run.attempt for run in fleet.runs(handle.id) if not run.word] == [1]
    if name == "deaf":
        assert fleet.runs(handle.id)[-1].word == "forced"
    assert not fleet.letters()


def test_a_task_in_hand_that_has_not_started_never_does(fleet: Fleet) -> None:
    """The worker holds it behind a long one, where a record alone would not be looked at again."""
    fleet.start("--prefetch", "4", slots=1, app=APP)
    first = fleet.send("listens")
    fleet.until_runs(1, first.id, timeout_s=PATIENT_S)
    behind = [fleet.send("nap", 0, number) for number in range(3)]

    assert behind[1].cancel()
    fleet.app.cancel_all(task="nap", headers={"x": "y"})
    until(lambda: is_cancelled(fleet, behind[1].id), "the record", PATIENT_S)
    first.cancel()

    assert [behind[at].get(timeout=PATIENT_S) for at in (0, 2)] == [0, 2]
    assert not fleet.runs(behind[1].id)


def test_a_step_that_ends_after_its_cancel_takes_its_chain_along(fleet: Fleet) -> None:
    """It returned a value, but its record says CANCELLED: nobody may wait for the next step."""
    fleet.start(slots=1, app=APP, env={"TASKQ_CANCEL_GRACE_S": "600"})
    steps = chain(Signature("finishes", (1, "")), Signature("add", (1,)), Signature("tell", ()))
    last = fleet.app.send([steps])[0]
    assert last.parent is not None
    first = last.parent.parent
    assert first is not None
    fleet.until_runs(1, first.id, timeout_s=PATIENT_S)

    first.cancel()

    with pytest.raises(TaskCancelled):
        last.get(timeout=PATIENT_S)
    states = {handle.state for handle in (first, last.parent, last)}
    assert states == {outcome.CANCELLED}
    assert {run.id for run in fleet.runs()} == {first.id}


def test_what_cannot_be_cancelled_is_said(sqlite_fleet: Fleet, tmp_path: Path) -> None:
    """Nothing changes for a finished task, an unknown one, or where no store remembers."""
    fleet = sqlite_fleet
    fleet.start()
    done = fleet.send("add", 1, 2)
    assert done.get(timeout=PATIENT_S) == 3

    assert not done.cancel()
    assert not fleet.app.cancel("never-seen")

    assert done.state == outcome.SUCCESS
    assert fleet.app.result("never-seen").state == outcome.UNKNOWN
    with pytest.raises(ConfigError, match="nothing says what"):
        fleet.app.cancel_all()
    with pytest.raises(ConfigError, match="ttl_s"):
        fleet.app.cancel_all(task="add", ttl_s=0)
    with TaskQ("off", broker=f"sqlite:///{tmp_path}/off.db", results="off") as app:
        for refused in (lambda: app.cancel("x"), lambda: app.cancel_all(task="x")):
            with pytest.raises(ResultsDisabled):
                refused()
