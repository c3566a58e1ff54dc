"""`taskq torture` as users run it, and the account that it stands on."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from broker_helpers import send
from conftest import LONG
from embedded_helpers import outgoing
from fleet import until
from servers import RabbitServer

from taskq import clock, resend
from taskq.brokers import open_broker
from taskq.brokers.base import DEAD_QUEUE, BrokerOptions, Outgoing
from taskq.errors import ConfigError
from taskq.torture.account import settle
from taskq.torture.campaign import Row, make_client, make_random
from taskq.torture.faults import choose
from taskq.torture.load import Load
from taskq.torture.proxy import proxied

ROOT = Path(__file__).parents[2]
FIELDS = {
    "fault",
    "strikes",
    "confirmed",
    "unconfirmed",
    "completed",
    "queued",
    "dead",
    "lost",
    "duplicated",
    "early",
    "slowest_send_s",
    "drained_s",
    "memory_mb",
    "files_grown",
    "memory_grown_mb",
    "failures",
}


class Torturer:
    """Runs the command in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.temporary = directory / "tmp"
        self.temporary.mkdir()

    def run(
        self, *words: str, env: Mapping[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "taskq", "torture", *words],
            cwd=self.directory,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(ROOT),
                "TMPDIR": str(self.temporary),
                **(env or {}),
            },
            capture_output=True,
            text=True,
            timeout=3600 if LONG else 500,
            check=False,
        )


@pytest.fixture
def torturer(tmp_path: Path) -> Torturer:
    return Torturer(tmp_path)


def check(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    """Check a report in which nothing was lost, and return its rows by fault."""
    report = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert report["ok"] is True
    rows = {row["fault"]: row for row in report["faults"]}
    for row in rows.values():
        assert set(row) == FIELDS
        assert row["confirmed"] == row["completed"] + row["dead"] > 0
        assert row["lost"] == row["early"] == row["queued"] == 0
        assert row["strikes"]
    return rows


def test_a_short_torture_on_a_file(torturer: Torturer) -> None:
    """Without any option: a file of its own, whatever is configured, and nothing is left behind."""
    minutes = "10" if LONG else "0.1"
    words = ("--minutes", minutes, "--faults", "kill,executor", "--seed", "7", "--json")

    rows = check(torturer.run(*words, env={"TASKQ_PREFIX": "mine.", "TASKQ_POOL": "solo"}))

    assert list(rows) == ["kill", "executor"]
    assert [path.name for path in torturer.directory.iterdir()] == ["tmp"]
    assert not list(torturer.temporary.iterdir())


def test_a_short_torture_on_servers(
    torturer: Torturer, shared_rabbitmq: RabbitServer, rabbitmq_url: str, redis_url: str
) -> None:
    """Connections are cut and silenced by its own proxies; the vhost is empty afterwards."""
    minutes = "10" if LONG else "0.1"
    words = ("--broker", rabbitmq_url, "--results", redis_url, "--faults", "net,half-open")

    rows = check(torturer.run(*words, "--minutes", minutes, "--json"))

    assert list(rows) == ["net", "half-open"]
    vhost = rabbitmq_url.rpartition("/")[2]
    assert shared_rabbitmq.eval(f'rabbit_amqqueue:list_names(<<"{vhost}">>)') == "[]"
    exchanges = shared_rabbitmq.eval(f'rabbit_exchange:list(<<"{vhost}">>)')
    assert "torture" not in exchanges


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--faults", "kil"), 78, "no fault 'kil'"),
        (("--faults", "net"), 78, "needs servers"),
        (("--faults", "broker"), 78, "--broker-command"),
        (("--broker", "amqp://127.0.0.1:1//"), 2, "--results"),
        (("--broker", "memory://", "--results", "memory://"), 2, "memory://"),
        (("--minutes", "0"), 2, "--minutes"),
        (("--broker", "amqp://127.0.0.1:1//", "--results", "redis://127.0.0.1:1/0"), 69, "connect"),
        (("--broker", "sqlite:///nowhere/x.db"), 78, "nowhere"),
        (("--results", "redis://127.0.0.1:1/0"), 69, "is Redis running there?"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(
    torturer: Torturer, words: tuple[str, ...], code: int, told: str
) -> None:
    """One line, an exit code, and nothing was touched."""
    done = torturer.run(*words)

    assert done.returncode == code, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in torturer.directory.iterdir()] == ["tmp"]


def test_a_file_with_others_queues_is_refused(torturer: Torturer) -> None:
    """Their messages stay, untouched."""
    url = f"sqlite:///{torturer.directory}/shop.db"
    broker = open_broker(url, BrokerOptions())
    send(broker, outgoing("orders"))

    done = torturer.run("--broker", url, "--minutes", "0.05")

    assert done.returncode == 78
    assert "orders" in done.stderr
    depth = broker.depths(["orders"])["orders"]
    assert depth is not None
    assert depth.ready == 1
    assert broker.known_queues() == ["orders"]
    broker.close()


def test_a_vhost_with_others_queues_is_used_apart_or_not_at_all(
    torturer: Torturer, rabbitmq_url: str, redis_url: str
) -> None:
    """Without a prefix of its own it would run and dead-letter somebody's tasks."""
    broker = open_broker(rabbitmq_url, BrokerOptions())
    send(broker, outgoing("default"))
    broker.close()

    done = torturer.run("--broker", rabbitmq_url, "--results", redis_url, "--prefix", "")

    assert done.returncode == 78
    assert "holds queues already (default" in done.stderr


def test_a_file_with_others_dead_letters_is_refused(torturer: Torturer) -> None:
    """Also when nothing else is left in it."""
    url = f"sqlite:///{torturer.directory}/shop.db"
    broker = open_broker(url, BrokerOptions())
    letter = resend.dead(outgoing().message, "failed", "orders")
    send(broker, Outgoing("orders", letter, dead=True))

    done = torturer.run("--broker", url, "--minutes", "0.05")

    assert done.returncode == 78
    assert DEAD_QUEUE in done.stderr
    depth = broker.depths([DEAD_QUEUE])[DEAD_QUEUE]
    assert depth is not None
    assert depth.ready == 1
    broker.close()


def test_a_prefix_with_others_delayed_tasks_is_refused(
    torturer: Torturer, shared_rabbitmq: RabbitServer, rabbitmq_url: str, redis_url: str
) -> None:
    """Their work queue has a name of its own, and what waits in their delay queue stays there."""
    broker = open_broker(rabbitmq_url, BrokerOptions(prefix="shop."))
    send(broker, outgoing("orders", due_ms=clock.now_ms() + 3_600_000))

    words = ("--broker", rabbitmq_url, "--results", redis_url, "--prefix", "shop.")
    done = torturer.run(*words, "--minutes", "0.05")

    assert done.returncode == 78, done.stderr
    assert "holds queues already" in done.stderr
    assert broker.due_within(7200) == 1
    broker.close()


@pytest.mark.parametrize("content", [b"no database at all, only words" * 50, b"\0" * 5000])
def test_a_file_that_is_no_database_is_left_alone(torturer: Torturer, content: bytes) -> None:
    """It may be anything of the user's: a named error, and every byte is still there."""
    path = torturer.directory / "notes.txt"
    path.write_bytes(content)

    done = torturer.run("--broker", f"sqlite:///{path}", "--minutes", "0.05")

    assert done.returncode == 78, done.stderr
    assert "notes.txt" in done.stderr
    assert "Traceback" not in done.stderr
    assert path.read_bytes() == content


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_torture_leaves_nothing_behind(
    torturer: Torturer, number: signal.Signals
) -> None:
    """Neither workers nor files: also when a supervisor or `timeout` ends it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "taskq", "torture", "--faults", "none", "--minutes", "10"],
        cwd=torturer.directory,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(torturer.temporary),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # A shell starts what runs in the background with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    workers: list[int] = []
    try:
        workers = until(lambda: workers_of(torturer, process), "two workers that consume", 90)

        process.send_signal(number)
        code = process.wait(120)

        assert code == 128 + number
        until(lambda: not any(map(alive, workers)), "the end of the workers", 60)
        assert not list(torturer.temporary.iterdir())
    finally:
        process.kill()
        process.wait()
        for pid in filter(alive, workers):
            os.kill(pid, signal.SIGKILL)


def workers_of(torturer: Torturer, process: "subprocess.Popen[bytes]") -> list[int]:
    """Return the process ids of both workers once they consume."""
    logs = list(torturer.temporary.glob("*/worker-*.log"))
    if len(logs) < 2 or not all("consuming queues=" in log.read_text() for log in logs):
        return []
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(word) for word in children.split()]


def alive(pid: int) -> bool:
    """Return whether a process runs; nobody but init is left to reap it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def test_a_lost_task_is_found(tmp_path: Path) -> None:
    """The account itself: what was confirmed and is nowhere is lost, and that is a failure."""
    url = f"sqlite:///{tmp_path}/account.db"
    with make_client(url, url, "") as app:
        load = Load(app, 10, make_random(1)[0])
        load.send(20)
        waiting = len(load.confirmed)
        load.confirmed["gone"] = 0

        account = settle(app, load, tmp_path / "runs", 0.2)

    # Nobody works here: what waits is queued (second steps of chains count with their first).
    assert account.confirmed == waiting + 1
    assert 0 < account.queued <= waiting
    assert account.completed == account.dead == 0
    assert len(account.lost) == account.confirmed - account.queued
    row = Row(fault="x", strikes=1, account=account, memory_mb=0, growth="")
    assert any("lost" in text for text in row.failures)


def test_an_early_task_is_found(tmp_path: Path) -> None:
    """A start before the due moment is a failure, whatever became of the task."""
    url = f"sqlite:///{tmp_path}/account.db"
    (tmp_path / "runs").write_text("s soon 0 1 1000\ns late 0 1 2000\ns late 0 1 2001\n")
    with make_client(url, url, "") as app:
        load = Load(app, 10, make_random(1)[0])
        load.confirmed.update(soon=1001, late=2000)

        account = settle(app, load, tmp_path / "runs", 0.1, stored=False)

    assert account.early == ["soon"]
    assert account.duplicated == 1


def test_faults_are_those_that_can_be_caused() -> None:
    """Nobody's server is restarted unless told how."""
    every = choose("", servers=True, commands={"broker", "results"})
    embedded = choose("", servers=False, commands=set())

    assert {"kill", "net", "broker", "results"} <= {fault.name for fault in every}
    assert not [fault for fault in embedded if fault.network or fault.command]


@pytest.mark.parametrize("url", ["amqps://host//", "amqp://a//;amqp://b//", "rediss://host/0"])
def test_a_proxy_cannot_stand_before_tls_or_a_list(url: str) -> None:
    """The certificate would not be that of 127.0.0.1."""
    with pytest.raises(ConfigError, match="--faults"):
        proxied(url)
