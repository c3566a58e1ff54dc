"""Tasks that wait, expire, are called off, or are sent twice."""

import time
from datetime import UTC, datetime, timedelta

import pytest
from fleet import POOLS, Fleet, until

from taskq import Signature, TaskCancelled, TaskExpired, chain, outcome
from taskq.body import Embed, encode_call
from taskq.brokers.base import Outgoing
from taskq.ids import new_id
from taskq.message import Message


@pytest.mark.parametrize("countdown", [0.05, 0.4, 1.3, 3.0])
def test_a_countdown_is_never_early(fleet: Fleet, countdown: float) -> None:
    """A reminder before its time is worse than one a little late."""
    fleet.start()
    sent_s = time.time()

    handle = fleet.send("nap", countdown=countdown)

    handle.get(timeout=countdown + 20)
    (run,) = fleet.runs(handle.id)
    assert countdown - 0.001 <= run.at_s - sent_s < countdown + 3


def test_an_eta_is_never_early(fleet: Fleet) -> None:
    """The moment is written with its zone, and holds on every clock."""
    fleet.start()
    moment = datetime.now(UTC) + timedelta(seconds=1.5)

    handle = fleet.send("nap", eta=moment)

    handle.get(timeout=20)
    (run,) = fleet.runs(handle.id)
    assert run.at_s >= moment.timestamp() - 0.001


def test_many_delayed_tasks_run_once_each_and_in_time(fleet: Fleet) -> None:
    """More early tasks than the worker may hold wait on the broker, not in its memory."""
    fleet.start(slots=2)
    sent_s = time.time()

    with fleet.app.batch():
        handles = [fleet.send("nap", countdown=1 + number / 100) for number in range(100)]

    fleet.settled(handles)
    fleet.assert_each_once(handles)
    runs = {run.id: run.at_s for run in fleet.runs()}
    assert all(runs[h.id] >= sent_s + 1 + n / 100 - 0.001 for n, h in enumerate(handles))


def test_a_delayed_task_waits_without_a_worker(fleet: Fleet) -> None:
    """The delay lives in the broker: no worker needs to be alive meanwhile."""
    handle = fleet.send("nap", countdown=1)
    assert handle.state == outcome.PENDING
    time.sleep(1)

    fleet.start()

    handle.get(timeout=20)


def test_a_task_that_comes_too_late_expires(fleet: Fleet) -> None:
    """A code that was valid for a second must not be mailed after an outage."""
    late = fleet.send("nap", expires=0.5)
    in_time = fleet.send("nap", expires=60)
    time.sleep(0.6)

    fleet.start()

    with pytest.raises(TaskExpired):
        late.get(timeout=20)
    in_time.get(timeout=20)
    assert late.state == outcome.EXPIRED
    assert not fleet.runs(late.id)
    assert not fleet.letters()


def test_a_task_cancelled_before_its_start_never_runs(fleet: Fleet) -> None:
    """No worker was alive when it was called off; the word holds all the same."""
    handle = fleet.send("nap")
    assert handle.cancel()
    other = fleet.send("nap")

    fleet.start()

    other.get(timeout=20)
    with pytest.raises(TaskCancelled):
        handle.get(timeout=20)
    assert not fleet.runs(handle.id)
    until(lambda: fleet.ready() == 0, "an empty queue")
    assert not fleet.letters()


def test_a_task_cancelled_while_delayed_never_runs(fleet: Fleet) -> None:
    """What waits in the broker, or early in a worker's hand, is looked at again when due."""
    fleet.start()
    handles = [fleet.send("nap", countdown=wait_s) for wait_s in (0.9, 2.0)]

    for handle in handles:
        handle.cancel()

    fleet.send("nap", countdown=3.0).get(timeout=20)
    states = [handle.state for handle in handles]
    assert states == [outcome.CANCELLED] * 2
    assert not fleet.runs(handles[1].id)


def test_a_task_cancelled_between_two_attempts_is_not_retried(fleet: Fleet) -> None:
    """The cancel is stored with the highest attempt, so no retry comes after it."""
    fleet.start()
    handle = fleet.send("asks_again", 2, 1)
    until(lambda: handle.state == outcome.RETRY, "the retry")

    assert handle.cancel()

    fleet.send("nap", countdown=3.0).get(timeout=20)
    assert handle.state == outcome.CANCELLED
    assert len(fleet.runs(handle.id)) == 1


def test_a_finished_task_cannot_be_cancelled(fleet: Fleet) -> None:
    """A terminal state is final."""
    fleet.start()
    handle = fleet.send("add", 1, 2)
    handle.get(timeout=20)

    assert not handle.cancel()

    assert handle.state == outcome.SUCCESS


def test_a_cancelled_chain_is_cancelled_to_its_end(fleet: Fleet) -> None:
    """Whoever waits for the last step must hear of it."""
    last = fleet.app.send([chain(Signature("add", (1, 1)), Signature("add", (1,)))])[0]
    assert last.parent is not None
    assert last.parent.cancel()

    fleet.start()

    with pytest.raises(TaskCancelled):
        last.get(timeout=20)
    assert last.parent.state == outcome.CANCELLED


@pytest.mark.parametrize("pool", POOLS)
def test_one_id_sent_twice_runs_once(fleet: Fleet, pool: str) -> None:
    """A sender that got no confirm may send again: one outcome."""
    task_id = new_id()
    for _ in range(3):
        fleet.send("nap", 0, "first", task_id=task_id)

    fleet.start(pool=pool, slots=1)

    handle = fleet.app.result(task_id)
    assert handle.get(timeout=20) == "first"
    until(lambda: fleet.ready() == 0, "an empty queue")
    fleet.send("nap", 0, "again", task_id=task_id)
    fleet.send("add", 1, 1).get(timeout=20)
    assert len(fleet.runs(task_id)) == 1
    assert handle.get(timeout=1) == "first"


def test_a_finished_task_delivered_again_sends_on_what_follows(fleet: Fleet) -> None:
    """A worker may die between storing the result and sending the next step."""
    fleet.start(slots=1)
    link = Signature("tell", ("linked",), immutable=True)
    message = encode_call(
        "nap", new_id(), [0, "value"], {}, embed=Embed(callbacks=(link.to_wire(),))
    )
    publish(fleet, message)
    fleet.app.result(message.id).get(timeout=20)
    until(lambda: words(fleet) == ["linked"], "the link")

    publish(fleet, message)

    # Signatures without an id get one when they are sent: the record keeps the message itself,
    # so the second copy has the first one's id, and is recognised.
    until(lambda: fleet.ready() == 0, "an empty queue")
    fleet.send("add", 1, 1).get(timeout=20)
    assert len(fleet.runs(message.id)) == 1
    assert words(fleet) == ["linked"]


def test_what_follows_is_sent_again_when_it_was_lost(fleet: Fleet) -> None:
    """The record holds the follow-ups until they are confirmed, and sends them a second time."""
    fleet.start("-Q", "default", slots=1)
    link = Signature("tell", ("linked",), {}, {"queue": "gone"}, immutable=True)
    message = encode_call(
        "nap", new_id(), [0, "value"], {}, embed=Embed(callbacks=(link.to_wire(),))
    )
    publish(fleet, message)
    until(lambda: fleet.ready("gone") == 1, "the link's message")
    fleet.app.broker.purge("gone")

    publish(fleet, message)

    until(lambda: fleet.ready("gone") == 1, "the link's message again")
    assert len(fleet.runs(message.id)) == 1


def publish(fleet: Fleet, message: Message) -> None:
    assert fleet.app.broker.publish([Outgoing("default", message)], 5) == [None]


def words(fleet: Fleet) -> list[str]:
    return [run.word for run in fleet.runs() if run.word]
