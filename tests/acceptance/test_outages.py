"""Servers that go away while workers run: nothing is lost, and everything goes on by itself."""

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import Fleet, until
from servers import RabbitServer, RedisServer

from taskq import outcome


@pytest.fixture
def private_fleet(
    private_rabbitmq: RabbitServer, private_redis: RedisServer, tmp_path: Path
) -> Iterator[Fleet]:
    """A fleet on servers of this test alone, which may be stopped and killed."""
    made = Fleet(tmp_path, private_rabbitmq.url, private_redis.url)
    yield made
    made.close()


def test_a_worker_started_before_its_broker_waits_for_it(
    private_fleet: Fleet, private_rabbitmq: RabbitServer
) -> None:
    """After a power cut things come up in any order; nobody should have to restart workers."""
    private_rabbitmq.stop()
    worker = private_fleet.start(ready=False)
    worker.until_log("not consuming why=")

    private_rabbitmq.start()

    worker.until_log("consuming queues=", timeout_s=60)
    assert private_fleet.send("add", 1, 2).get(timeout=20) == 3
    assert "Traceback" not in worker.log()
    assert worker.term() == 0


def test_a_worker_started_before_its_results_store_waits_for_it(
    private_fleet: Fleet, private_redis: RedisServer
) -> None:
    """Without the store nothing could be settled, so nothing is run either."""
    handle = private_fleet.send("nap", 0, "x")
    private_redis.stop()
    worker = private_fleet.start(ready=False)
    worker.until_log("waits for the results store")
    assert not private_fleet.runs()

    private_redis.start()

    assert handle.get(timeout=30) == "x"
    private_fleet.assert_each_once([handle])
    assert "Traceback" not in worker.log()


def test_work_goes_on_after_the_broker_was_killed(
    private_fleet: Fleet, private_rabbitmq: RabbitServer
) -> None:
    """Quorum queues keep what was confirmed; what was in hand is delivered again."""
    worker = private_fleet.start(slots=2)
    handles = private_fleet.send_many("nap", 300, 0.02)
    private_fleet.until_runs(60)

    private_rabbitmq.kill()
    private_rabbitmq.start()

    private_fleet.settled(handles, timeout_s=90)
    assert {run.id for run in private_fleet.runs()} == {handle.id for handle in handles}
    assert worker.process.poll() is None
    assert "Traceback" not in worker.log()
    assert worker.term() == 0


def test_what_runs_while_the_connection_breaks_is_not_run_again(
    private_fleet: Fleet, private_rabbitmq: RabbitServer
) -> None:
    """The broker delivers it again at once; this worker knows that it is running here."""
    private_fleet.start(slots=2)
    handle = private_fleet.send("nap", 4.0, "once")
    private_fleet.until_runs(1)

    private_rabbitmq.ctl("close_all_connections", "test")

    assert handle.get(timeout=30) == "once"
    until(lambda: private_fleet.ready() == 0, "an empty queue", 30)
    assert private_fleet.send("add", 1, 2).get(timeout=20) == 3
    assert len(private_fleet.runs(handle.id)) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_work_goes_on_after_the_results_store_was_away(
    private_fleet: Fleet, private_redis: RedisServer, number: signal.Signals
) -> None:
    """Redis is away for three seconds in mid-work: later is fine, lost is not."""
    worker = private_fleet.start(slots=2)
    handles = private_fleet.send_many("nap", 200, 0.02)
    private_fleet.until_runs(40)

    if number == signal.SIGKILL:
        private_redis.kill()
    else:
        private_redis.pause()
    worker.until_log("waits for the results store")
    ran = len(private_fleet.runs())
    threading.Event().wait(3)
    # Everything held has run by now, and nothing more is begun.
    until(lambda: _steady(private_fleet), "consuming to stand still")
    stood = len(private_fleet.runs())
    if number == signal.SIGKILL:
        private_redis.start()
    else:
        private_redis.resume()

    private_fleet.settled(handles, timeout_s=60)
    assert ran <= stood < 200
    states = [handle.state for handle in handles]
    assert states == [outcome.SUCCESS] * 200
    private_fleet.assert_each_once(handles)
    assert "Traceback" not in worker.log()
    assert worker.term() == 0
    assert private_fleet.ready() == 0


def test_nothing_is_acknowledged_before_its_result_is_stored(
    private_fleet: Fleet, private_redis: RedisServer
) -> None:
    """The worker is killed while the store is away: all that had no record must come again."""
    worker = private_fleet.start(slots=2)
    handles = private_fleet.send_many("nap", 200, 0.02)
    private_fleet.until_runs(40)
    private_redis.kill()
    worker.until_log("settling waits for the results store")
    until(lambda: _steady(private_fleet), "consuming to stand still")

    worker.signal(signal.SIGKILL)
    worker.wait()
    private_redis.start()

    private_fleet.start(slots=2)
    private_fleet.settled(handles, timeout_s=60)
    assert {handle.state for handle in handles} == {outcome.SUCCESS}


def _steady(fleet: Fleet) -> bool:
    before = len(fleet.runs())
    threading.Event().wait(0.5)
    return len(fleet.runs()) == before


def test_a_stop_while_the_results_store_is_away_leaves_the_work_to_others(
    private_fleet: Fleet, private_redis: RedisServer
) -> None:
    """What could not be stored was not acknowledged: the next worker runs it again."""
    worker = private_fleet.start("--grace", "1", slots=1)
    handle = private_fleet.send("nap", 0.5, "second time")
    private_fleet.until_runs(1)
    private_redis.kill()
    worker.until_log("settling waits for the results store")

    code = worker.term(timeout_s=40)

    private_redis.start()
    private_fleet.start(slots=1)
    assert code == 0
    assert "delivers it again" in worker.log()
    assert handle.get(timeout=20) == "second time"
    assert [run.attempt for run in private_fleet.runs()] == [1, 1]


def test_a_worker_that_is_stopped_for_a_while_loses_nothing(fleet: Fleet) -> None:
    """A laptop that slept, a virtual machine that was moved: leases and heartbeats run out."""
    env = {"TASKQ_LEASE_S": "1"}
    worker = fleet.start(slots=2, env=env)
    handles = fleet.send_many("nap", 100, 0.02)
    fleet.until_runs(20)

    worker.signal(signal.SIGSTOP)
    # Not until it consumes: on the embedded file the stopped one may hold the lock.
    second = fleet.start(slots=2, env=env, ready=False)
    threading.Event().wait(2.5)
    worker.signal(signal.SIGCONT)

    fleet.settled(handles)
    assert {run.id for run in fleet.runs()} == {handle.id for handle in handles}
    assert worker.term() == 0
    assert second.term() == 0
    assert fleet.ready() == 0
