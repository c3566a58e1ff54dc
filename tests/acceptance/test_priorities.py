"""Priorities from the send to the start, on each broker."""

import time

from fleet import Fleet, until

from taskq.result import AsyncResult


def words_of(fleet: Fleet, handles: list[AsyncResult[object]]) -> list[str]:
    """Return what these tasks told, in the order of their starts."""
    mine = {handle.id for handle in handles}
    return [run.word for run in sorted(fleet.runs(), key=lambda run: run.at_s) if run.id in mine]


def test_what_a_worker_holds_starts_in_the_order_of_priority(fleet: Fleet) -> None:
    """9 to 0; only what was in the executor's window already is overtaken by nothing."""
    go = fleet.directory / "go"
    fleet.start("--prefetch", "500", slots=1, app="order_app:app")
    blocker = fleet.send("wait_for", str(go))
    fleet.until_runs(1, blocker.id)
    with fleet.app.batch():
        handles = [
            fleet.send("tell", str(priority), priority=priority)
            for _ in range(4)
            for priority in (0, 6, 3, 9, 5)
        ]
    until(lambda: fleet.ready() == 0, "all of them in the worker's hands", 30)

    go.touch()

    fleet.settled([blocker, *handles])
    words = words_of(fleet, handles)
    # One task of the window may have been given to the executor before the others came.
    assert words[1:] == sorted(words[1:], reverse=True)
    fleet.assert_each_once(handles)


def test_retries_and_delays_keep_their_priority(fleet: Fleet) -> None:
    """An urgent task that failed once is still urgent."""
    go = fleet.directory / "go"
    fleet.start("--prefetch", "500", slots=1, app="order_app:app")
    retried = fleet.send("retry_once", "retried", priority=9)
    fleet.until_runs(1, retried.id)
    delayed = fleet.send("tell", "delayed", priority=8, countdown=1)
    blocker = fleet.send("wait_for", str(go), priority=9)
    fleet.until_runs(1, blocker.id)
    low = fleet.send_many("nap", 20, 0.05)
    until(lambda: fleet.ready() == 0, "the others in the worker's hands", 30)
    until(lambda: fleet.app.broker.due_within(60) == 0, "both at their time", 30)
    # A worker holds an early message for its last second.
    first = fleet.runs(retried.id)[0]
    until(lambda: time.time() > first.at_s + 3, "the end of that second")

    go.touch()

    fleet.settled([retried, delayed, *low])
    (_, second) = fleet.runs(retried.id)
    (late,) = fleet.runs(delayed.id)
    assert second.attempt == 2
    starts = [run.at_s for handle in low for run in fleet.runs(handle.id)]
    for urgent in (second, late):
        # Most of what was sent before comes after; some may be in the executor's window.
        assert sum(at_s < urgent.at_s for at_s in starts) <= 10
