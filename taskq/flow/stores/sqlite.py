"""Flow control in the embedded database: the rules in one transaction for each batch."""

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import msgpack

from taskq.embedded.database import open_database
from taskq.embedded.faults import Trouble
from taskq.embedded.location import parse_location
from taskq.errors import ResultsUnavailable
from taskq.flow import returns, rules
from taskq.flow.asks import DONE, PASSED, SETTINGS, Ask, Release, Verdict
from taskq.flow.declared import Claim
from taskq.flow.store import Admitted, FlowStore
from taskq.results.base import attempt_of, is_terminal
from taskq.results.sqlite import FETCH, SqliteResults
from taskq.results.sqlite_cancels import rules_after

# Made at first use and not by the schema: a file whose tasks declare no limits has no such table.
_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS flow "
    "(name TEXT PRIMARY KEY, state BLOB NOT NULL, expires_us INTEGER NOT NULL) WITHOUT ROWID"
)
_INDEX: Final = "CREATE INDEX IF NOT EXISTS flow_expires ON flow (expires_us)"
_SETTINGS_TTL_US: Final = 366 * 86_400_000_000
_PRUNE: Final = (
    "DELETE FROM flow WHERE name IN "
    "(SELECT name FROM flow WHERE expires_us <= ? ORDER BY expires_us LIMIT 50)"
)


class TableCells:
    """Cells as rows: read on first use, written together by `flush`."""

    def __init__(self, connection: sqlite3.Connection, now_us: int) -> None:
        self._connection = connection
        self._now_us = now_us
        self._states: dict[str, list[Any] | None] = {}
        self._ttls: dict[str, int] = {}

    def get(self, name: str) -> list[Any] | None:
        """Return a cell's state, or None."""
        if name not in self._states:
            row = self._connection.execute(
                "SELECT state FROM flow WHERE name = ? AND expires_us > ?", (name, self._now_us)
            ).fetchone()
            self._states[name] = None if row is None else _unpack(row[0])
        return self._states[name]

    def put(self, name: str, state: list[Any], ttl_us: int) -> None:
        """Replace a cell's state."""
        self._states[name] = state
        self._ttls[name] = ttl_us

    def drop(self, name: str) -> None:
        """Forget a cell."""
        self._states[name] = None
        self._ttls[name] = 0

    def finished(self, task_id: str) -> bool:
        """Return whether a task's record is final."""
        record = _fetch(self._connection, [task_id], self._now_us)[0]
        return record is not None and is_terminal(record)

    def flush(self) -> None:
        """Write what changed."""
        put = []
        for name, ttl_us in self._ttls.items():
            state = self._states[name]
            if state is None:
                self._connection.execute("DELETE FROM flow WHERE name = ?", (name,))
            else:
                put.append((name, msgpack.packb(state), self._now_us + max(1000, ttl_us)))
        if put:
            self._connection.executemany("INSERT OR REPLACE INTO flow VALUES (?, ?, ?)", put)
            self._connection.execute(_PRUNE, (self._now_us,))


def _unpack(data: bytes) -> list[Any]:
    state: list[Any] = msgpack.unpackb(data, strict_map_key=False)
    return state


class SqliteFlow(FlowStore):
    """See `FlowStore`."""

    def __init__(self, results: SqliteResults, timeout_s: float = 5.0) -> None:
        """Use the database of a results store, which must stay open.

        Args:
            results: The store.
            timeout_s: How long an operation may take, in seconds.
        """
        self._database = open_database(parse_location(results.url))
        self._timeout_s = timeout_s
        self.fixed_us = 0

    def admit(
        self, ids: Sequence[str], asks: Sequence[tuple[int, Ask]], after: int = 0
    ) -> Admitted:
        """Fetch and decide; see `FlowStore`."""
        verdicts, done = [], []
        with self._writing(durable=False) as (connection, cells, now):
            news = rules_after(connection, after)
            records = _fetch(connection, ids, now)
            for at, ask in asks:
                record = records[at]
                if record and (is_terminal(record) or attempt_of(record) > ask.attempt):
                    verdicts.append(Verdict(PASSED))
                else:
                    verdicts.append(rules.judge(ask, cells, now))
            for verdict in verdicts:
                other = verdict.code == DONE
                done.append(_fetch(connection, [verdict.other], now)[0] if other else None)
        return Admitted(records, verdicts, done, news)

    def release(self, batch: Sequence[Release]) -> list[str]:
        """Take back; see `FlowStore`."""
        return self._each(lambda cells, now: [returns.release(item, cells, now) for item in batch])

    def renew(self, batch: Sequence[Release], lease_us: int) -> None:
        """Keep; see `FlowStore`."""
        with self._writing(durable=False) as (_connection, cells, now):
            for item in batch:
                returns.renew(item, lease_us, cells, now)

    def claim(self, batch: Sequence[Claim]) -> list[str]:
        """Claim; see `FlowStore`."""
        return self._each(lambda cells, now: [returns.claim(item, cells, now) for item in batch])

    def unclaim(self, batch: Sequence[Claim]) -> None:
        """Undo claims; see `FlowStore`."""
        with self._writing(durable=True) as (_connection, cells, _now):
            for item in batch:
                returns.unclaim(item.cell, item.task_id, cells)

    def change(self, name: str, value: Any, forget: Sequence[str] = ()) -> None:
        """Set a limit and forget cells; see `FlowStore`."""
        with self._writing(durable=True) as (_connection, cells, _now):
            version, changed = cells.get(SETTINGS) or [0, {}]
            if name:
                changed = {**changed, name: value}
                if value is None:
                    del changed[name]
            cells.put(SETTINGS, [version + 1, changed], _SETTINGS_TTL_US)
            for cell in forget:
                cells.drop(cell)

    def cells(self) -> dict[str, list[Any]]:
        """Return all cells; see `FlowStore`."""
        with self._writing(durable=False) as (connection, _cells, now):
            rows = connection.execute(
                "SELECT name, state FROM flow WHERE expires_us > ? ORDER BY name", (now,)
            ).fetchall()
        return {name: _unpack(data) for name, data in rows}

    def now_us(self) -> int:
        """Return this machine's clock; see `FlowStore`."""
        return self.fixed_us or time.time_ns() // 1000

    def _each(self, work: Callable[[TableCells, int], list[Any]]) -> list[Any]:
        with self._writing(durable=True) as (_connection, cells, now):
            return work(cells, now)

    @contextmanager
    def _writing(self, *, durable: bool) -> Iterator[tuple[sqlite3.Connection, TableCells, int]]:
        with (
            _translated(),
            self._database.writing(self._timeout_s, durable=durable) as connection,
        ):
            connection.execute(_TABLE)
            connection.execute(_INDEX)
            now = self.now_us()
            cells = TableCells(connection, now)
            yield connection, cells, now
            cells.flush()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except Trouble as trouble:
        raise ResultsUnavailable(trouble.detail) from trouble


def _fetch(connection: sqlite3.Connection, ids: Sequence[str], now_us: int) -> list[bytes | None]:
    found = dict(connection.execute(FETCH, (json.dumps(list(ids)), now_us // 1000)))
    return [found.get(task_id) for task_id in ids]
