"""A task that takes its whole worker with it: bounded by its own retries, neighbours untouched."""

import pytest
from fleet import Fleet
from supervisor import keep_running

from taskq import TaskFailed


def test_a_task_that_kills_its_worker_is_given_up_after_its_attempts(crash_fleet: Fleet) -> None:
    """Nobody but the store can count: each hub that could have counted is dead."""
    before = crash_fleet.send_many("step", 15, 0.005)
    poison = crash_fleet.send("kill_hub")
    behind = crash_fleet.send_many("step", 15, 0.005)
    handles = [*before, *behind]

    keep_running(
        crash_fleet,
        lambda: poison.state == "FAILURE" and all(h.state == "SUCCESS" for h in handles),
        "the end of all tasks",
    )

    assert len(crash_fleet.runs(poison.id)) == 3  # max_retries=2
    with pytest.raises(TaskFailed) as caught:
        poison.get(timeout=30)
    assert caught.value.remote_type == "WorkerLost"
    (letter,) = crash_fleet.until_letters(1, 30)
    assert letter.message.id == poison.id
    assert letter.story["reason"] == "worker_lost"
    assert letter.story["attempts"] == 3


@pytest.mark.parametrize("crash_fleet", ["sqlite"], indirect=True)
def test_a_task_survives_fewer_deaths_than_it_has_attempts(crash_fleet: Fleet) -> None:
    """The run that at last goes well knows how many were lost, and its result is kept."""
    handle = crash_fleet.send("kill_hub", 2)

    keep_running(crash_fleet, lambda: handle.state == "SUCCESS", "the result")

    assert len(crash_fleet.runs(handle.id)) == 3
    # The first delivery's start is counted by nobody, so one of the two deaths is certain.
    assert handle.get(timeout=30) == 1
    assert crash_fleet.letters() == []


@pytest.mark.parametrize("crash_fleet", ["rabbitmq"], indirect=True)
def test_without_retries_a_start_that_was_recorded_is_the_only_one(crash_fleet: Fleet) -> None:
    """STARTED is stored after a fifth of a second; from there on one start is certain."""
    handle = crash_fleet.send("kill_hub_once", 1.5)

    keep_running(crash_fleet, lambda: handle.state == "FAILURE", "the failure")

    assert len(crash_fleet.runs(handle.id)) == 1
    (letter,) = crash_fleet.until_letters(1, 30)
    assert letter.story["reason"] == "worker_lost"
