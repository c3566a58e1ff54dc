"""One message of a key at a time, one success of a key, one effect: on both back ends."""

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet import Fleet, until
from flow_runs import APP, lines, send_raw

from taskq import AlreadyQueued, TaskCancelled, TaskFailed, TaskQ
from taskq.dead.letters import DeadLetters


@pytest.fixture
def sender(fleet: Fleet) -> Iterator[TaskQ]:
    """The app of the tasks, on this fleet's broker: it computes keys and claims them."""
    app = TaskQ("sender", broker=fleet.broker, results=fleet.results)
    app.task(name="until_done", unique="until_done", unique_key="args[0]")(_like)
    app.task(name="until_start", unique="until_start", on_duplicate="raise")(_like_flag)
    app.task(name="window", unique=3600, unique_key="key")(_like)
    app.task(name="debounced", debounce=3.0, unique_key="key")(_like_value)
    app.task(name="brittle", unique="until_done", unique_key="key")(_like_brittle)
    yield app
    app.close()


def _like_brittle(key: str, flag: str) -> None: ...
def _like(key: str, sleep_s: float = 0.0) -> None: ...
def _like_flag(key: str, flag: str = "") -> None: ...
def _like_value(key: str, value: int) -> None: ...


def test_fifty_producers_at_once_have_one_run(fleet: Fleet, sender: TaskQ) -> None:
    """Each asks the store before it sends; all but one get the handle of the one."""
    together = threading.Barrier(50)
    ids: list[str] = []

    def produce() -> None:
        together.wait()
        ids.append(sender.tasks["until_done"].delay("k", 0.2).id)

    threads = [threading.Thread(target=produce) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 50
    assert len(set(ids)) == 1

    fleet.start(pool="thread", slots=4, app=APP)
    sender.result(ids[0]).get(timeout=60)

    assert len(lines(fleet, "k")) == 1
    again = sender.tasks["until_done"].delay("k")
    assert again.id != ids[0]
    again.get(timeout=30)
    assert len(lines(fleet, "k")) == 2


def test_raw_messages_of_one_key_have_one_run(fleet: Fleet) -> None:
    """Who claims nothing when it sends is asked when its message arrives."""
    ids = [f"raw-{number}" for number in range(5)]
    for task_id in ids:
        send_raw(fleet, "until_done", "k", 1.0, task_id=task_id)
    fleet.start(pool="thread", slots=5, app=APP)

    ends = []
    for task_id in ids:
        try:
            fleet.app.result(task_id).get(timeout=60)
            ends.append("ran")
        except TaskCancelled:
            ends.append("duplicate")

    assert len(lines(fleet, "k")) == ends.count("ran")
    assert ends.count("ran") < 5


def test_a_batch_and_send_many_know_their_own_duplicates(fleet: Fleet, sender: TaskQ) -> None:
    """The second of a list finds the first one's claim."""
    task = sender.tasks["window"]

    handles = sender.send_many([task.s("x"), task.s("y"), task.s("x")])
    with sender.batch():
        more = [task.delay("x"), task.delay("z")]

    assert handles[0].id == handles[2].id == more[0].id
    fleet.start(app=APP)
    for handle in (*handles, *more):
        handle.get(timeout=40)
    assert sorted(line.key for line in lines(fleet)) == ["x", "y", "z"]
    assert task.delay("x").id == handles[0].id


def test_a_second_call_can_be_an_error_until_the_first_one_starts(
    fleet: Fleet, sender: TaskQ, tmp_path: Path
) -> None:
    """`until_start`: what changes during the run deserves another run."""
    task, flag = sender.tasks["until_start"], str(tmp_path / "go")
    first = task.delay("k", flag)
    with pytest.raises(AlreadyQueued) as caught:
        task.delay("k", flag)
    assert caught.value.task_id == first.id

    fleet.start(pool="thread", slots=2, app=APP)
    until(lambda: lines(fleet, "k"), "the start", 40)
    second = task.delay("k", flag)
    Path(flag).touch()

    first.get(timeout=30)
    second.get(timeout=30)


def test_a_cancelled_or_failed_claim_is_free_again(fleet: Fleet, sender: TaskQ) -> None:
    """A task that never ran must not keep its key for a day."""
    task = sender.tasks["until_done"]
    first = task.delay("k")
    assert first.cancel()
    fleet.start(app=APP)

    def sent_again() -> Any:
        handle = task.delay("k")
        return handle if handle.id != first.id else None

    until(sent_again, "a new message of the key", 40).get(timeout=30)

    assert len(lines(fleet, "k")) == 1


def test_a_replayed_letter_of_a_unique_task_is_a_call_like_any_other(
    fleet: Fleet, sender: TaskQ, tmp_path: Path
) -> None:
    """It runs when its key is free, and is the duplicate when another call is queued."""
    task, flag = sender.tasks["brittle"], str(tmp_path / "go")
    first = task.delay("k", flag)
    worker = fleet.start(app=APP)
    until(fleet.letters, "the dead letter", 40)
    worker.term()
    second = task.delay("k", flag)
    assert second.id != first.id
    Path(flag).touch()
    letters = DeadLetters(sender.broker, sender.results)

    assert list(letters.replay(letters.choose())) == [first.id]
    fleet.start(app=APP)

    assert second.get(timeout=60) == "done"
    with pytest.raises(TaskCancelled):
        first.get(timeout=60)
    assert [line.id for line in lines(fleet, "k")] == [first.id, second.id]


def test_the_latest_arguments_of_a_debounced_task_run(fleet: Fleet, sender: TaskQ) -> None:
    """The earlier calls end as cancelled, in favour of the last."""
    fleet.start(pool="thread", slots=4, app=APP)
    task = sender.tasks["debounced"]
    handles = sender.send_many([task.s("k", number) for number in range(5)])

    assert handles[-1].get(timeout=60) == 4
    ran = 0
    for handle in handles:
        try:
            handle.get(timeout=40)
            ran += 1
        except TaskCancelled:
            pass

    assert ran < 5
    # Earlier ones may have run before the later calls came, on a slow machine, and never after.
    found = [int(line.word) for line in lines(fleet, "k")]
    assert len(found) == ran
    assert found == sorted(found)
    assert found[-1] == 4


def test_one_call_of_an_idempotency_key_succeeds(fleet: Fleet) -> None:
    """The others get its value; a failed one leaves the key to the next."""
    fleet.start(pool="thread", slots=4, app=APP)
    failed = fleet.app.send_task("pay", (), {"order": "7", "fails": True})
    with pytest.raises(TaskFailed):
        failed.get(timeout=40)

    first = fleet.app.send_task("pay", (), {"order": "7"})
    value = first.get(timeout=40)
    others = [fleet.app.send_task("pay", (), {"order": "7"}) for _ in range(3)]

    assert value == f"paid by {first.id}"
    assert [handle.get(timeout=40) for handle in others] == [value] * 3
    assert [line.word for line in lines(fleet, "7")] == ["start"] * 2


def test_a_call_may_bring_its_own_idempotency_key(fleet: Fleet) -> None:
    """As a payment service's clients do; the task need not declare any."""
    fleet.start(pool="thread", slots=4, app=APP)

    handles = [
        fleet.app.send_task("plain", (str(number),), idempotency_key="order-1")
        for number in range(4)
    ]

    assert len({handle.get(timeout=40) for handle in handles}) == 1
    assert len(lines(fleet)) == 1


def test_an_effect_happens_once_though_the_task_runs_three_times(
    sqlite_fleet: Fleet, tmp_path: Path
) -> None:
    """The process dies after its commit and before anybody hears of it, twice."""
    sqlite_fleet.start(slots=1, app=APP)

    handle = sqlite_fleet.send("charge", str(tmp_path / "bank.db"), 10)

    assert handle.get(timeout=60) == "charged"
    assert len(lines(sqlite_fleet)) == 3
    db = sqlite3.connect(tmp_path / "bank.db")
    assert db.execute("SELECT amount FROM bookings").fetchall() == [(10,)]
    db.close()
