"""The embedded database: transactions, forks, upgrades, wake-ups."""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forks import in_child

from taskq.embedded import schema
from taskq.embedded.database import Database, open_database
from taskq.embedded.faults import Trouble
from taskq.embedded.liveness import Process, is_dead, this_process
from taskq.embedded.location import parse_location
from taskq.embedded.wakeup import FileWakeup, Wakeup


@pytest.fixture(params=["sqlite", "memory"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A new database of each kind."""
    url = f"sqlite:///{tmp_path}/d.db" if request.param == "sqlite" else f"memory://{tmp_path.name}"
    opened = open_database(parse_location(url))
    yield opened
    opened.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "d.db"


def opened(path: Path) -> Database:
    return open_database(parse_location(f"sqlite:///{path}"))


def put(database: Database, name: str, timeout_s: float = 5.0) -> None:
    with database.writing(timeout_s) as connection:
        connection.execute("INSERT INTO queues VALUES (?, 0)", (name,))


def names(database: Database) -> list[str]:
    with database.reading(5.0) as connection:
        return [name for (name,) in connection.execute("SELECT name FROM queues")]


def test_an_exception_rolls_back(database: Database) -> None:
    """Half a batch would be worse than none."""

    def fail() -> None:
        with database.writing(5.0) as connection:
            connection.execute("INSERT INTO queues VALUES ('a', 0)")
            raise KeyError

    with pytest.raises(KeyError):
        fail()

    put(database, "b")
    assert names(database) == ["b"]


def test_a_file_is_durable_and_marked_as_ours(path: Path) -> None:
    """WAL with FULL: a commit survives a power failure; the marks tell our files from others."""
    database = opened(path)
    with database.writing(5.0) as connection:
        (synchronous,) = connection.execute("PRAGMA synchronous").fetchone()
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    with database.writing(5.0, durable=False) as connection:
        (relaxed,) = connection.execute("PRAGMA synchronous").fetchone()
    put(database, "durable again")
    with database.writing(5.0) as connection:
        (again,) = connection.execute("PRAGMA synchronous").fetchone()
    database.close()

    assert (synchronous, mode, relaxed, again) == (2, "wal", 1, 2)
    plain = sqlite3.connect(path)
    assert plain.execute("PRAGMA application_id").fetchone() == (schema.APPLICATION_ID,)
    assert plain.execute("PRAGMA user_version").fetchone() == (schema.VERSION,)
    plain.close()


def test_threads_and_users_share_one_connection(path: Path) -> None:
    """The last user closes it; the others are not cut off by the first that does."""
    first, second = opened(path), opened(path)
    assert first is second

    first.close()
    threads = [threading.Thread(target=put, args=(second, f"q{n}")) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(names(second)) == 20
    second.close()


def test_a_foreign_lock_ends_in_time_and_readers_go_on(path: Path) -> None:
    """A shell with an open transaction must cost neither hangs nor reads."""
    database = opened(path)
    put(database, "a")
    shell = sqlite3.connect(path, isolation_level=None)
    shell.execute("BEGIN IMMEDIATE")

    def wait_for_the_lock() -> None:
        with contextlib.suppress(Trouble):
            put(database, "late", 1.0)

    waiting = threading.Thread(target=wait_for_the_lock)
    waiting.start()

    began = time.monotonic()
    assert names(database) == ["a"]
    read_s = time.monotonic() - began
    with pytest.raises(Trouble, match=str(path)) as caught:
        put(database, "b", 0.3)
    took_s = time.monotonic() - began
    waiting.join()
    shell.execute("ROLLBACK")
    put(database, "c")

    assert caught.value.reason == "locked"
    assert read_s < 0.2
    assert took_s < 1.5
    assert names(database) == ["a", "c"]
    shell.close()
    database.close()


def test_an_older_file_is_upgraded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queued work survives an upgrade of taskq; its version says that it happened once."""
    database = opened(path)
    put(database, "kept")
    database.close()
    now = schema.VERSION
    steps = {
        now: "CREATE TABLE extra (a);\nINSERT INTO extra VALUES (1);\n",
        now + 1: "DROP TABLE extra",
    }
    monkeypatch.setattr(schema, "VERSION", now + 2)
    monkeypatch.setattr(schema, "MIGRATIONS", steps)

    for _ in range(2):
        database = opened(path)
        assert names(database) == ["kept"]
        with database.reading(5.0) as connection:
            assert connection.execute("PRAGMA user_version").fetchone() == (now + 2,)
        database.close()


def test_a_file_of_the_first_version_gets_what_came_later(path: Path) -> None:
    """Work queued by the first taskq of all is still there, and all tables of this one are."""
    old = sqlite3.connect(path, isolation_level=None)
    for statement in schema.TABLES.split(";\n"):
        old.execute(statement)
    old.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
    old.execute(f"PRAGMA user_version = {schema.FIRST_VERSION}")
    old.execute("INSERT INTO queues VALUES ('kept', 1)")
    old.close()
    new, upgraded = opened(path.with_name("new.db")), opened(path)

    assert names(new) == []
    assert names(upgraded) == ["kept"]
    assert tables(upgraded) == tables(new)
    with upgraded.reading(5.0) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (schema.VERSION,)
    new.close()
    upgraded.close()


def tables(database: Database) -> list[str]:
    with database.reading(5.0) as connection:
        found = connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name")
        return [f"{name}: {text}" for name, text in found]


def test_a_failed_upgrade_leaves_the_old_schema(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half an upgrade would be a file that no version reads."""
    database = opened(path)
    put(database, "kept")
    database.close()
    with monkeypatch.context() as patch:
        now = schema.VERSION
        patch.setattr(schema, "VERSION", now + 1)
        patch.setattr(schema, "MIGRATIONS", {now: "CREATE TABLE extra (a);\nNONSENSE"})
        broken = opened(path)
        with pytest.raises(Trouble):
            names(broken)
        broken.close()

    database = opened(path)
    assert names(database) == ["kept"]
    database.close()


def test_a_replaced_file_is_opened_anew(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Writing on into a deleted file would be a confirmed send into nowhere."""
    database = opened(path)
    put(database, "old")
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink()

    put(database, "new")

    plain = sqlite3.connect(path)
    assert plain.execute("SELECT name FROM queues").fetchall() == [("new",)]
    plain.close()
    assert "reason=file was replaced or deleted" in caplog.text
    database.close()


def test_a_child_gets_a_connection_of_its_own(path: Path) -> None:
    """SQLite forbids a connection across a fork: it would damage the file."""
    database = opened(path)
    put(database, "parent")

    def child() -> None:
        assert database._connection is None
        put(database, "child")
        assert names(database) == ["child", "parent"]

    in_child(child)

    put(database, "parent again")
    assert len(names(database)) == 3
    database.close()


@pytest.fixture(params=["inotify", "asking", "memory"])
def waker(request: pytest.FixtureRequest, path: Path) -> Iterator[tuple[Database, Wakeup]]:
    """A wake-up of each kind, with its database."""
    memory = f"memory://{path.parent.name}"
    url = memory if request.param == "memory" else f"sqlite:///{path}"
    database = open_database(parse_location(url))
    if request.param == "asking":
        wakeup: Wakeup = FileWakeup(str(path), database.version, use_inotify=False)
    else:
        wakeup = database.wakeup()
    yield database, wakeup
    wakeup.close()
    database.close()


def settled(wakeup: Wakeup) -> None:
    """Use up what is still to be told of earlier commits."""
    for _ in range(3):
        wakeup.wait(0.05)


def test_a_commit_between_two_waits_is_not_missed(waker: tuple[Database, Wakeup]) -> None:
    """Read, commit by another, wait: the wait must end at once, or a task lies there unseen."""
    database, wakeup = waker
    settled(wakeup)

    put(database, "a")
    began = time.monotonic()
    wakeup.wait(1.0)

    assert time.monotonic() - began < 0.5


def test_a_waiting_thread_wakes_on_a_commit(waker: tuple[Database, Wakeup]) -> None:
    """Pick-up takes milliseconds; the reading after a second is only the net below."""
    database, wakeup = waker
    settled(wakeup)
    woken: list[float] = []
    thread = threading.Thread(target=lambda: (wakeup.wait(1.0), woken.append(time.monotonic())))
    thread.start()
    # Whether the thread waits already makes no difference, see the test above.
    put(database, "a")
    committed = time.monotonic()
    thread.join()

    assert woken[0] - committed < 0.5


def test_many_commits_are_one_wake_up(waker: tuple[Database, Wakeup]) -> None:
    """A burst must not make the waiter read once for each commit."""
    database, wakeup = waker
    for n in range(50):
        put(database, f"q{n}")

    settled(wakeup)
    began = time.monotonic()
    wakeup.wait(0.3)

    assert time.monotonic() - began > 0.25


def test_poke_and_close_end_a_wait_from_another_thread(waker: tuple[Database, Wakeup]) -> None:
    """A stopping worker must not wait for the next second."""
    _, wakeup = waker
    for end in (wakeup.poke, wakeup.close):
        settled(wakeup)
        began = time.monotonic()
        thread = threading.Thread(target=wakeup.wait, args=(1.0,))
        thread.start()
        end()
        thread.join()
        assert time.monotonic() - began < 0.5
    wakeup.close()
    wakeup.poke()


def test_a_wait_is_never_longer_than_a_second(waker: tuple[Database, Wakeup]) -> None:
    """A writer that is killed between its commit and the announcement tells nobody."""
    _, wakeup = waker
    settled(wakeup)
    began = time.monotonic()
    wakeup.wait(60.0)

    assert time.monotonic() - began < 5


def test_another_processs_commit_wakes(waker: tuple[Database, Wakeup], path: Path) -> None:
    """Sender and worker are different processes."""
    database, wakeup = waker
    if not database.location.path:
        pytest.skip("a database in memory belongs to one process")
    settled(wakeup)

    in_child(lambda: put(database, "from a child"))
    began = time.monotonic()
    wakeup.wait(1.0)

    assert time.monotonic() - began < 0.5


def test_a_dead_process_is_told_from_the_living_and_the_unknown() -> None:
    """Mistaking a living worker for dead runs its tasks twice; pid numbers are used again."""
    me = this_process()

    assert not is_dead(me)
    assert is_dead(Process(me.place, me.pid, me.start + 1))
    assert not is_dead(Process("another boot", me.pid, me.start + 1))
    assert not is_dead(Process("", me.pid, 1))
    assert not is_dead(Process(me.place, 2**22 + 1, 0))
    assert is_dead(Process(me.place, 2**22 + 1, 5))


class _Interrupted:
    """A connection before whose last question another process makes the file."""

    def __init__(self, real: sqlite3.Connection, other: Callable[[], None]) -> None:
        self._real = real
        self._other: Callable[[], None] | None = other

    @property
    def in_transaction(self) -> bool:
        return self._real.in_transaction

    def execute(self, statement: str) -> sqlite3.Cursor:
        if "sqlite_master" in statement and self._other is not None:
            other, self._other = self._other, None
            other()
        return self._real.execute(statement)


def test_two_creators_of_one_file_are_no_strangers(path: Path) -> None:
    """The slower one must not take the tables of the faster one for another program's."""

    def create() -> None:
        other = sqlite3.connect(path, timeout=0, isolation_level=None)
        with contextlib.suppress(sqlite3.OperationalError):
            other.execute("BEGIN IMMEDIATE")
            schema.upgrade(other, "x")
            other.execute("COMMIT")
        other.close()

    real = sqlite3.connect(path, timeout=0, isolation_level=None)
    interrupted: Any = _Interrupted(real, create)

    assert schema.check_identity(interrupted, "x") == 0
    real.close()
