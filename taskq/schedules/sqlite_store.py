"""Schedules in the embedded file, in tables of their own that are made when first needed."""

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from taskq import clock
from taskq.embedded.database import open_database
from taskq.embedded.faults import Trouble
from taskq.embedded.location import parse_location
from taskq.errors import ResultsUnavailable
from taskq.schedules.store import (
    MOST_MS,
    Beat,
    Claim,
    Declared,
    Mark,
    Row,
    ScheduleStore,
    Status,
    settled,
)

_TABLES: Final = (
    """
    CREATE TABLE IF NOT EXISTS schedules (
        app TEXT NOT NULL,
        name TEXT NOT NULL,
        text TEXT NOT NULL,
        paused TEXT NOT NULL DEFAULT '',
        cursor_ms INTEGER NOT NULL DEFAULT 0,
        queued_ms INTEGER NOT NULL DEFAULT 0,
        fired INTEGER NOT NULL DEFAULT 0,
        skipped INTEGER NOT NULL DEFAULT 0,
        missed INTEGER NOT NULL DEFAULT 0,
        last_id TEXT NOT NULL DEFAULT '',
        declared INTEGER NOT NULL DEFAULT 0,
        version INTEGER NOT NULL,
        PRIMARY KEY (app, name)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX IF NOT EXISTS schedules_version ON schedules (app, version)",
    """
    CREATE TABLE IF NOT EXISTS schedule_claims (
        app TEXT NOT NULL,
        id TEXT NOT NULL,
        token INTEGER NOT NULL,
        PRIMARY KEY (app, id)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE IF NOT EXISTS schedule_leaders (
        app TEXT PRIMARY KEY,
        holder TEXT NOT NULL DEFAULT '',
        token INTEGER NOT NULL DEFAULT 0,
        ends_ms INTEGER NOT NULL DEFAULT 0,
        version INTEGER NOT NULL DEFAULT 0,
        epoch TEXT NOT NULL DEFAULT '',
        done_ms INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID
    """,
)
_COLUMNS: Final = "name, text, paused, cursor_ms, queued_ms, fired, skipped, missed, last_id"
_PART: Final = 500


class SqliteSchedules(ScheduleStore):
    """Schedules in an embedded database; see `ScheduleStore`.

    The lease is measured by the machine's monotonic clock, which all its processes share and which
    nobody sets.

    Attributes:
        url: With an absolute path.
    """

    def __init__(self, url: str, app: str, timeout_s: float = 5.0) -> None:
        """Take the URL apart; the file is opened at first use.

        Args:
            url: `sqlite:///path` or `memory://name`.
            app: Name of the app.
            timeout_s: How long an operation may take, in seconds.

        Raises:
            ConfigError: If the URL names no file.
        """
        location = parse_location(url)
        self.url = location.url
        self._app = app
        self._database = open_database(location)
        self._timeout_s = timeout_s
        self._closed = False

    @contextmanager
    def _writing(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        try:
            with self._database.writing(self._timeout_s, durable=durable) as connection:
                try:
                    connection.execute("SELECT done_ms FROM schedule_leaders LIMIT 1")
                except sqlite3.OperationalError:
                    # A new file, one that was put in the place of the old one, or an older one.
                    _make_tables(connection)
                yield connection
        except Trouble as trouble:
            raise ResultsUnavailable(trouble.detail) from trouble

    def _touch(self, connection: sqlite3.Connection) -> int:
        """Return a new version."""
        version = self._leader(connection)[3] + 1
        connection.execute(
            "INSERT INTO schedule_leaders (app, version) VALUES (?, ?) "
            "ON CONFLICT (app) DO UPDATE SET version = excluded.version",
            (self._app, version),
        )
        return version

    def _leader(self, connection: sqlite3.Connection) -> tuple[str, int, int, int, str, int]:
        row = connection.execute(
            "SELECT holder, token, ends_ms, version, epoch, done_ms FROM schedule_leaders "
            "WHERE app = ?",
            (self._app,),
        ).fetchone()
        if row is None:
            return "", 0, 0, 0, "", 0
        holder, token, ends_ms, version, epoch, done_ms = row
        if not _is_count(token) or not _is_count(version):
            # A hand has broken them. They go on above all that they have counted.
            token = version = clock.now_ms() // 1000
            connection.execute(
                "UPDATE schedule_leaders SET holder = '', token = ?, version = ? WHERE app = ?",
                (token, version, self._app),
            )
            holder = ""
        ends_ms, done_ms = (value if _is_count(value) else 0 for value in (ends_ms, done_ms))
        return str(holder), token, ends_ms, version, str(epoch), done_ms

    def beat(self, holder: str, token: int, ttl_ms: int, *, take: bool, done_ms: int = 0) -> Beat:
        """Renew or take the lease; see `ScheduleStore`."""
        with self._writing(durable=False) as connection:
            other, known, ends_ms, version, epoch, done = self._leader(connection)
            passed_ms = round(clock.monotonic_s() * 1000)
            # A lease that ends later than any can was written before the machine started anew.
            held = bool(other) and passed_ms < ends_ms <= passed_ms + 3_600_000
            mine = held and token != 0 and (other, known) == (holder, token)
            if not held and take:
                other, known, mine = holder, known + 1, True
            if mine:
                epoch = epoch or f"{known} {holder} {clock.now_ms()}"
                done = max(done, done_ms)
                connection.execute(
                    "INSERT OR REPLACE INTO schedule_leaders "
                    "(app, holder, token, ends_ms, version, epoch, done_ms) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (self._app, holder, known, passed_ms + ttl_ms, version, epoch, done),
                )
        holds = other if held or mine else ""
        return Beat(known if mine else 0, holds, clock.now_ms(), version, epoch, done)

    def release(self, holder: str, token: int) -> None:
        """Give the lease back; see `ScheduleStore`."""
        with self._writing() as connection:
            connection.execute(
                "UPDATE schedule_leaders SET holder = '' "
                "WHERE app = ? AND holder = ? AND token = ?",
                (self._app, holder, token),
            )

    def changed(self, since: int) -> tuple[int, list[Row]]:
        """Return what changed; see `ScheduleStore`."""
        with self._writing(durable=False) as connection:
            if not since:
                connection.execute(
                    "DELETE FROM schedules WHERE app = ? AND text = ''", (self._app,)
                )
            newer = "AND version > ?" if since else "AND ? = 0"
            found = connection.execute(
                f"SELECT {_COLUMNS} FROM schedules WHERE app = ? {newer}", (self._app, since)
            ).fetchall()
            version = self._leader(connection)[3]
        # Not while the file is locked, which is the queue's too: 100,000 rows take their time.
        return version, [_row(values) for values in found]

    def rows(self, names: Sequence[str]) -> list[Row | None]:
        """Return rows by name; see `ScheduleStore`."""
        found: dict[str, Row] = {}
        with self._writing(durable=False) as connection:
            for start in range(0, len(names), _PART):
                part = json.dumps(list(names[start : start + _PART]))
                for values in connection.execute(
                    f"SELECT {_COLUMNS} FROM schedules WHERE app = ? AND text != '' "
                    "AND name IN (SELECT value FROM json_each(?))",
                    (self._app, part),
                ):
                    found[values[0]] = _row(values)
        return [found.get(name) for name in names]

    def _define(self, connection: sqlite3.Connection, name: str, text: str, now_ms: int) -> str:
        row = self._one(connection, name)
        if row is not None and row.text == text:
            return "same"
        version = self._touch(connection)
        if row is None:
            connection.execute(
                "INSERT OR REPLACE INTO schedules (app, name, text, cursor_ms, version) "
                "VALUES (?, ?, ?, ?, ?)",
                (self._app, name, text, now_ms, version),
            )
            return "added"
        cursor_ms = row.cursor_ms
        if row.text.partition("\n")[0] != text.partition("\n")[0]:
            cursor_ms = max(cursor_ms, now_ms)
        connection.execute(
            "UPDATE schedules SET text = ?, cursor_ms = ?, version = ? WHERE app = ? AND name = ?",
            (text, cursor_ms, version, self._app, name),
        )
        return "changed"

    def _one(self, connection: sqlite3.Connection, name: str) -> Row | None:
        values = connection.execute(
            f"SELECT {_COLUMNS} FROM schedules WHERE app = ? AND name = ? AND text != ''",
            (self._app, name),
        ).fetchone()
        return None if values is None else _row(values)

    def declare(self, texts: Mapping[str, str], now_ms: int) -> Declared:
        """Make the declared schedules exactly these; see `ScheduleStore`."""
        done = Declared([], [], [])
        with self._writing() as connection:
            known = connection.execute(
                "SELECT name FROM schedules WHERE app = ? AND declared AND text != ''", (self._app,)
            ).fetchall()
            for name, text in texts.items():
                what = self._define(connection, name, text, now_ms)
                if what != "same":
                    (done.added if what == "added" else done.changed).append(name)
                self._set_declared(connection, name, True)
            for (name,) in known:
                if name not in texts:
                    self._drop(connection, name)
                    done.removed.append(name)
        return done

    def _set_declared(self, connection: sqlite3.Connection, name: str, declared: bool) -> None:
        connection.execute(
            "UPDATE schedules SET declared = ? WHERE app = ? AND name = ?",
            (declared, self._app, name),
        )

    def put(self, name: str, text: str, now_ms: int, *, replace: bool) -> bool:
        """Store a dynamic schedule; see `ScheduleStore`."""
        with self._writing() as connection:
            if not replace and self._one(connection, name) is not None:
                return False
            self._define(connection, name, text, now_ms)
            self._set_declared(connection, name, False)
        return True

    def _drop(self, connection: sqlite3.Connection, name: str) -> int:
        return connection.execute(
            "UPDATE schedules SET text = '', declared = 0, version = ? "
            "WHERE app = ? AND name = ? AND text != ''",
            (self._touch(connection), self._app, name),
        ).rowcount

    def remove(self, name: str) -> bool:
        """Remove a schedule; see `ScheduleStore`."""
        with self._writing() as connection:
            return self._drop(connection, name) > 0

    def pause(self, name: str, note: str, now_ms: int) -> bool:
        """Pause or resume a schedule; see `ScheduleStore`."""
        with self._writing() as connection:
            row = self._one(connection, name)
            if row is None:
                return False
            resumed = not note and row.paused
            connection.execute(
                "UPDATE schedules SET paused = ?, version = ?, cursor_ms = max(cursor_ms, ?) "
                "WHERE app = ? AND name = ?",
                (note, self._touch(connection), now_ms if resumed else 0, self._app, name),
            )
        return True

    def restore(self, rows: Sequence[Row], declared: Sequence[str]) -> None:
        """Write back what was lost; see `ScheduleStore`."""
        known = set(declared)
        with self._writing() as connection:
            for row in rows:
                version = self._touch(connection)
                there = self._one(connection, row.name)
                kept = row
                if there is not None:
                    newer = there if there.cursor_ms > row.cursor_ms else row
                    kept = newer._replace(text=there.text, paused=there.paused)
                connection.execute(
                    f"INSERT OR REPLACE INTO schedules (app, declared, version, {_COLUMNS}) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        self._app,
                        row.name in known,
                        version,
                        *kept,
                    ),
                )

    def claim(self, holder: str, token: int, claims: Sequence[Claim]) -> list[Status] | None:
        """Claim ticks; see `ScheduleStore`."""
        found: list[Status] = []
        with self._writing() as connection:
            if self._leader(connection)[:2] != (holder, token):
                return None
            for name, due_ms, task_id in claims:
                status = self._claim_one(connection, token, name, due_ms, task_id)
                found.append(status)
                if status != "done":
                    connection.execute(
                        "INSERT OR REPLACE INTO schedule_claims VALUES (?, ?, ?)",
                        (self._app, task_id, token),
                    )
        return found

    def _claim_one(
        self, connection: sqlite3.Connection, token: int, name: str, due_ms: int, task_id: str
    ) -> Status:
        other = connection.execute(
            "SELECT token FROM schedule_claims WHERE app = ? AND id = ?", (self._app, task_id)
        ).fetchone()
        if other is not None:
            return "fresh" if other[0] == token else "open"
        row = self._one(connection, name)
        done = row is not None and due_ms <= row.cursor_ms and due_ms != row.queued_ms
        return "done" if done else "fresh"

    def settle(self, marks: Sequence[Mark]) -> None:
        """Record what became of ticks; see `ScheduleStore`."""
        with self._writing() as connection:
            for mark in marks:
                ended = self._end_claims(connection, mark)
                row = self._one(connection, mark.name)
                if row is not None:
                    self._write(connection, settled(row, mark, ended))

    def _end_claims(self, connection: sqlite3.Connection, mark: Mark) -> bool:
        statement = "DELETE FROM schedule_claims WHERE app = ? AND id = ?"
        if mark.settled:
            connection.execute(statement, (self._app, mark.settled))
        return bool(mark.fired and connection.execute(statement, (self._app, mark.fired)).rowcount)

    def _write(self, connection: sqlite3.Connection, row: Row) -> None:
        connection.execute(
            "UPDATE schedules SET cursor_ms = ?, queued_ms = ?, fired = ?, skipped = ?, "
            "missed = ?, last_id = ? WHERE app = ? AND name = ?",
            (*row[3:], self._app, row.name),
        )

    def close(self) -> None:
        """Let go of the file; see `ScheduleStore`."""
        if not self._closed:
            self._closed = True
            self._database.close()


def _make_tables(connection: sqlite3.Connection) -> None:
    for statement in _TABLES:
        connection.execute(statement)
    columns = [name for _, name, *_ in connection.execute("PRAGMA table_info(schedule_leaders)")]
    if "done_ms" not in columns:
        connection.execute(
            "ALTER TABLE schedule_leaders ADD COLUMN done_ms INTEGER NOT NULL DEFAULT 0"
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value <= MOST_MS


def _text(value: Any) -> str:
    # A hand may have stored a blob, as sqlite3's readfile() does.
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _row(values: Sequence[Any]) -> Row:
    name, text, paused = map(_text, values[:3])
    if not all(map(_is_count, values[3:8])):
        return Row(name, text, paused, cursor_ms=-1)
    return Row._make((name, text, paused, *values[3:8], _text(values[8])))
