"""`taskq doctor`: each check of its table, made to fail, and the table itself."""

import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli_user import ROOT, User, examine
from processes import free_port
from servers import RedisServer

from taskq import TaskQ, doctor
from taskq.brokers.sqlite_checks import check_database
from taskq.embedded.database import open_database
from taskq.embedded.location import parse_location

PAGE = ROOT / "docs" / "doctor.md"


@pytest.fixture
def user(tmp_path: Path) -> User:
    """A user in an empty directory."""
    return User(tmp_path)


# --- the table


def test_the_page_has_every_check_and_no_other() -> None:
    """A check that nobody explains is a red line without a cure."""
    rows = re.findall(r"^\| `([a-z.-]+)` \| (.+?) \|", PAGE.read_text(), re.MULTILINE)

    assert dict(rows) == doctor.CHECKS


def test_the_table_has_every_check_of_the_brokers() -> None:
    """Drivers bring checks of their own; the table is only true if it has them all."""
    names = set()
    for path in [*ROOT.glob("taskq/brokers/*.py"), ROOT / "taskq" / "doctor.py"]:
        names |= set(re.findall(r'"((?:broker|results|app|tasks)\.[a-z-]+)"', path.read_text()))

    assert names - {"broker.consumer"} <= set(doctor.CHECKS)


# --- all is well


def test_a_fresh_directory_is_well(user: User) -> None:
    """With nothing configured, nothing is wrong."""
    found = examine(user, "-A", "shop:app")

    assert {row["status"] for row in found.values()} == {"ok"}, found
    assert {"python", "app.import", "broker.file", "results.round-trip"} <= set(found)
    text = user.run("doctor").stdout
    assert str(user.directory / "taskq.db") in text
    assert re.search(r"^\d+ checks: \d+ ok, 0 warning, 0 failed$", text, re.MULTILINE)


# --- environment and settings


def test_an_old_or_optimized_python_is_seen() -> None:
    """`-O` strips the assertions that tasks rely on."""
    assert doctor.check_python((3, 10, 4), 0).status == "failed"
    assert doctor.check_python((3, 11, 0), 1).status == "warning"
    assert doctor.check_python((3, 11, 0), 0).status == "ok"


def test_another_installed_version_is_seen() -> None:
    """A forgotten checkout on sys.path runs instead of what was installed."""
    assert doctor.check_version("0.0.1").status == "warning"
    assert doctor.check_version("").status == "ok"


@pytest.mark.parametrize("name", ["taskq", "taskq-py"])
def test_a_distribution_that_brings_another_taskq_is_seen(user: User, name: str) -> None:
    """Both overwrite files of the same package; which one wins depends on the order."""
    info = user.directory / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")

    found = examine(user, code=1)

    assert found["taskq.name-clash"]["status"] == "failed"
    assert name in found["taskq.name-clash"]["detail"]


@pytest.mark.parametrize(
    "variables",
    [
        {"TASKQ_BROCKER": "x"},
        {"TASKQ_CONCURRENCY": "many"},
        {"TASKQ_POOL": "gevent"},
        {"TASKQ_BROKER_FILE": "/nonexistent"},
    ],
)
def test_unusable_variables_are_seen(user: User, variables: dict[str, str]) -> None:
    """A misspelt variable would silently leave the default in force."""
    found = examine(user, code=1, **variables)

    assert found["settings.environment"]["status"] == "failed"
    assert "broker.file" not in found, "no server is asked with settings that cannot be right"


@pytest.mark.parametrize(
    "text", ["broker = ", "unknown_setting = 1\n", "[worker]\npool = 'gevent'\n"]
)
def test_an_unusable_settings_file_is_seen(user: User, text: str) -> None:
    """Broken TOML, an unknown name, a value out of the list."""
    (user.directory / "taskq.toml").write_text(text)

    assert examine(user, code=1)["settings.file"]["status"] == "failed"


def test_an_app_that_cannot_be_imported_is_seen(user: User) -> None:
    """With file and line, as the worker would say it."""
    (user.directory / "bad.py").write_text("1 / 0\n")

    found = examine(user, "-A", "bad:app", code=1)["app.import"]

    assert found["status"] == "failed"
    assert "bad.py:1" in found["detail"]


def test_an_app_without_tasks_is_seen(user: User) -> None:
    """The modules with the tasks were not imported: the worker would know none of them."""
    (user.directory / "empty.py").write_text("from taskq import TaskQ\napp = TaskQ('empty')\n")

    assert examine(user, "-A", "empty:app")["app.import"]["status"] == "warning"


def test_a_time_limit_beyond_the_consumer_timeout_is_seen(user: User) -> None:
    """RabbitMQ takes the message away after 30 minutes, and the task runs twice."""
    env = {"TASKQ_BROKER": f"amqp://127.0.0.1:{free_port()}//"}

    found = examine(user, "-A", "shop:app", code=1, **env)["tasks.time-limits"]

    assert found["status"] == "warning"
    assert "shop.long" in found["detail"]


# --- the embedded file


def test_a_closed_port_is_seen(user: User) -> None:
    """The commonest of all; nothing else of the broker is examined then."""
    found = examine(user, code=1, TASKQ_BROKER=f"amqp://127.0.0.1:{free_port()}//")

    assert found["broker.reachable"]["status"] == "failed"
    assert found["results.configured"]["status"] == "warning", "a broker alone has no results"


def test_a_foreign_file_is_seen(user: User) -> None:
    """Another program's database must not be written to."""
    with closing(sqlite3.connect(user.directory / "taskq.db")) as connection:
        connection.execute("CREATE TABLE theirs (x)")

    found = examine(user, code=1)

    assert found["broker.file"]["status"] == "failed"


def test_a_locked_file_is_seen(user: User) -> None:
    """Someone's forgotten sqlite3 shell holds a transaction open."""
    user.run("queues", "ls")
    with closing(sqlite3.connect(user.directory / "taskq.db", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")

        found = examine(user, code=1, TASKQ_PUBLISH_TIMEOUT_S="0.3", TASKQ_RESULTS_TIMEOUT_S="0.3")

    assert found["broker.lock"]["status"] == "failed"
    assert "fuser" in found["broker.lock"]["detail"]


def test_a_missing_queue_is_seen_where_none_may_be_made(user: User) -> None:
    """With declare=passive somebody else has to make the queues."""
    (user.directory / "taskq.toml").write_text("declare = 'passive'\n")

    found = examine(user, code=1)

    assert found["broker.queues"]["status"] == "failed"
    assert "default" in found["broker.queues"]["detail"]


@contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Overwrite pages in the middle of a database that was filled before."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(path.read_bytes())
    content[3 * 4096 : 8 * 4096] = b"\x55" * (5 * 4096)
    path.write_bytes(content)
    yield


def test_a_damaged_file_is_seen(user: User) -> None:
    """Found before it is noticed by a lost task."""
    for _ in range(3):
        user.call("shop.add", "--args", "[1, 2]")
    with damaged(user.directory / "taskq.db"):
        rows = user.run("doctor", "--json", code=1).json()

    failed = {row["name"] for row in rows if row["status"] == "failed"}
    assert failed & {"broker.integrity", "broker.writable", "broker.file"}


def checks_of(path: Path) -> dict[str, str]:
    database = open_database(parse_location(f"sqlite:///{path}"))
    try:
        return {c.name: c.status for c in check_database(database, ["default"], True, 1.0)}
    finally:
        database.close()


def test_a_file_that_cannot_be_written_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full or read-only disk refuses every send."""
    from taskq.embedded.faults import Trouble

    path = tmp_path / "taskq.db"
    assert checks_of(path)["broker.writable"] == "ok"
    database = open_database(parse_location(f"sqlite:///{path}"))

    def refuse(*_: Any, **__: Any) -> Any:
        raise Trouble("full", f"no space left for {path}")

    monkeypatch.setattr(type(database), "writing", refuse)

    assert checks_of(path) == {"broker.writable": "failed"}


def test_a_disk_that_is_nearly_full_and_a_large_log_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both end in refused sends, hours after they could have been seen."""
    from taskq.brokers import sqlite_checks

    monkeypatch.setattr(sqlite_checks, "_LARGE_WAL_BYTES", 0)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))

    found = checks_of(tmp_path / "taskq.db")

    assert found["broker.wal"] == "warning"
    assert found["broker.disk"] == "warning"


def test_waiting_dead_letters_are_seen(user: User) -> None:
    """They wait for somebody, who has to be told."""
    user.fail_for_good()

    found = examine(user)["dead-letters.waiting"]

    assert found["status"] == "warning"
    assert "taskq dead ls" in found["advice"]


# --- results


def test_results_that_are_off_or_unusable_are_seen(user: User) -> None:
    """Off is allowed and worth a warning; a wrong URL is not."""
    assert examine(user, TASKQ_RESULTS="off")["results.configured"]["status"] == "warning"
    wrong = examine(user, code=1, TASKQ_RESULTS="mysql://x")
    assert wrong["results.configured"]["status"] == "failed"


def test_a_results_store_that_is_away_is_seen(user: User) -> None:
    """Workers would run, and acknowledge nothing."""
    found = examine(user, code=1, TASKQ_RESULTS=f"redis://127.0.0.1:{free_port()}")

    assert found["results.reachable"]["status"] == "failed"


def test_redis_is_well(user: User, redis_url: str) -> None:
    """The private server of the tests evicts nothing."""
    found = examine(user, TASKQ_RESULTS=redis_url)

    assert found["results.round-trip"]["status"] == "ok"
    assert found["results.clock"]["status"] == "ok"


def test_a_redis_that_evicts_and_one_that_is_read_only_are_seen(
    user: User, private_redis: RedisServer
) -> None:
    """An evicted result is a task that seems never to have run."""
    private_redis.ctl("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    found = examine(user, TASKQ_RESULTS=private_redis.url)
    assert found["results.eviction"]["status"] == "warning"
    assert "allkeys-lru" in found["results.eviction"]["detail"]

    private_redis.ctl("REPLICAOF", "127.0.0.1", str(free_port()))
    replica = examine(user, code=1, TASKQ_RESULTS=private_redis.url)
    assert {"results.reachable", "results.round-trip"} & {
        name for name, row in replica.items() if row["status"] == "failed"
    }


def test_a_store_that_gives_back_something_else_is_seen() -> None:
    """A store without memory looks healthy to a ping."""
    with TaskQ("x", broker="memory://forgetful", results="memory://forgetful") as app:
        store = app.results
        assert store is not None

        class Forgetful(type(store)):  # type: ignore[misc]
            def fetch(self, task_ids: Any) -> list[None]:
                return [None for _ in task_ids]

        store.__class__ = Forgetful
        found = {check.name: check.status for check in doctor.check_results(app)}

    assert found["results.round-trip"] == "failed"


def test_clocks_that_disagree_are_seen() -> None:
    """Delays and expiries are compared with the local clock."""
    assert doctor.check_skew(-30.0).status == "warning"
    assert doctor.check_skew(0.2).status == "ok"
    assert doctor.check_eviction("noeviction", 0).status == "ok"


def test_the_import_of_the_doctor_needs_no_driver() -> None:
    """It examines whether drivers work, so it must not need them to start."""
    code = "import sys, taskq.cli.doctor; print({'pika', 'redis', 'sqlite3'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.stdout == "set()\n"
