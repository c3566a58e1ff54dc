"""A queue of bounded length, under a worker whose tasks are retried into it."""

import time

from fleet import Fleet
from flow_runs import APP, lines

from taskq import PublishError, Queue, TaskQ


def test_a_worker_whose_retries_find_their_queue_full_goes_on(fleet: Fleet) -> None:
    """It would wait for room that only it can make; the retry waits in the delay instead."""
    sender = TaskQ(
        "sender",
        broker=fleet.broker,
        results=fleet.results,
        queues=[Queue("narrow", max_length=5)],
    )
    task = sender.task(name="narrow", queue="narrow")(lambda number: None)
    fleet.start("--prefetch", "1", "-Q", "narrow", slots=1, app=APP)
    handles, refused = [], []
    deadline = time.monotonic() + 120
    while len(handles) < 20:
        assert time.monotonic() < deadline, (len(handles), refused)
        try:
            handles.append(task.delay(len(handles)))
        except PublishError as error:
            refused.append((error.reason, "full" in str(error)))

    for handle in handles:
        handle.get(timeout=180)

    assert set(refused) == {("nacked", True)}
    runs = [line.id for line in lines(fleet)]
    assert {handle.id for handle in handles} <= set(runs)
    assert not fleet.letters()
    sender.close()
