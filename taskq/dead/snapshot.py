"""An index of the dead letters at one moment, so that their pages need no walk each."""

import hashlib
import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final

from taskq import clock
from taskq.brokers.base import Broker, Verdict
from taskq.dead.filter import Filter
from taskq.dead.journal import state_directory
from taskq.dead.letter import DeadException, DeadLetter
from taskq.dead.letters import DeadLetters
from taskq.dead.replay import Progress
from taskq.errors import ConfigError
from taskq.message import Message

_VERSION: Final = 1
_TABLES: Final = (
    "CREATE TABLE moment (at_ms INTEGER NOT NULL)",
    "CREATE TABLE letters (seq INTEGER PRIMARY KEY, id, task, queue, reason, type, message, "
    "fingerprint, module, attempts, failed_at_ms, worker, replays)",
)
_INSERT: Final = "INSERT INTO letters VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_NEWEST: Final = "SELECT * FROM letters ORDER BY seq DESC"
_NOTHING: Final = Message("", "", b"")


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the letters of an index.

    Attributes:
        letters: The letters, oldest first, without arguments, traceback, history and headers.
        number: Which page, from 1; the first has the newest letters.
        pages: How many pages there are.
        total: How many letters match.
        at_ms: When the index was made, as epoch ms.
    """

    letters: Sequence[DeadLetter]
    number: int
    pages: int
    total: int
    at_ms: int


class Snapshot:
    """The index of one broker, in a file of the user's own."""

    def __init__(self, broker: Broker, state_dir: str = "") -> None:
        """Find the file.

        Args:
            broker: Whose letters.
            state_dir: See `taskq.config.Settings`; empty for the user's own.
        """
        place = f"{_VERSION} {broker.url} {broker.options.prefix}"
        name = hashlib.sha256(place.encode()).hexdigest()[:16]
        self._path = state_directory(state_dir) / "dead" / f"index-{name}.db"

    @property
    def exists(self) -> bool:
        """Whether there is one."""
        return self._path.is_file()

    def take(self, letters: DeadLetters, progress: Progress | None = None) -> None:
        """Make the index anew.

        Args:
            letters: The letters.
            progress: Called with the number of letters looked at.

        Raises:
            BrokerUnavailable: If the broker cannot be reached.
            ConfigError: If the file cannot be written.
        """
        rows: list[tuple[Any, ...]] = []

        def look(letter: DeadLetter) -> Verdict:
            rows.append(_row(letter))
            return "keep"

        letters.walk(look, progress)
        part = self._path.with_suffix(f".{os.getpid()}.part")
        try:
            part.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            part.unlink(missing_ok=True)
            part.touch(mode=0o600)
            with closing(sqlite3.connect(part)) as connection, connection:
                connection.execute("PRAGMA journal_mode = OFF")
                for table in _TABLES:
                    connection.execute(table)
                connection.execute("INSERT INTO moment VALUES (?)", (clock.now_ms(),))
                connection.executemany(_INSERT, rows)
            part.rename(self._path)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"cannot write the index {self._path}: {error}; set TASKQ_STATE_DIR to a "
                "directory that can be written, or list without --limit"
            ) from error

    def page(self, wanted: Filter, number: int, size: int) -> Page:
        """Return a page of the index; one beyond the last is empty.

        Args:
            wanted: Which letters.
            number: Which page, from 1.
            size: Letters on a page.

        Raises:
            ConfigError: If the file cannot be read.
        """
        try:
            with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)) as connection:
                (at_ms,) = connection.execute("SELECT at_ms FROM moment").fetchone()
                found, total = _select(connection, wanted, (number - 1) * size, size)
        except sqlite3.Error as error:
            raise ConfigError(f"cannot read the index {self._path}: {error}") from error
        return Page(found[::-1], number, -(-total // size), total, at_ms)

    def forget(self) -> None:
        """Remove the file: the letters are others now."""
        self._path.unlink(missing_ok=True)


def _select(
    connection: sqlite3.Connection, wanted: Filter, skip: int, size: int
) -> tuple[list[DeadLetter], int]:
    if wanted == Filter():
        (total,) = connection.execute("SELECT count(*) FROM letters").fetchone()
        rows = connection.execute(f"{_NEWEST} LIMIT ? OFFSET ?", (size, skip))
        return [_letter(row) for row in rows], total
    found: list[DeadLetter] = []
    total = 0
    for row in connection.execute(_NEWEST):
        letter = _letter(row)
        if wanted.matches(letter):
            if skip <= total < skip + size:
                found.append(letter)
            total += 1
    return found, total


def _row(letter: DeadLetter) -> tuple[Any, ...]:
    error = letter.exception
    values = (
        letter.id,
        letter.task,
        letter.queue,
        letter.reason,
        error.type,
        error.message,
        error.fingerprint,
        error.module,
    )
    # A hostile message may hold halves of characters, which SQLite takes no more than UTF-8 does.
    texts = tuple(text.encode("utf-8", "replace").decode() for text in values)
    worker = letter.worker.encode("utf-8", "replace").decode()
    failed_at_ms, attempts = (min(n, 2**62) for n in (letter.failed_at_ms, letter.attempts))
    return (*texts, attempts, failed_at_ms, worker, min(letter.replays, 2**62))


def _letter(row: Sequence[Any]) -> DeadLetter:
    _, id_, task, queue, reason, kind, text, fingerprint, module, *rest = row
    attempts, failed_at_ms, worker, replays = rest
    return DeadLetter(
        id=id_,
        task=task,
        queue=queue,
        reason=reason,
        exception=DeadException(kind, text, fingerprint, module),
        attempts=attempts,
        failed_at_ms=failed_at_ms,
        worker=worker,
        replays=replays,
        traceback="",
        history=(),
        headers={},
        message=_NOTHING,
    )
