"""Deadlines that pass while tasks run, wait, are retried, or have children."""

import pytest
from fleet import Fleet, until

from taskq import TaskExpired, chain, outcome


def test_a_running_task_is_told_at_its_deadline(fleet: Fleet) -> None:
    """It is not retried, leaves no dead letter, and nobody waits for it any longer."""
    fleet.start()

    handle = fleet.send("until_told", deadline=2.0)

    with pytest.raises(TaskExpired):
        handle.get(timeout=40)
    runs = fleet.runs(handle.id)
    assert [run.word for run in runs] == ["", "soft"]
    assert fleet.letters() == []


def test_a_task_that_does_not_listen_is_stopped(sqlite_fleet: Fleet) -> None:
    """Some seconds after the deadline, from outside; the worker goes on."""
    sqlite_fleet.start(slots=1)

    handle = sqlite_fleet.send("stubborn", 60, deadline=1.0)

    with pytest.raises(TaskExpired):
        handle.get(timeout=40)
    assert sqlite_fleet.send("add", 2, 3).get(timeout=40) == 5


def test_a_chain_that_waited_too_long_never_starts(fleet: Fleet) -> None:
    """All its steps end, so that whoever waits for the last one hears of it."""
    app = fleet.app
    steps = [app.task(name=name)(lambda *_: None) for name in ("nap", "tell")]
    first, last = steps
    handle = app.send([chain(first.si().set(deadline=0.5), last.si("x"))])[0]
    until(lambda: handle.parent is not None, "a handle of the first step")

    fleet.app.pauses.pause_queue("default", for_s=1.0)
    fleet.start()

    with pytest.raises(TaskExpired):
        handle.get(timeout=40)
    assert fleet.runs() == []


def test_children_and_retries_share_the_deadline(sqlite_fleet: Fleet) -> None:
    """A child sees its parent's; a retry that would come after it is not waited for."""
    fleet = sqlite_fleet
    fleet.start()

    parent = fleet.send("send_child", deadline=30)
    child = fleet.app.result(parent.get(timeout=40))
    assert 0 < child.get(timeout=40) <= 30

    again = fleet.send("asks_again", 100, 1, deadline=30)
    with pytest.raises(TaskExpired):
        again.get(timeout=25)
    assert len(fleet.runs(again.id)) == 1
    assert again.state == outcome.EXPIRED
