"""What becomes of tasks that fail: retries, final failures, dead letters."""

import pytest
from fleet import POOLS, Fleet, until

from taskq import TaskFailed, outcome
from taskq.message import HISTORY


@pytest.mark.parametrize("pool", POOLS)
def test_a_task_that_fails_at_first_succeeds_in_the_end(fleet: Fleet, pool: str) -> None:
    """Retries are what turns a short outage into a delay."""
    fleet.start(pool=pool)

    handle = fleet.send("flaky", 3)

    assert handle.get(timeout=20) == 3
    assert [run.attempt for run in fleet.runs(handle.id)] == [1, 2, 3, 4]
    assert not fleet.letters()


def test_waits_between_attempts_follow_the_policy(fleet: Fleet) -> None:
    """The policy says 0.2 s, then 0.4 s: never sooner, and not much later."""
    fleet.start()

    handle = fleet.send("fail")

    with pytest.raises(TaskFailed):
        handle.get(timeout=20)
    first, second, third = (run.at_s for run in fleet.runs(handle.id))
    assert 0.199 <= second - first < 2
    assert 0.399 <= third - second < 2


def test_a_waiting_retry_can_be_seen(fleet: Fleet) -> None:
    """`taskq result` of a task between two attempts says so, and why."""
    fleet.start()

    handle = fleet.send("asks_again", 2, 1)

    until(lambda: handle.state == outcome.RETRY, "the state RETRY")
    record = handle.record()
    assert record is not None
    assert record.attempt == 1
    assert record.error is not None
    assert record.error.type == "KeyError"
    assert handle.get(timeout=20) == 1
    first, second = (run.at_s for run in fleet.runs(handle.id))
    assert second - first >= 1.999


def test_a_task_may_widen_its_own_bound(fleet: Fleet) -> None:
    """`self.retry(max_retries=3)` counts more than the declaration's one."""
    fleet.start()

    handle = fleet.send("asks_again", 0, 3, 3)

    assert handle.get(timeout=20) == 3


def test_self_retry_is_bounded_too(fleet: Fleet) -> None:
    """A task that always asks again would circle for ever."""
    fleet.start()

    handle = fleet.send("asks_again", 0, 99)

    with pytest.raises(TaskFailed) as caught:
        handle.get(timeout=20)
    assert caught.value.remote_type == "KeyError"
    assert len(fleet.runs(handle.id)) == 2


def test_an_exception_may_say_when_to_come_back(fleet: Fleet) -> None:
    """A server that asks for a second's pause (Retry-After) gets it."""
    fleet.start()

    handle = fleet.send("busy")

    handle.get(timeout=20)
    first, second = (run.at_s for run in fleet.runs(handle.id))
    assert second - first >= 0.999


def test_a_task_gives_up_at_its_maximum_age(fleet: Fleet) -> None:
    """Fifty attempts were allowed, half a second was not."""
    fleet.start()

    handle = fleet.send("old")

    with pytest.raises(TaskFailed):
        handle.get(timeout=20)
    runs = fleet.runs(handle.id)
    assert 2 <= len(runs) <= 20
    assert runs[-1].at_s - runs[0].at_s < 3


def test_an_exception_of_the_dead_kind_is_not_retried(fleet: Fleet) -> None:
    """A malformed address does not get better by waiting."""
    fleet.start()

    handle = fleet.send("not_retried")

    with pytest.raises(ValueError, match="never again"):
        handle.get(timeout=20)
    assert len(fleet.runs(handle.id)) == 1


@pytest.mark.parametrize("pool", POOLS)
def test_a_final_failure_leaves_a_letter_that_tells_the_story(fleet: Fleet, pool: str) -> None:
    """Whoever reads it at nine in the morning has nothing else to go by."""
    worker = fleet.start("-n", "north", pool=pool)

    handle = fleet.send("fail", "no stock", headers={"x-tenant": "blue"}, queue="elsewhere")

    with pytest.raises(ValueError, match="no stock") as caught:
        handle.get(timeout=20)
    (letter,) = fleet.until_letters(1)
    story, message = letter.story, letter.message
    assert message.id == handle.id
    assert message.task == "fail"
    assert message.headers["x-tenant"] == "blue"
    assert story["reason"] == "failed"
    assert story["queue"] == "elsewhere"
    assert story["attempts"] == 3
    assert story["worker"] == "north"
    assert (story["module"], story["type"], story["message"]) == (
        "builtins",
        "ValueError",
        "no stock",
    )
    assert [item[0] for item in message.headers[HISTORY]] == [1, 2]
    assert [item[2:] for item in message.headers[HISTORY]] == [["ValueError", "no stock"]] * 2
    assert isinstance(caught.value, TaskFailed)
    assert worker.process.poll() is None


@pytest.mark.parametrize("name", ["fail", "afail"])
@pytest.mark.parametrize("pool", POOLS)
def test_a_traceback_begins_in_the_users_function(
    sqlite_fleet: Fleet, pool: str, name: str
) -> None:
    """Frames of the machinery above it would be the first thing that everybody skips."""
    sqlite_fleet.start(pool=pool, slots=1)

    handle = sqlite_fleet.send(name)

    with pytest.raises(TaskFailed) as caught:
        handle.get(timeout=20)
    lines = [line for line in caught.value.traceback.splitlines() if line.startswith("  File")]
    assert [line.rpartition(" ")[2] for line in lines] == [name, "deep_inside"]
    assert all("work_app.py" in line for line in lines)


def test_a_task_that_wants_no_letter_leaves_none(fleet: Fleet) -> None:
    """`dead_letter=False` is for tasks whose failure nobody will read about."""
    fleet.start()

    handle = fleet.send("fail_quietly")

    with pytest.raises(ValueError, match="no letter"):
        handle.get(timeout=20)
    # A letter would be confirmed before the acknowledgement, so this task's would be first.
    fleet.send("not_retried")
    (letter,) = fleet.until_letters(1)
    assert letter.message.task == "not_retried"


@pytest.mark.parametrize("pool", POOLS)
def test_a_result_that_cannot_be_written_is_a_failure(fleet: Fleet, pool: str) -> None:
    """The task ran; running it again would not make its value any more writable."""
    fleet.start(pool=pool)

    handle = fleet.send("unencodable")

    with pytest.raises(TaskFailed) as caught:
        handle.get(timeout=20)
    assert caught.value.remote_type == "EncodeError"
    assert len(fleet.runs(handle.id)) == 1
    (letter,) = fleet.until_letters(1)
    assert (letter.story["reason"], letter.story["type"]) == ("failed", "EncodeError")


def test_a_rejected_message_becomes_a_letter_at_once(fleet: Fleet) -> None:
    """Reject is the task's own word: no retry, whatever the policy says."""
    fleet.start()

    handle = fleet.send("reject")

    with pytest.raises(TaskFailed):
        handle.get(timeout=20)
    (letter,) = fleet.until_letters(1)
    assert (letter.story["reason"], letter.story["message"]) == ("rejected", "not for me")
    assert letter.story["attempts"] == 1
    assert len(fleet.runs(handle.id)) == 1


def test_a_message_rejected_with_requeue_comes_again_uncharged(fleet: Fleet, tmp_path) -> None:
    """Not me, not now: back to the queue, at once, without an attempt spent."""
    fleet.start()

    handle = fleet.send("reject", str(tmp_path), True)

    assert handle.get(timeout=20) == "accepted"
    assert [run.attempt for run in fleet.runs(handle.id)] == [1, 1]
    assert not fleet.letters()


def test_an_ignored_task_ends_without_a_state(fleet: Fleet) -> None:
    """Ignore stores nothing and leaves nothing behind; the message is gone all the same."""
    worker = fleet.start("-l", "debug", slots=1)

    handle = fleet.send("ignore")

    worker.until_log("ignored task=ignore")
    assert fleet.send("add", 1, 2).get(timeout=10) == 3
    assert handle.state not in outcome.TERMINAL
    assert worker.term() == 0
    assert fleet.ready() == 0
    assert not fleet.letters()
    assert len(fleet.runs(handle.id)) == 1
