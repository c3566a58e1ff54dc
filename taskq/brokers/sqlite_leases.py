"""Who holds messages, and when that is no longer believed.

Each consumer has a row whose `beat` it advances. Others give its messages back when its process is
known to be dead, or when they themselves saw the beat stand still for the whole lease, by their own
clock that never steps. Neither a jump of the wall clock nor a lock that stopped everybody ends the
lease of a living worker: who was late himself begins to watch anew.
"""

import json
import logging
import secrets
import sqlite3
from collections.abc import Sequence
from typing import Final, NamedTuple

from taskq import clock
from taskq.brokers import sqlite_rows
from taskq.embedded.liveness import Process, is_dead, this_process

log = logging.getLogger("taskq.brokers.sqlite")

BEATS_PER_LEASE: Final = 5


class _Row(NamedTuple):
    owner: int
    beat: int
    seen_ms: int
    lease_ms: int
    place: str
    pid: int
    pid_start: int


Silent = tuple[int, int]
"""An owner and the beat at which it fell silent."""


class Lease:
    """One consumer's hold on its messages; used by its thread only.

    Attributes:
        owner: Random number that stands in the rows of the messages held; 0 before `enter`.
    """

    def __init__(self, prefix: str, queues: Sequence[str], lease_s: float) -> None:
        self._prefix = prefix
        self._queues = json.dumps(list(queues))
        self._lease_s = lease_s
        self.owner = 0
        self._renewed_s = 0.0
        self._seen: dict[int, tuple[int, float]] = {}

    def enter(self, connection: sqlite3.Connection) -> None:
        """Write the row of a new owner."""
        me = this_process()
        self.owner = secrets.randbits(62) + 1
        connection.execute(
            "INSERT INTO consumers (owner, prefix, queues, beat, seen_ms, lease_ms, place, pid, "
            "pid_start) VALUES (?, ?, ?, 0, ?, ?, ?, ?, ?)",
            (
                self.owner,
                self._prefix,
                self._queues,
                clock.now_ms(),
                round(self._lease_s * 1000),
                me.place,
                me.pid,
                me.start,
            ),
        )
        self._renewed_s = clock.monotonic_s()
        self._seen.clear()

    def leave(self, connection: sqlite3.Connection) -> None:
        """Give back all messages held and delete the row."""
        connection.execute(sqlite_rows.RELEASE_ALL, (self.owner,))
        connection.execute("DELETE FROM consumers WHERE owner = ?", (self.owner,))

    def due_in_s(self) -> float:
        """Return the seconds until `renew` is due; 0 or less when it is."""
        return self._renewed_s + self._lease_s / BEATS_PER_LEASE - clock.monotonic_s()

    def renew(self, connection: sqlite3.Connection) -> bool:
        """Advance the beat; False when others gave the messages away, and `enter` must follow."""
        if self.due_in_s() < -self._lease_s / BEATS_PER_LEASE:
            # Late myself: locked out, suspended or starved, and so perhaps were the others.
            self._seen.clear()
        renewed = connection.execute(
            "UPDATE consumers SET beat = beat + 1, seen_ms = ? WHERE owner = ?",
            (clock.now_ms(), self.owner),
        )
        self._renewed_s = clock.monotonic_s()
        return renewed.rowcount == 1

    def silent(self, connection: sqlite3.Connection) -> list[Silent]:
        """Return the owners that are to be expired; only reads."""
        rows = [_Row(*row) for row in connection.execute(_LIST)]
        now_s = clock.monotonic_s()
        late = self.due_in_s() < -self._lease_s / BEATS_PER_LEASE
        seen = {} if late else self._seen
        self._seen = {
            row.owner: seen[row.owner]
            if seen.get(row.owner, (-1,))[0] == row.beat
            else (row.beat, now_s)
            for row in rows
            if row.owner != self.owner
        }
        return [
            (row.owner, row.beat)
            for row in rows
            if row.owner != self.owner
            and (_is_gone(row) or now_s - self._seen[row.owner][1] >= row.lease_ms / 1000)
        ]


_LIST: Final = "SELECT owner, beat, seen_ms, lease_ms, place, pid, pid_start FROM consumers"


def expire(connection: sqlite3.Connection, silent: Sequence[Silent]) -> None:
    """Give the messages of owners back to their queues, one delivery charged to each.

    An owner that beat again meanwhile keeps them.
    """
    for owner, beat in silent:
        gone = connection.execute(
            "DELETE FROM consumers WHERE owner = ? AND beat = ?", (owner, beat)
        )
        if gone.rowcount:
            log.warning("expired the lease owner=%x", owner)
            connection.execute(sqlite_rows.EXPIRE, (owner,))


def living(connection: sqlite3.Connection, prefix: str) -> dict[int, list[str]]:
    """Return the consumers that beat within their lease: {owner: queues with prefix}."""
    rows = connection.execute(
        f"{_LIST.replace(' FROM', ', queues FROM')} WHERE prefix = ?", (prefix,)
    ).fetchall()
    now_ms = clock.now_ms()
    found: dict[int, list[str]] = {}
    for *fields, queues in rows:
        row = _Row(*fields)
        if now_ms - row.seen_ms < row.lease_ms and not _is_gone(row):
            found[row.owner] = json.loads(queues)
    return found


def _is_gone(row: _Row) -> bool:
    return is_dead(Process(row.place, row.pid, row.pid_start))
