"""Rate and concurrency limits, across workers, on both back ends."""

import os
import signal
import time
from pathlib import Path

import pytest
from fleet import Fleet, until
from flow_runs import APP, lines, most_at_once, send_raw

from taskq import TaskFailed
from taskq.results.base import attempt_of


def test_eight_workers_together_stay_below_one_rate(fleet: Fleet) -> None:
    """A limit per worker would be eight times too much, and one that starves none at all."""
    workers = [fleet.start(pool="solo", slots=1, app=APP, ready=False) for _ in range(8)]
    for worker in workers:
        worker.until_log("consuming queues=", timeout_s=120)
    sent_s = time.time()
    handles = fleet.send_many("ten", 60, 1)

    fleet.settled(handles, timeout_s=120)
    starts = [line.at_s for line in lines(fleet)]

    assert len(starts) == 60
    # A start may come later than its token, never before it: one burst, then ten a second.
    early = [at for at, start_s in enumerate(starts) if start_s < sent_s + (at - 5) / 10]
    assert not early, [round(start_s - sent_s, 2) for start_s in starts]


def test_what_waits_for_a_rate_is_in_the_broker_and_spends_no_attempt(fleet: Fleet) -> None:
    """A worker that kept the rest in its memory would lose its place, and starve other tasks."""
    fleet.start(app=APP)
    handles = fleet.send_many("ten", 40, 1)

    other = fleet.send("plain", "x")
    assert other.get(timeout=30) == "x"
    until(lambda: fleet.app.broker.due_within(60) > 0, "a delayed message", 30)
    fleet.settled(handles, timeout_s=60)

    assert {record_attempt(fleet, handle.id) for handle in handles} == {0}


def record_attempt(fleet: Fleet, task_id: str) -> int:
    store = fleet.app.results
    assert store is not None
    data = store.fetch([task_id])[0]
    assert data is not None
    return attempt_of(data)


def test_each_key_has_a_rate_of_its_own(fleet: Fleet) -> None:
    """One loud customer must not use up the calls of a quiet one."""
    fleet.start(app=APP)
    loud = [fleet.app.send_task("ten_each", (), {"who": "loud"}) for _ in range(100)]
    quiet = [fleet.app.send_task("ten_each", (), {"who": "quiet"}) for _ in range(5)]

    fleet.settled(quiet, timeout_s=60)
    waiting = [handle for handle in loud if handle.state != "SUCCESS"]

    assert waiting


def test_so_many_of_a_key_run_at_once_in_all_workers(fleet: Fleet) -> None:
    """And the keys take turns: who comes later does not wait for the whole line before."""
    for _ in range(2):
        fleet.start(pool="thread", slots=4, app=APP)
    many = fleet.send_many("three", 60, "many")
    few = fleet.send_many("three", 4, "few")

    fleet.settled(few + many, timeout_s=120)
    found = lines(fleet)

    most = most_at_once(found)
    assert most["many"] <= 3
    assert most["few"] <= 3
    last = {line.key: line.at_s for line in found}
    assert last["few"] < last["many"]


def test_keys_take_turns_when_there_are_fewer_executors_than_keys(fleet: Fleet) -> None:
    """Sent tenant after tenant: whoever came first must not be served to its end first."""
    tenants = [f"tenant-{number}" for number in range(6)]
    handles = [handle for tenant in tenants for handle in fleet.send_many("turns", 15, tenant)]
    fleet.start(pool="thread", slots=2, app=APP)

    fleet.settled(handles, timeout_s=180)
    order = [line.key for line in lines(fleet) if line.word == "start"]
    # One after the other, the last ones would come after 75 starts.
    assert set(order[:30]) == set(tenants), order
    assert most_at_once(lines(fleet)) == dict.fromkeys(tenants, 1)


def test_the_slot_of_a_killed_worker_comes_back(fleet: Fleet, tmp_path: Path) -> None:
    """Its lease ends; the other tasks of the key go on."""
    lease = {"TASKQ_LEASE_S": "2"}
    first = fleet.start(slots=1, app=APP, env=lease)
    hanging = fleet.send("one", str(tmp_path / "flag"))
    until(lambda: lines(fleet), "the first start", 30)
    others = fleet.send_many("one", 2, "")
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()

    fleet.start(slots=2, app=APP, env=lease)

    fleet.settled([hanging, *others], timeout_s=90)
    ended = {line.id for line in lines(fleet) if line.word == "end"}
    assert ended == {handle.id for handle in (hanging, *others)}


def test_a_message_without_keys_gets_them_from_the_executor(fleet: Fleet) -> None:
    """Celery's senders know nothing of the header; the limit holds for their messages too."""
    fleet.start(pool="thread", slots=6, app=APP)
    ids = [f"raw-{number}" for number in range(12)]
    for number, task_id in enumerate(ids):
        send_raw(fleet, "three", f"t{number % 2}", task_id=task_id)

    fleet.settled([fleet.app.result(task_id) for task_id in ids], timeout_s=60)

    assert set(most_at_once(lines(fleet)).values()) <= {1, 2, 3}
    assert len(lines(fleet)) == 24


def test_a_key_that_cannot_be_made_is_a_failure_of_its_message_alone(fleet: Fleet) -> None:
    """It would fail the next time too; the worker lives and the others run."""
    worker = fleet.start(app=APP)
    send_raw(fleet, "picky", {"name": "no id"}, task_id="odd-key")

    with pytest.raises(TaskFailed):
        fleet.app.result("odd-key").get(timeout=40)
    assert fleet.send("plain", "y").get(timeout=30) == "y"
    (letter,) = until(fleet.letters, "the dead letter", 30)

    assert (letter.story["reason"], letter.story["type"]) == ("failed", "KeyExpressionFailed")
    assert worker.process.poll() is None


@pytest.mark.parametrize("broker", ["rabbitmq", "sqlite"])
def test_limits_without_a_store_are_refused_at_start(
    broker: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Counted in each worker by itself they would be no limits; this must not wait for a task."""
    url = f"sqlite:///{tmp_path}/q.db"
    if broker == "rabbitmq":
        url = request.getfixturevalue("rabbitmq_url")
    fleet = Fleet(tmp_path, url, "off")

    worker = fleet.start(app=APP, ready=False)

    assert worker.wait(120) == 78
    assert "results store" in worker.log()
    assert "TASKQ_RESULTS" in worker.log()
    assert "Traceback" not in worker.log()
