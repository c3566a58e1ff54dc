"""Flow control in the embedded database: the rules in one transaction for each batch."""

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import msgpack

from taskq.embedded.database import open_database
from taskq.embedded.faults import Trouble
from taskq.embedded.location import parse_location
from taskq.errors import ResultsUnavailable
from taskq.flow import returns, rules
from taskq.flow.asks import DONE, KEEP_US, PASSED, SETTINGS, Ask, Holder, Release, Verdict
from taskq.flow.declared import Claim
from taskq.flow.store import Admitted, FlowStore, with_holders
from taskq.results.base import attempt_of, is_terminal
from taskq.results.sqlite import FETCH, SqliteResults
from taskq.results.sqlite_cancels import rules_after

# Made at first use and not by the schema: a file whose tasks declare no limits has no such table.
_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS flow "
    "(name TEXT PRIMARY KEY, state BLOB NOT NULL, expires_us INTEGER NOT NULL) WITHOUT ROWID"
)
_INDEX: Final = "CREATE INDEX IF NOT EXISTS flow_expires ON flow (expires_us)"
_SLOTS: Final = (
    "CREATE TABLE IF NOT EXISTS flow_slots (cell TEXT, id TEXT, until_us INTEGER NOT NULL, "
    "nonce TEXT NOT NULL, since_us INTEGER NOT NULL, PRIMARY KEY (cell, id)) WITHOUT ROWID"
)
_SLOTS_INDEX: Final = (
    "CREATE INDEX IF NOT EXISTS flow_slots_until ON flow_slots (cell, until_us, id)"
)
_HELD: Final = "n:"
"""Before the name of a cell: the row with how many of its slots are held, so that none counts."""
_SETTINGS_TTL_US: Final = 366 * 86_400_000_000
_EXPIRED: Final = "SELECT name FROM flow WHERE expires_us <= ? ORDER BY expires_us LIMIT 50"
_NAMED: Final = (
    "SELECT name, state FROM flow WHERE name IN (SELECT value FROM json_each(?)) AND expires_us > ?"
)


class TableCells:
    """Cells as rows: read on first use or together, written together by `flush`."""

    def __init__(self, connection: sqlite3.Connection, now_us: int) -> None:
        self._connection = connection
        self._now_us = now_us
        self._states: dict[str, list[Any] | None] = {}
        self._ttls: dict[str, int] = {}
        self._slots: dict[tuple[str, str], Holder | None] = {}
        self._written: dict[tuple[str, str], Holder | None] = {}

    def load(self, names: Sequence[str]) -> None:
        """Read cells together."""
        text = json.dumps(names)
        found = dict(self._connection.execute(_NAMED, (text, self._now_us)).fetchall())
        for name in names:
            data = found.get(name)
            self._states[name] = None if data is None else _unpack(data)

    def get(self, name: str) -> list[Any] | None:
        """Return a cell's state, or None."""
        states = self._states
        if name not in states:
            row = self._connection.execute(
                "SELECT state FROM flow WHERE name = ? AND expires_us > ?", (name, self._now_us)
            ).fetchone()
            states[name] = None if row is None else _unpack(row[0])
        return states[name]

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

    def held(self, name: str) -> int:
        """Return how many slots are held; see `Cells`."""
        counter = _HELD + name
        fresh = counter not in self._states
        count: int = (self.get(counter) or [0])[0]
        if fresh and count:
            gone = self._connection.execute(
                "DELETE FROM flow_slots WHERE cell = ? AND until_us <= ?", (name, self._now_us)
            ).rowcount
            if gone:
                count -= gone
                self._count(name, count, KEEP_US)
        return count

    def _count(self, name: str, count: int, ttl_us: int) -> None:
        counter = _HELD + name
        self.put(counter, [count], max(ttl_us, self._ttls.get(counter, 0)))

    def holder(self, name: str, task_id: str) -> Holder | None:
        """Return the slot of a task; see `Cells`."""
        if not self.held(name):
            return None
        slot = (name, task_id)
        if slot not in self._slots:
            row = self._connection.execute(
                "SELECT until_us, nonce, since_us FROM flow_slots WHERE cell = ? AND id = ?", slot
            ).fetchone()
            self._slots[slot] = Holder(*row) if row else None
        return self._slots[slot]

    def first(self, name: str) -> Holder | None:
        """Return the slot whose lease ends first; see `Cells`."""
        if not self.held(name):
            return None
        self._write_slots()
        row = self._connection.execute(
            "SELECT until_us, nonce, since_us FROM flow_slots WHERE cell = ? "
            "ORDER BY until_us, id LIMIT 1",
            (name,),
        ).fetchone()
        return Holder(*row) if row else None

    def hold(self, name: str, task_id: str, holder: Holder) -> None:
        """Give a slot; see `Cells`."""
        more = 0 if self.holder(name, task_id) else 1
        self._slots[name, task_id] = self._written[name, task_id] = holder
        self._count(name, self.held(name) + more, holder.until_us - self._now_us + KEEP_US)

    def unhold(self, name: str, task_id: str) -> None:
        """Take a slot back; see `Cells`."""
        if self.holder(name, task_id):
            self._slots[name, task_id] = self._written[name, task_id] = None
            self._count(name, self.held(name) - 1, KEEP_US)

    def forget_slots(self, name: str) -> None:
        """Take all slots of a cell back."""
        self._connection.execute("DELETE FROM flow_slots WHERE cell = ?", (name,))
        self.drop(_HELD + name)

    def _write_slots(self) -> None:
        written, self._written = self._written, {}
        given = [(*slot, *held) for slot, held in written.items() if held]
        taken = [slot for slot, held in written.items() if not held]
        if given:
            self._connection.executemany(
                "INSERT OR REPLACE INTO flow_slots VALUES (?, ?, ?, ?, ?)", given
            )
        if taken:
            self._connection.executemany("DELETE FROM flow_slots WHERE cell = ? AND id = ?", taken)

    def flush(self) -> None:
        """Write what changed."""
        self._write_slots()
        put, dropped = [], []
        for name, ttl_us in self._ttls.items():
            state = self._states[name]
            if state is None:
                dropped.append((name,))
            else:
                put.append((name, msgpack.packb(state), self._now_us + max(1000, ttl_us)))
        if dropped:
            self._connection.executemany("DELETE FROM flow WHERE name = ?", dropped)
        if put:
            self._connection.executemany("INSERT OR REPLACE INTO flow VALUES (?, ?, ?)", put)
            self._prune()

    def _prune(self) -> None:
        for (name,) in self._connection.execute(_EXPIRED, (self._now_us,)).fetchall():
            self._connection.execute("DELETE FROM flow WHERE name = ?", (name,))
            if name.startswith(_HELD):
                self.forget_slots(name[len(_HELD) :])


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
        verdicts = []
        with self._writing(durable=False) as (connection, cells, now):
            news = rules_after(connection, after)
            records = _fetch(connection, ids, now)
            cells.load([SETTINGS, *{name for _, ask in asks for name in _cells_of(ask)}])
            for at, ask in asks:
                record = records[at]
                if record and (is_terminal(record) or attempt_of(record) > ask.attempt):
                    verdicts.append(Verdict(PASSED))
                else:
                    verdicts.append(rules.judge(ask, cells, now))
            done = {
                number: _fetch(connection, [verdict.other], now)[0]
                for number, verdict in enumerate(verdicts)
                if verdict.code == DONE
            }
        return Admitted(records, verdicts, done, news)

    def release(self, batch: Sequence[Release]) -> list[str]:
        """Take back; see `FlowStore`."""
        with self._writing(durable=True) as (_connection, cells, now):
            cells.load(list({name for given in batch for name in _cells_back(given)}))
            return [returns.release(item, cells, now) for item in batch]

    def renew(self, batch: Sequence[Release], lease_us: int) -> None:
        """Keep; see `FlowStore`."""
        with self._writing(durable=False) as (_connection, cells, now):
            for item in batch:
                returns.renew(item, lease_us, cells, now)

    def claim(self, batch: Sequence[Claim]) -> list[str]:
        """Claim; see `FlowStore`."""
        with self._writing(durable=True) as (_connection, cells, now):
            cells.load(list({item.cell for item in batch}))
            return [returns.claim(item, cells, now) for item in batch]

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
                cells.forget_slots(cell)

    def cells(self) -> dict[str, list[Any]]:
        """Return all cells; see `FlowStore`."""
        with self._writing(durable=False) as (connection, _cells, now):
            rows = connection.execute(
                "SELECT name, state FROM flow WHERE expires_us > ? ORDER BY name", (now,)
            ).fetchall()
            taken = connection.execute("SELECT * FROM flow_slots ORDER BY cell, id").fetchall()
        found = {name: _unpack(data) for name, data in rows if not name.startswith(_HELD)}
        slots: dict[str, dict[str, Holder]] = {}
        for cell, task_id, *held in taken:
            slots.setdefault(cell, {})[task_id] = Holder(*held)
        return with_holders(found, slots, now)

    def now_us(self) -> int:
        """Return this machine's clock; see `FlowStore`."""
        return self.fixed_us or time.time_ns() // 1000

    @contextmanager
    def _writing(self, *, durable: bool) -> Iterator[tuple[sqlite3.Connection, TableCells, int]]:
        with (
            _translated(),
            self._database.writing(self._timeout_s, durable=durable) as connection,
        ):
            for statement in (_TABLE, _INDEX, _SLOTS, _SLOTS_INDEX):
                connection.execute(statement)
            now = self.now_us()
            cells = TableCells(connection, now)
            yield connection, cells, now
            cells.flush()


def _cells_of(ask: Ask) -> Iterator[str]:
    for limit in (ask.unique, ask.breaker, ask.budget, ask.slots, ask.rate):
        if limit:
            yield limit[0]
    if ask.idempotency:
        yield ask.idempotency


def _cells_back(given: Release) -> Iterator[str]:
    if given.unique:
        yield given.unique
    if given.idempotency:
        yield given.idempotency[0]
    if given.slots:
        yield given.slots
    if given.breaker:
        yield given.breaker[0]


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except Trouble as trouble:
        raise ResultsUnavailable(trouble.detail) from trouble


def _fetch(connection: sqlite3.Connection, ids: Sequence[str], now_us: int) -> list[bytes | None]:
    found = dict(connection.execute(FETCH, (json.dumps(list(ids)), now_us // 1000)))
    return [found.get(task_id) for task_id in ids]
