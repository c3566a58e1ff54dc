"""Two fleets on one virtual host: a real Celery worker and a real taskq worker, run each other."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import celery_side
import kombu
import pytest
import taskq_side
from celery import Celery, chain
from processes import wait_for
from servers import RabbitServer, RedisServer

from taskq import TaskExpired, TaskFailed, TaskQ

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
WAIT_S = 90

ODD_VALUES = [
    datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
    date(2026, 1, 2),
    Decimal("1.50"),
    UUID(int=7),
    b"\x00\xff",
    "sn\u00f6w",
    [1, [2.5, None, True]],
    {"key": {"deep": "er"}},
]


@dataclass(frozen=True)
class Fleets:
    """Both sides, with a worker running on each.

    Attributes:
        taskq: A client that sends with taskq.
        celery: A client that sends with Celery, to the queue that the taskq worker consumes.
        celery_home: A client of the Celery worker's own queue, for its results.
        broker: URL of their virtual host.
    """

    taskq: TaskQ
    celery: Celery
    celery_home: Celery
    broker: str


def start(stack: ExitStack, log: Path, ready: str, env: dict[str, str], *words: str) -> None:
    """Run a worker until the stack unwinds; returns when its log says that it is ready."""
    output = stack.enter_context(log.open("wb"))
    process = subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=HERE,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{HERE}", **env},
        stdout=output,
        stderr=subprocess.STDOUT,
    )

    def stop() -> None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(stop)

    def is_ready() -> bool:
        text = log.read_text(errors="replace")
        assert process.poll() is None, text
        return ready in text

    wait_for(is_ready, WAIT_S, f"{ready!r} in the log of {words[0]}")


@pytest.fixture(scope="module")
def fleets(
    shared_rabbitmq: RabbitServer,
    shared_redis: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Fleets]:
    """Both fleets; the queue of the taskq worker was declared by Celery, classic and bare."""
    broker = shared_rabbitmq.add_vhost()
    number = shared_redis.ctl("INCR", "tests:databases") % (shared_redis.databases - 1) + 1
    results = f"redis://127.0.0.1:{shared_redis.port}/{number}"
    env = {"MIXED_BROKER": broker, "MIXED_RESULTS": results}
    logs = tmp_path_factory.mktemp("logs")
    # Celery reads the path as the name of the vhost, and so does taskq.
    home = celery_side.make_celery(broker, results, celery_side.QUEUE)
    away = celery_side.make_celery(broker, results, taskq_side.QUEUE)
    client = TaskQ("client", broker=broker, results=results)
    with ExitStack() as stack:
        stack.enter_context(closing(client))
        for app in (home, away):
            stack.callback(app.close)
        with away.connection_for_write() as connection, connection.channel() as channel:
            away.amqp.queues[taskq_side.QUEUE](channel).declare()
        words = ("celery", "-A", "celery_side", "worker", "-P", "solo", "-l", "info")
        start(stack, logs / "celery", "ready.", env, *words, "-Q", celery_side.QUEUE)
        words = ("taskq", "worker", "-A", "taskq_side:app", "-c", "1", "-Q", taskq_side.QUEUE)
        start(stack, logs / "taskq", "consuming", env, *words)
        yield Fleets(client, away, home, broker)
        log = (logs / "taskq").read_text()
        assert "ERROR" not in log, log
        assert "Traceback" not in log, log
    shared_rabbitmq.drop_vhost(broker)


def value_from_celery(fleets: Fleets, task_id: str) -> Any:
    return fleets.celery_home.AsyncResult(task_id).get(timeout=WAIT_S)


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
def test_celery_executes_a_task_sent_by_taskq(fleets: Fleets, serializer: str) -> None:
    """A producer moves over first, while the workers are Celery's still."""
    sent = fleets.taskq.send_task(
        "mixed.add", (2,), {"y": 3}, queue=celery_side.QUEUE, serializer=serializer
    )

    assert value_from_celery(fleets, sent.id) == 5


def test_celery_reads_every_type_that_taskq_writes_as_json(fleets: Fleets) -> None:
    """Celery knows these types in JSON alone."""
    sent = fleets.taskq.send_task(
        "mixed.describe", ODD_VALUES, {"k": b"v"}, queue=celery_side.QUEUE, serializer="json"
    )

    assert value_from_celery(fleets, sent.id) == [*map(repr, ODD_VALUES), "k=b'v'"]


def test_celery_sees_the_headers_that_taskq_sets(fleets: Fleets) -> None:
    """Limits, ids and custom headers mean the same on both sides."""
    sent = fleets.taskq.send_task(
        "mixed.request",
        queue=celery_side.QUEUE,
        serializer="json",
        headers={"tenant": "acme"},
        time_limit=30,
        soft_time_limit=20,
    )

    found = value_from_celery(fleets, sent.id)
    assert found["id"] == sent.id
    assert found["root_id"] in (None, sent.id)
    assert found["timelimit"] == [30, 20]
    assert found["tenant"] == "acme"


def test_a_delayed_task_of_taskq_reaches_celery_when_it_is_due(fleets: Fleets) -> None:
    """The delay is spent in taskq's delay queues, not unacknowledged in Celery's memory."""
    start_s = time.monotonic()

    sent = fleets.taskq.send_task(
        "mixed.add", (1, 1), queue=celery_side.QUEUE, serializer="json", countdown=1
    )

    assert value_from_celery(fleets, sent.id) == 2
    assert time.monotonic() - start_s >= 1


def test_celery_runs_a_chain_sent_by_taskq_to_its_end(fleets: Fleets) -> None:
    """The steps travel in Celery's own form, reversed, their ids given in advance."""
    options = {"queue": celery_side.QUEUE, "serializer": "json"}
    signatures = [_sig(fleets.taskq, (1, 2)), _sig(fleets.taskq, (10,)), _sig(fleets.taskq, (100,))]
    first, second, third = (signature.set(**options) for signature in signatures)

    last = (first | second | third).delay()

    assert value_from_celery(fleets, last.id) == 113
    assert last.parent is not None
    assert value_from_celery(fleets, last.parent.id) == 13


def test_celery_sends_the_callbacks_of_a_task_sent_by_taskq(fleets: Fleets) -> None:
    """`link=` gets the value, `link_error=` the id of what failed."""
    linked, failed = str(uuid4()), str(uuid4())
    options = {"queue": celery_side.QUEUE, "serializer": "json"}

    fleets.taskq.send_task(
        "mixed.add", (1, 2), link=_sig(fleets.taskq, (10,)).set(task_id=linked), **options
    )
    sent = fleets.taskq.send_task(
        "mixed.fail",
        ("no",),
        link_error=_sig(fleets.taskq, (), "mixed.describe").set(task_id=failed, **options),
        **options,
    )

    assert value_from_celery(fleets, linked) == 13
    with pytest.raises(ValueError, match="no"):
        value_from_celery(fleets, sent.id)


def _sig(app: TaskQ, args: tuple[Any, ...], name: str = "mixed.add") -> Any:
    from taskq import Signature

    return Signature(name, args, app=app)


@pytest.mark.parametrize("compression", [None, "gzip", "bzip2"])
@pytest.mark.parametrize("serializer", ["json", "msgpack"])
def test_taskq_executes_a_task_sent_by_celery(
    fleets: Fleets, serializer: str, compression: str | None
) -> None:
    """A worker moves over, while the producers are Celery's still."""
    sent = fleets.celery.tasks["mixed.add"].apply_async(
        (2,), {"y": 3}, serializer=serializer, compression=compression
    )

    assert fleets.taskq.result(sent.id).get(timeout=WAIT_S) == 5


def test_taskq_reads_every_type_that_celery_writes_as_json(fleets: Fleets) -> None:
    """A date that arrives as text would fail in the task, far from its cause."""
    sent = fleets.celery.tasks["mixed.describe"].delay(*ODD_VALUES, k=b"v")

    found = fleets.taskq.result(sent.id).get(timeout=WAIT_S)
    assert found == [*map(repr, ODD_VALUES), "k=b'v'"]


def test_taskq_reads_the_headers_that_celery_sets(fleets: Fleets) -> None:
    """Limits, ids and custom headers mean the same on both sides."""
    sent = fleets.celery.tasks["mixed.request"].apply_async(
        headers={"tenant": "acme"}, time_limit=30, soft_time_limit=20, priority=5, shadow="alias"
    )

    assert fleets.taskq.result(sent.id).get(timeout=WAIT_S) == {
        "id": sent.id,
        "retries": 0,
        "timelimit": [30, 20],
        "tenant": "acme",
        "root_id": sent.id,
        "parent_id": None,
        "queue": taskq_side.QUEUE,
    }


@pytest.mark.parametrize("option", ["countdown", "eta"])
def test_taskq_holds_a_task_of_celery_until_it_is_due(fleets: Fleets, option: str) -> None:
    """Celery puts the date into a header and the message straight into the queue."""
    start_s = time.monotonic()
    value = 1 if option == "countdown" else datetime.now(UTC) + timedelta(seconds=1)

    sent = fleets.celery.tasks["mixed.add"].apply_async((1, 1), **{option: value})

    assert fleets.taskq.result(sent.id).get(timeout=WAIT_S) == 2
    assert time.monotonic() - start_s >= 0.95


def test_taskq_does_not_start_a_task_of_celery_that_has_expired(fleets: Fleets) -> None:
    """Celery sets the `expiration` property too, which lets the broker drop it unseen."""
    sent = fleets.celery.tasks["mixed.add"].apply_async((1, 1), countdown=1.2, expires=0.6)

    with pytest.raises(TaskExpired):
        fleets.taskq.result(sent.id).get(timeout=WAIT_S)


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
def test_taskq_runs_a_chain_sent_by_celery_to_its_end(fleets: Fleets, serializer: str) -> None:
    """Every step's id was given by Celery, whose caller waits for the last one."""
    add = fleets.celery.tasks["mixed.add"]

    last = chain(add.s(1, 2), add.s(10), add.si(100, 1), add.s(1000)).apply_async(
        serializer=serializer
    )

    assert fleets.taskq.result(last.id).get(timeout=WAIT_S) == 1101
    assert fleets.taskq.result(last.parent.parent.id).get(timeout=WAIT_S) == 13


def test_taskq_sends_the_callbacks_of_a_task_sent_by_celery(fleets: Fleets) -> None:
    """`link=` gets the value, `link_error=` the id of what failed."""
    tasks = fleets.celery.tasks
    linked, failed = str(uuid4()), str(uuid4())

    tasks["mixed.add"].apply_async((1, 2), link=tasks["mixed.add"].s(10).set(task_id=linked))
    on_error = tasks["mixed.describe"].s().set(task_id=failed)
    sent = tasks["mixed.fail"].apply_async(("no",), link_error=on_error)

    assert fleets.taskq.result(linked).get(timeout=WAIT_S) == 13
    with pytest.raises(ValueError, match="no") as caught:
        fleets.taskq.result(sent.id).get(timeout=WAIT_S)
    assert isinstance(caught.value, TaskFailed)
    assert fleets.taskq.result(failed).get(timeout=WAIT_S) == [repr(sent.id)]


def test_a_chain_passes_from_one_fleet_to_the_other_and_back(fleets: Fleets) -> None:
    """Half of the steps have moved: each runs where its queue is served."""
    tasks = fleets.celery.tasks
    there, here = {"queue": celery_side.QUEUE}, {"queue": taskq_side.QUEUE}

    last = chain(
        tasks["mixed.where"].s().set(**here),
        tasks["mixed.describe"].s(step=2).set(**there),
        tasks["mixed.describe"].s(step=3).set(**here),
    ).apply_async()

    assert value_from_celery(fleets, last.parent.id) == ["'taskq'", "step=2"]
    assert fleets.taskq.result(last.id).get(timeout=WAIT_S) == ["[\"'taskq'\", 'step=2']", "step=3"]


def test_a_celery_group_runs_on_taskq_member_by_member(fleets: Fleets) -> None:
    """A group is nothing but messages that share a header."""
    from celery import group

    sent = group(fleets.celery.tasks["mixed.add"].s(n, n) for n in range(5)).apply_async()

    values = [fleets.taskq.result(one.id).get(timeout=WAIT_S) for one in sent.results]
    assert values == [0, 2, 4, 6, 8]


def test_the_queue_that_celery_declared_is_used_as_it_is(fleets: Fleets) -> None:
    """A queue of taskq's own kind under that name would make Celery's declare fail from then on."""
    sent = fleets.taskq.send_task("mixed.where", queue=taskq_side.QUEUE)
    assert sent.get(timeout=WAIT_S) == "taskq"

    with fleets.celery.connection_for_write() as connection, connection.channel() as channel:
        # PRECONDITION_FAILED if the queue had other arguments than Celery's.
        declared = fleets.celery.amqp.queues[taskq_side.QUEUE](channel).queue_declare()

    assert declared.queue == taskq_side.QUEUE
    checks = {check.name: check for check in fleets.taskq.broker.checks([taskq_side.QUEUE])}
    assert any(
        taskq_side.QUEUE in check.detail for check in checks.values() if check.status != "ok"
    )


def test_a_priority_of_celery_is_one_of_taskq(fleets: Fleets, tmp_path: Path) -> None:
    """On a queue that Celery declared with priorities, both sides' messages run in one order."""
    queue, told = kombu.Queue("urgent-side", max_priority=9), tmp_path / "told"
    with fleets.celery.connection_for_write() as connection, connection.channel() as channel:
        queue(channel).declare()

        def depth() -> int:
            count: int = queue(channel).queue_declare(passive=True).message_count
            return count

        ids = []
        for priority in (0, 3, 9):
            word = f"celery {priority}"
            sent = fleets.celery.send_task(
                "mixed.note", (str(told), word), queue=queue, priority=priority
            )
            ids.append(sent.id)
        for priority in (1, 7):
            word = f"taskq {priority}"
            ids.append(
                fleets.taskq.send_task(
                    "mixed.note", (str(told), word), queue=queue.name, priority=priority
                ).id
            )
        wait_for(lambda: depth() == 5, WAIT_S, "five messages in Celery's queue")

    results = fleets.taskq.settings.results or ""
    env = {"MIXED_BROKER": fleets.broker, "MIXED_RESULTS": results}
    words = ("taskq", "worker", "-A", "taskq_side:app", "-c", "1", "-Q", queue.name)
    with ExitStack() as stack:
        start(stack, tmp_path / "log", "consuming", env, *words, "--prefetch", "1")
        for task_id in ids:
            fleets.taskq.result(task_id).get(timeout=WAIT_S)

    order = told.read_text().splitlines()
    assert order == ["celery 9", "taskq 7", "celery 3", "taskq 1", "celery 0"]
