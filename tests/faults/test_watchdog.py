"""A consumer that is gone without anybody telling: rebuilt, or the worker exits with 75."""

import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pika
import pytest
from fleet import ROOT, Fleet, until
from processes import free_port
from servers import RabbitServer
from supervisor import APP

on_rabbitmq = pytest.mark.parametrize("crash_fleet", ["rabbitmq"], indirect=True)
QUICK = {"TASKQ_WATCHDOG_S": "1.5"}
_CANCEL = """
{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"VHOST">>, queue, <<"default">>)),
Id = amqqueue:get_pid(Q),
length([ra:process_command(Id, rabbit_fifo:make_checkout({Tag, Pid}, cancel, #{}))
    || C <- rabbit_amqqueue:consumers(Q), {Pid, Tag} <- [{element(1, C), element(2, C)}]])
"""


def cancel_silently(server: RabbitServer, fleet: Fleet) -> int:
    """Take workers' consumers out of the queue; their channels are told nothing. How many."""
    return int(server.eval(_CANCEL.replace("VHOST", fleet.broker.rpartition("/")[2])))


def ready_text(port: int) -> str:
    """Return what /readyz says, whatever its status."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as refused:
        return refused.read().decode()
    except OSError as error:
        return str(error)


@pytest.fixture
def active(crash_fleet: Fleet) -> Iterator[Any]:
    """The one active consumer of queue `default`: it holds a message and acknowledges none."""
    connection = pika.BlockingConnection(pika.URLParameters(crash_fleet.broker))
    channel = connection.channel()
    arguments = {"x-queue-type": "quorum", "x-single-active-consumer": True}
    channel.queue_declare("default", durable=True, arguments=arguments)
    channel.basic_qos(prefetch_count=1)
    channel.basic_consume("default", lambda *_: None, consumer_tag="active")
    crash_fleet.send_many("step", 5)
    until(
        lambda: connection.process_data_events(0.1) or crash_fleet.ready() == 4, "its message", 60
    )
    yield connection
    if connection.is_open:
        connection.close()


@on_rabbitmq
def test_a_consumer_that_was_cancelled_behind_its_back_consumes_anew(
    crash_fleet: Fleet, shared_rabbitmq: RabbitServer
) -> None:
    """The queue forgot it, its channel knows nothing: without the watchdog it waits for ever."""
    worker = crash_fleet.start(app=APP, env=QUICK)
    crash_fleet.settled(crash_fleet.send_many("step", 5), 60)
    # The consumer is replaced when its prefetch changes, which may be under way.
    until(lambda: cancel_silently(shared_rabbitmq, crash_fleet) == 0, "no consumer", 60)

    handles = crash_fleet.send_many("step", 5)

    crash_fleet.settled(handles, 90)
    crash_fleet.assert_each_once(handles)
    assert "watchdog: 5 messages wait in queue default" in worker.log()
    assert worker.term(60) == 0


@pytest.mark.parametrize("crash_fleet", ["sqlite", "rabbitmq"], indirect=True)
def test_a_worker_that_gets_nothing_even_so_says_it_and_exits(crash_fleet: Fleet) -> None:
    """Its supervisor starts it anew; until then readiness names the queue."""
    port = free_port()
    crash_fleet.app.broker.declare(["default"])
    crash_fleet.send_many("step", 4)
    worker = crash_fleet.start(
        "--health-port",
        str(port),
        app=f"{Path(__file__).parent / 'deaf_app.py'}:app",
        pool="solo",
        env={**QUICK, "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"},
    )
    said: list[str] = []

    def ended() -> bool:
        said.append(ready_text(port))
        return worker.process.poll() is not None

    until(ended, "the exit", 90)

    assert worker.process.returncode == 75, worker.log()
    assert "watchdog: 4 messages wait in queue default" in "".join(said)
    assert "also after consuming anew" in worker.log()


@on_rabbitmq
def test_a_stand_by_is_left_in_peace(crash_fleet: Fleet, active: Any) -> None:
    """Of a queue with a single active consumer the others get nothing, and are well."""
    port = free_port()
    worker = crash_fleet.start("--health-port", str(port), app=APP, env=QUICK)

    def stands_by() -> bool:
        active.process_data_events(0.1)
        assert worker.process.poll() is None, worker.log()
        return "standing by" in worker.log()

    until(stands_by, "the stand-by", 60)
    deadline = time.monotonic() + 4
    while time.monotonic() < deadline:
        active.process_data_events(0.2)
        assert worker.process.poll() is None, worker.log()
    assert ready_text(port) == "ok\n"
    assert worker.log().count("watchdog:") == 1

    active.close()

    until(lambda: len(crash_fleet.runs()) == 5, "its turn", 60)
    assert worker.term(60) == 0
