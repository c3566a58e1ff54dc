"""The outbox on the local disk: nothing raises while the broker is away, and all of it arrives."""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pika
import pytest
from forks import in_child
from pika.exceptions import ChannelClosedByBroker, ConnectionClosedByBroker
from processes import free_port, wait_for
from servers import RabbitServer

from taskq import TaskQ
from taskq.brokers.spool import APPLICATION_ID
from taskq.errors import ConfigError, PublishError
from taskq.torture.proxy import Proxy

OpenApp = Callable[..., TaskQ]


@pytest.fixture
def open_app(tmp_path: Path) -> Iterator[OpenApp]:
    """Opens apps with a spool, and short timeouts."""
    opened: list[TaskQ] = []

    def make(broker: str, **settings: Any) -> TaskQ:
        settings = {"publish_timeout_s": 1.0, "spool": str(tmp_path / "spool.db"), **settings}
        opened.append(TaskQ("spooling", broker=broker, results="off", **settings))
        return opened[-1]

    yield make
    for app in opened:
        app.close()


@pytest.fixture
def nowhere() -> str:
    """URL of a broker that is not there."""
    return f"amqp://127.0.0.1:{free_port()}//"


def send(app: TaskQ, first: int, count: int = 1) -> list[str]:
    return [app.send_task("add", (number,)).id for number in range(first, first + count)]


def waiting(tmp_path: Path) -> int:
    with sqlite3.connect(tmp_path / "spool.db") as connection:
        (count,) = connection.execute("SELECT count(*) FROM outbox").fetchone()
    connection.close()
    return int(count)


def taken(url: str, count: int) -> list[str]:
    """Take messages out of the queue, and return their ids in order."""
    found: list[str] = []

    def take() -> bool:
        connection = pika.BlockingConnection(pika.URLParameters(url))
        # No such queue yet; or the broker is just back and its queue has no leader (541).
        with contextlib.suppress(ChannelClosedByBroker, ConnectionClosedByBroker):
            take_all(connection.channel())
        if connection.is_open:
            connection.close()
        return len(found) >= count

    def take_all(channel: Any) -> None:
        while True:
            method, properties, _ = channel.basic_get("default", auto_ack=True)
            if method is None:
                channel.close()
                return
            found.append(str(properties.message_id))

    wait_for(take, 60, f"{count} messages")
    return found


def test_sends_wait_on_disk_and_leave_in_order(
    open_app: OpenApp,
    shared_rabbitmq: RabbitServer,
    new_proxy: Callable[[int], Proxy],
    rabbitmq_url: str,
    tmp_path: Path,
) -> None:
    """The line falls silent: one send waits for its timeout, the next ones do not even try."""
    line = new_proxy(shared_rabbitmq.port)
    vhost = rabbitmq_url.rpartition("/")[2]
    # A patient first send, which also declares the queue.
    app = open_app(f"amqp://127.0.0.1:{line.port}/{vhost}", publish_timeout_s=10.0)
    sent = send(app, 0)
    assert not waiting(tmp_path)

    line.silence()
    sent += send(app, 1)
    assert waiting(tmp_path) == 1
    started = time.monotonic()
    sent += send(app, 2, 200)
    assert waiting(tmp_path) == 201
    # 200 sends that each wait for their timeout would take a quarter of an hour.
    assert time.monotonic() - started < 60

    line.speak()
    wait_for(lambda: waiting(tmp_path) == 0, 60, "an empty spool")
    sent += send(app, 202)

    found = taken(rabbitmq_url, len(sent))
    # What timed out may have arrived all the same: sent twice, under one id.
    assert sorted(set(found)) == sorted(sent)
    assert list(dict.fromkeys(found)) == sent


def test_what_a_process_left_is_sent_by_the_next(
    open_app: OpenApp, nowhere: str, rabbitmq_url: str, tmp_path: Path
) -> None:
    """A web server that is restarted while the broker is away."""
    first = open_app(nowhere)
    sent = send(first, 0, 5)
    first.close()
    assert waiting(tmp_path) == 5

    sent += send(open_app(rabbitmq_url, publish_timeout_s=30.0), 5)

    assert taken(rabbitmq_url, 6) == sent


def test_processes_share_a_file(
    open_app: OpenApp, nowhere: str, rabbitmq_url: str, tmp_path: Path
) -> None:
    """Only one of them drains it: each message leaves once."""
    away = [open_app(nowhere) for _ in range(3)]
    sent = [task_id for app in away for task_id in send(app, 0, 20)]
    sent.append("forked")
    in_child(lambda: away[0].send_task("add", (1,), task_id="forked"))
    for app in away:
        app.close()

    for app in [open_app(rabbitmq_url, publish_timeout_s=30.0) for _ in range(3)]:
        sent += send(app, 0)

    assert sorted(taken(rabbitmq_url, len(sent))) == sorted(sent)
    wait_for(lambda: waiting(tmp_path) == 0, 30, "an empty spool")


def test_coroutines_send_through_it_too(open_app: OpenApp, nowhere: str, tmp_path: Path) -> None:
    """`asend` keeps what failed without blocking the loop."""
    app = open_app(nowhere)

    (handle,) = asyncio.run(app.asend([app.task(_add).s(1)]))

    assert handle.id
    assert waiting(tmp_path) == 1


def _add(number: int) -> int:
    return number


def test_what_is_refused_is_not_kept(open_app: OpenApp, rabbitmq_url: str, tmp_path: Path) -> None:
    """It would be refused again; the caller can still be told."""
    app = open_app(rabbitmq_url, declare="passive", publish_timeout_s=30.0)

    with pytest.raises(PublishError, match="unroutable"):
        send(app, 0)

    assert not waiting(tmp_path)


def test_what_is_refused_later_becomes_a_dead_letter(
    open_app: OpenApp, nowhere: str, rabbitmq_url: str, tmp_path: Path
) -> None:
    """Nobody waits for it any more who could be told; it must not hold up the rest either."""
    first = open_app(nowhere)
    lost = first.send_task("add", (1,), queue="missing").id
    send(first, 0, 3)
    first.close()
    healthy = open_app(rabbitmq_url, spool=None, publish_timeout_s=30.0)
    send(healthy, 0)
    healthy.broker.declare(["default"])

    last = open_app(rabbitmq_url, declare="passive", publish_timeout_s=30.0)
    send(last, 0)

    assert len(taken(rabbitmq_url, 5)) == 5
    letters: list[str] = []

    def buried() -> bool:
        letters.clear()

        def look(delivery: Any) -> Any:
            letters.append(delivery.message.id)
            return "keep"

        healthy.broker.sweep_dead(look)
        return letters == [lost]

    wait_for(buried, 30, "the dead letter")


def test_a_file_that_cannot_be_written_leaves_the_error(
    open_app: OpenApp, nowhere: str, tmp_path: Path
) -> None:
    """A full disk or a lock: the send raises as it would without a spool, and says both."""
    app = open_app(nowhere)
    app._outbox()
    other = sqlite3.connect(tmp_path / "spool.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(PublishError) as raised:
        send(app, 0)
    other.execute("ROLLBACK")
    other.close()

    assert "spool.db" in "".join(raised.value.__notes__)
    assert not waiting(tmp_path)


@pytest.mark.parametrize(
    ("statements", "told"),
    [
        ((f"PRAGMA application_id = {APPLICATION_ID}", "PRAGMA user_version = 2"), "version 2"),
        (("CREATE TABLE mine (x)",), "no spool of taskq"),
        (("PRAGMA user_version = 7",), "no spool of taskq"),
    ],
)
def test_other_files_are_refused_and_left_alone(
    open_app: OpenApp, nowhere: str, tmp_path: Path, statements: tuple[str, ...], told: str
) -> None:
    """A spool of another version may hold messages that this one cannot read."""
    path = tmp_path / "spool.db"
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()
    before = path.read_bytes()

    with pytest.raises(ConfigError, match=told):
        send(open_app(nowhere), 0)

    assert path.read_bytes() == before


def test_a_directory_that_is_missing_is_said(open_app: OpenApp, nowhere: str) -> None:
    """At the first send, and by name."""
    with pytest.raises(ConfigError, match=r"/nowhere/at/all/spool\.db"):
        send(open_app(nowhere, spool="/nowhere/at/all/spool.db"), 0)


def test_a_file_that_is_no_database_is_refused(
    open_app: OpenApp, nowhere: str, tmp_path: Path
) -> None:
    """A path that was mixed up must not be overwritten."""
    path = tmp_path / "spool.db"
    path.write_text("something else entirely, of more than a hundred bytes " * 10)

    with pytest.raises(ConfigError, match="cannot be used"):
        send(open_app(nowhere), 0)

    assert path.read_text().startswith("something else")
