"""`self.once`: marker and effect in one transaction of the user's database."""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy.orm import Session

from taskq import ConfigError, TaskQ
from taskq.request import Request, current

app = TaskQ("once", broker="memory://once", results="memory://once")


@app.task(bind=True)
def effect(self: Any) -> None: ...


@contextmanager
def running(task_id: str) -> Iterator[None]:
    token = current.set(Request(id=task_id, task=effect.name))
    try:
        yield
    finally:
        current.reset(token)


@contextmanager
def plain(path: Path) -> Iterator[Any]:
    connection = sqlite3.connect(path)
    try:
        with connection:
            yield connection
    finally:
        connection.close()


@contextmanager
def core(path: Path) -> Iterator[Any]:
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


@contextmanager
def orm(path: Path) -> Iterator[Any]:
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    try:
        with Session(engine) as session, session.begin():
            yield session
    finally:
        engine.dispose()


KINDS = pytest.mark.parametrize("opened", [plain, core, orm])


@KINDS
def test_the_second_run_of_a_task_finds_the_marker_of_the_first(
    opened: Any, tmp_path: Path
) -> None:
    """The effect happened; doing it again would be a second payment."""
    with running("a"):
        with opened(tmp_path / "shop.db") as connection:
            assert effect.once(connection)
        with opened(tmp_path / "shop.db") as connection:
            assert not effect.once(connection)
            assert not effect.once(connection)


@KINDS
def test_a_marker_goes_with_the_transaction(opened: Any, tmp_path: Path) -> None:
    """Where the effect was rolled back the marker must not stay."""
    with running("a"):
        first = []
        with contextlib.suppress(RuntimeError), opened(tmp_path / "shop.db") as connection:
            first.append(effect.once(connection))
            raise RuntimeError("the effect fails")
        assert first == [True]
        with opened(tmp_path / "shop.db") as connection:
            assert effect.once(connection)


@KINDS
def test_other_tasks_and_other_effects_have_markers_of_their_own(
    opened: Any, tmp_path: Path
) -> None:
    """One task may charge and send mail."""
    with opened(tmp_path / "shop.db") as connection:
        for task_id in ("a", "b"):
            with running(task_id):
                assert effect.once(connection)
                assert effect.once(connection, "mail")
                assert not effect.once(connection, "mail")


def test_in_place_the_effect_always_happens(tmp_path: Path) -> None:
    """There is no task id to mark."""
    with plain(tmp_path / "shop.db") as connection:
        assert effect.once(connection)
        assert effect.once(connection)


def test_a_connection_that_commits_by_itself_is_refused(tmp_path: Path) -> None:
    """Marker and effect would be two transactions, and a crash could come between them."""
    raw = sqlite3.connect(tmp_path / "shop.db", isolation_level=None)
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/shop.db")

    with running("a"):
        with pytest.raises(ConfigError, match="transaction"):
            effect.once(raw)
        raw.execute("DELETE FROM taskq_once")
        raw.execute("BEGIN")
        assert effect.once(raw)
        raw.execute("COMMIT")
        automatic = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        with automatic, pytest.raises(ConfigError, match="AUTOCOMMIT"):
            effect.once(automatic)
    raw.close()
    engine.dispose()


def test_what_is_no_connection_is_refused_by_name() -> None:
    """With what to do for an async one."""
    with running("a"), pytest.raises(ConfigError, match="run_sync"):
        effect.once(object())


def test_two_runs_at_once_have_one_effect(tmp_path: Path) -> None:
    """A worker that was believed dead may still be running."""
    path = tmp_path / "shop.db"
    with plain(path) as connection:
        connection.execute("CREATE TABLE effects (n INTEGER)")
    together = threading.Barrier(4)

    def run() -> None:
        connection = sqlite3.connect(path, timeout=60)
        together.wait()
        with running("a"), connection:
            if effect.once(connection):
                connection.execute("INSERT INTO effects VALUES (1)")
        connection.close()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    with plain(path) as connection:
        assert connection.execute("SELECT count(*) FROM effects").fetchone() == (1,)
