"""Servers by need: the first test that asks for RabbitMQ or Redis starts one for the whole run.

All workers of pytest-xdist share it; each test has a vhost, or a Redis database, of its own. The
process that started the run ends the servers; what a killed run leaves, the next run ends. Where a
server is not installed its tests skip, and fail when CI=true. Kafka is optional: its tests skip
even then, or use the mock cluster of its client.
"""

import contextlib
import fcntl
import itertools
import json
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import processes
import pytest
from hypothesis import HealthCheck, settings
from kafka_server import GivenKafka, KafkaServer, MockKafka
from rabbitmq4 import RabbitServer4
from servers import RabbitServer, RedisServer, ServerMissing

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("taskq", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("taskq")

for _name in [name for name in os.environ if name.startswith("TASKQ_")]:
    # Someone's own settings would decide what the tests talk to.
    del os.environ[_name]

_REDIS_DATABASES = 4096
_Server = TypeVar("_Server", RabbitServer, RabbitServer4, RedisServer, KafkaServer)
_run = pytest.StashKey[Path]()
_private_numbers = itertools.count()


def _stop_in_order(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(f"signal {number}")


def pytest_configure(config: pytest.Config) -> None:
    workerinput = getattr(config, "workerinput", None)
    if workerinput is not None:
        config.stash[_run] = Path(workerinput["taskq_run"])
        return
    config.stash[_run] = processes.run_directory()
    # Ends as Ctrl-C does, so that a CI job that is cancelled leaves no server behind.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop_in_order)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist the directory of the run."""
    node.workerinput["taskq_run"] = str(node.config.stash[_run])


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput") and _run in config.stash:
        processes.remove_run(config.stash[_run])


def _server_line(config: pytest.Config, skipped: list[Any]) -> Iterator[str]:
    for name in ("RabbitMQ", "RabbitMQ 4", "Redis", "Kafka"):
        version = config.stash[_run] / f"{name}.version"
        reasons = [str(r.longrepr[2]) for r in skipped if f"needs {name}:" in str(r.longrepr)]
        if reasons and version.exists():
            yield f"{name} {version.read_text()} ({len(reasons)} tests skipped)"
        elif reasons:
            cure = reasons[0].partition(f"needs {name}: ")[2]
            yield f"{name} MISSING ({len(reasons)} tests skipped; {cure})"
        elif version.exists():
            yield f"{name} {version.read_text()}"
        else:
            yield f"{name} not used"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    terminalreporter.write_line(f"servers: {', '.join(_server_line(config, skipped))}")
    if path := os.environ.get("TESTS_SUMMARY"):
        _sum_up(Path(path), terminalreporter.stats)


def _sum_up(path: Path, stats: Any) -> None:
    """Tell `scripts/run_tests.py` what came out; an error in a fixture counts as a failure."""
    bad = [*stats.get("failed", []), *stats.get("error", [])]
    counts = {
        "passed": len(stats.get("passed", [])),
        "skipped": len(stats.get("skipped", [])),
        "failed": sorted({report.nodeid for report in bad}),
    }
    path.write_text(json.dumps(counts))


def _open(name: str, make: Callable[[], _Server]) -> _Server:
    try:
        return make()
    except ServerMissing as missing:
        # What cannot be had everywhere is only said to be missing, in the summary line.
        if os.environ.get("CI") == "true" and name not in ("Kafka", "RabbitMQ 4"):
            pytest.fail(f"{missing} (CI=true: nothing is skipped)", pytrace=False)
        pytest.skip(str(missing))


def _shared(config: pytest.Config, name: str, make: Callable[[Path], _Server]) -> _Server:
    """Return the server of the run, started by whichever worker asks first."""
    run = config.stash[_run]
    with (run / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        server = _open(name, lambda: make(run / name.lower().replace(" ", "")))
        if server.pid is None:
            server.start()
            (run / f"{name}.version").write_text(server.version)
    return server


@pytest.fixture(scope="session")
def shared_rabbitmq(pytestconfig: pytest.Config) -> RabbitServer:
    """The run's RabbitMQ: never stop it or raise alarms; `private_rabbitmq` is for that."""
    return _shared(pytestconfig, "RabbitMQ", RabbitServer)


@pytest.fixture(scope="session")
def shared_redis(pytestconfig: pytest.Config) -> RedisServer:
    """The run's Redis: never stop or flush it; `private_redis` is for that."""
    return _shared(
        pytestconfig, "Redis", lambda path: RedisServer(path, databases=_REDIS_DATABASES)
    )


@pytest.fixture(scope="session")
def shared_kafka(pytestconfig: pytest.Config) -> KafkaServer | GivenKafka:
    """The run's Kafka, a real one: never stop it, use topics of your own; skips without one."""
    if bootstrap := os.environ.get("KAFKA_BOOTSTRAP"):
        given = GivenKafka(bootstrap)
        _note_version(pytestconfig.stash[_run] / "Kafka.version", given)
        return given
    return _shared(pytestconfig, "Kafka", KafkaServer)


@pytest.fixture(scope="session")
def any_kafka(
    request: pytest.FixtureRequest, pytestconfig: pytest.Config
) -> KafkaServer | GivenKafka | MockKafka:
    """The run's Kafka; the mock cluster of the client where there is no real one."""
    try:
        kafka: KafkaServer | GivenKafka = request.getfixturevalue("shared_kafka")
    except pytest.skip.Exception:
        mock = MockKafka()
        _note_version(pytestconfig.stash[_run] / "Kafka.version", mock)
        return mock
    return kafka


@pytest.fixture
def private_kafka(private_directory: Path) -> Iterator[KafkaServer]:
    """A Kafka of this test alone, to be killed and restarted; boots in 5 to 15 s."""
    server = _open("Kafka", lambda: KafkaServer(private_directory / "kafka"))
    try:
        server.start()
        _note_version(private_directory.parent / "Kafka.version", server)
        yield server
    finally:
        server.destroy()


@pytest.fixture
def rabbitmq_url(shared_rabbitmq: RabbitServer) -> Iterator[str]:
    """URL of an empty vhost for this test alone; any queue name is free."""
    url = shared_rabbitmq.add_vhost()
    yield url
    # A node that is gone was reported by the test already.
    with contextlib.suppress(OSError):
        shared_rabbitmq.drop_vhost(url)


@pytest.fixture(scope="session")
def shared_rabbitmq4(pytestconfig: pytest.Config) -> RabbitServer4:
    """The run's RabbitMQ 4; the test skips where there is none."""
    return _shared(pytestconfig, "RabbitMQ 4", RabbitServer4)


@pytest.fixture
def rabbitmq4_url(shared_rabbitmq4: RabbitServer4) -> Iterator[str]:
    """URL of an empty vhost on RabbitMQ 4; see `rabbitmq_url`."""
    url = shared_rabbitmq4.add_vhost()
    yield url
    with contextlib.suppress(OSError):
        shared_rabbitmq4.drop_vhost(url)


@pytest.fixture
def redis_url(shared_redis: RedisServer) -> str:
    """URL of an empty database for this test alone."""
    number = shared_redis.ctl("INCR", "tests:databases") % (_REDIS_DATABASES - 1) + 1
    url = f"redis://127.0.0.1:{shared_redis.port}/{number}"
    shared_redis.ctl("FLUSHDB", "ASYNC", url=url)
    return url


@pytest.fixture
def private_directory(pytestconfig: pytest.Config) -> Path:
    """A short path for one server; a Unix socket's path may have only about 100 characters."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    return pytestconfig.stash[_run] / f"{worker}-{next(_private_numbers)}"


@pytest.fixture
def private_rabbitmq(private_directory: Path) -> Iterator[RabbitServer]:
    """A RabbitMQ of this test alone, to be killed, paused and restarted; boots in 5 to 10 s."""
    server = _open("RabbitMQ", lambda: RabbitServer(private_directory / "rabbitmq"))
    try:
        server.start()
        _note_version(private_directory.parent / "RabbitMQ.version", server)
        yield server
    finally:
        server.destroy()


@pytest.fixture
def private_rabbitmq4(private_directory: Path) -> Iterator[RabbitServer4]:
    """A RabbitMQ 4 of this test alone; the test skips where there is none."""
    server = _open("RabbitMQ 4", lambda: RabbitServer4(private_directory / "rabbitmq4"))
    try:
        server.start()
        _note_version(private_directory.parent / "RabbitMQ 4.version", server)
        yield server
    finally:
        server.destroy()


@pytest.fixture
def private_redis(private_directory: Path) -> Iterator[RedisServer]:
    """A Redis of this test alone, to be killed, paused and restarted; it keeps what it answered."""
    server = _open("Redis", lambda: RedisServer(private_directory / "redis", durable=True))
    try:
        server.start()
        _note_version(private_directory.parent / "Redis.version", server)
        yield server
    finally:
        server.destroy()


@pytest.fixture
def new_redis(private_directory: Path) -> Iterator[Callable[..., RedisServer]]:
    """Makes a Redis with settings of its own; the arguments are `RedisServer`'s after the first."""
    servers: list[RedisServer] = []

    def make(*settings: str, durable: bool = False, databases: int = 16) -> RedisServer:
        directory = private_directory / f"redis{len(servers)}"
        server = _open(
            "Redis",
            lambda: RedisServer(directory, *settings, durable=durable, databases=databases),
        )
        servers.append(server)
        server.start()
        _note_version(private_directory.parent / "Redis.version", server)
        return server

    yield make
    for server in servers:
        server.destroy()


def _note_version(
    path: Path, server: RabbitServer | RedisServer | KafkaServer | GivenKafka | MockKafka
) -> None:
    if not path.exists():
        path.write_text(server.version)


@pytest.fixture(autouse=True)
def _untouched_loggers() -> Iterator[None]:
    """Undo what a command run in this process does to logging, or `caplog` stays empty later."""
    logger = logging.getLogger("taskq")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])
