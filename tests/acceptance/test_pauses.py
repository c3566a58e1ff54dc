"""Queues and tasks that an operator paused, on each broker."""

from fleet import Fleet, Worker, until

from taskq import outcome

SEEN_S = 30.0


def pause_queue(fleet: Fleet, name: str, *workers: Worker, **options: float) -> None:
    """Pause a queue and wait until these workers know."""
    fleet.app.pauses.pause_queue(name, why="tests", **options)
    for worker in workers:
        worker.until_log(f"paused queue {name}", timeout_s=SEEN_S)


def test_a_paused_queue_is_not_consumed_and_its_neighbour_is(fleet: Fleet) -> None:
    """Also by a worker that starts later; and what waited runs once, on its first attempt."""
    first = fleet.start("-Q", "default,elsewhere")
    pause_queue(fleet, "elsewhere", first)

    waiting = [fleet.send("nap_elsewhere", queue="elsewhere") for _ in range(5)]
    second = fleet.start("-Q", "elsewhere,default")
    second.until_log("paused queue elsewhere", timeout_s=SEEN_S)
    fleet.settled(fleet.send_many("nap", 40))

    assert not [run for run in fleet.runs() if run.id in {handle.id for handle in waiting}]
    assert fleet.ready("elsewhere") == 5
    assert {handle.state for handle in waiting} == {outcome.PENDING}

    assert fleet.app.pauses.resume_queue("elsewhere")
    fleet.settled(waiting)
    fleet.assert_each_once(waiting)
    assert {run.attempt for run in fleet.runs()} == {1}


def test_what_a_worker_has_not_started_goes_back(fleet: Fleet) -> None:
    """A pause must not wait until a prefetched backlog is worked off; what runs goes on."""
    worker = fleet.start("--prefetch", "50", slots=1)
    running = fleet.send("nap", 3.0, "rested")
    fleet.until_runs(1)
    waiting = fleet.send_many("nap", 20, 0.01)

    pause_queue(fleet, "default", worker)

    assert running.get(timeout=30) == "rested"
    until(lambda: fleet.ready() == 20, "the backlog in its queue", SEEN_S)
    assert len(fleet.runs()) == 1
    assert fleet.app.pauses.resume_queue("default")
    fleet.settled(waiting)
    fleet.assert_each_once(waiting)


def test_a_paused_task_waits_whatever_its_queue(fleet: Fleet) -> None:
    """No attempt is spent, the neighbours on its queue go on, and it runs once afterwards."""
    worker = fleet.start()
    fleet.app.pauses.pause_task("nap", why="tests")
    worker.until_log("paused task nap", timeout_s=SEEN_S)

    waiting = fleet.send_many("nap", 5)
    assert fleet.settled([fleet.send("add", n, 1) for n in range(20)]) == list(range(1, 21))

    until(lambda: fleet.ready() == 0, "the messages sent on", SEEN_S)
    assert fleet.runs() == []
    assert fleet.app.pauses.resume_task("nap")
    fleet.settled(waiting, 60)
    fleet.assert_each_once(waiting)
    assert {run.attempt for run in fleet.runs()} == {1}


def test_a_pause_ends_by_itself(fleet: Fleet) -> None:
    """Nobody needs to be awake at the end of a maintenance window."""
    worker = fleet.start("-Q", "default,elsewhere")
    pause_queue(fleet, "elsewhere", worker, for_s=3.0)
    handle = fleet.send("nap_elsewhere", queue="elsewhere")

    handle.get(timeout=40)

    assert fleet.app.pauses.list() == []
    (run,) = fleet.runs(handle.id)
    assert run.attempt == 1


def test_a_burst_leaves_what_is_paused(sqlite_fleet: Fleet) -> None:
    """A worker that waits for an operator would never end."""
    fleet = sqlite_fleet
    fleet.app.pauses.pause_queue("elsewhere")
    left = fleet.send("nap_elsewhere", queue="elsewhere")
    done = fleet.send("nap")

    worker = fleet.start("-Q", "default,elsewhere", "--burst", ready=False)

    assert worker.wait(60) == 0
    assert done.state == outcome.SUCCESS
    assert left.state == outcome.PENDING
    assert fleet.ready("elsewhere") == 1
