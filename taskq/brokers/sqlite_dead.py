"""Walks over dead letters in the embedded database."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from taskq import clock
from taskq.brokers import sqlite_rows
from taskq.brokers.base import DEAD_QUEUE, Delivery, Outgoing, Verdict
from taskq.brokers.replay import Replay
from taskq.brokers.sqlite_publish import Outbox
from taskq.embedded.database import Database
from taskq.embedded.faults import Trouble
from taskq.errors import BrokerUnavailable, ConfigError

_PAGE = 100


@contextmanager
def translated() -> Iterator[None]:
    """Raise what the file refuses as an error of a broker."""
    try:
        yield
    except Trouble as trouble:
        raise BrokerUnavailable(trouble.detail) from trouble


def sweep(
    database: Database,
    outbox: Outbox,
    prefix: str,
    visit: Callable[[Delivery], Verdict],
    timeout_s: float,
) -> int:
    """Do what `Broker.sweep_dead` says; each page's verdicts are one transaction.

    Raises:
        Trouble: If the database cannot be used.
        ConfigError: If the file is not usable, or a verdict names a queue that may not be made.
    """
    queue = prefix + DEAD_QUEUE
    with database.reading(timeout_s) as connection:
        (last,) = connection.execute(sqlite_rows.LAST).fetchone()
    shown, after = 0, 0
    while True:
        with database.reading(timeout_s) as connection:
            now_ms = clock.now_ms()
            page = list(sqlite_rows.dead_page(connection, queue, after, last, now_ms, _PAGE))
        if not page:
            return shown
        verdicts: list[tuple[int, Outgoing | None]] = []
        try:
            for seq, tries, message, error in page:
                after = seq
                delivery = Delivery(seq, DEAD_QUEUE, message, tries > 0, tries, error)
                shown += 1
                verdict = visit(delivery)
                if verdict != "keep":
                    verdicts.append((seq, None if verdict == "remove" else verdict))
        finally:
            # Also when `visit` raised: what was decided before is done.
            if verdicts:
                _apply(database, outbox, verdicts, timeout_s)


def _apply(
    database: Database,
    outbox: Outbox,
    verdicts: Sequence[tuple[int, Outgoing | None]],
    timeout_s: float,
) -> int:
    """Remove letters and send what replaces them, in one transaction; return how many went."""
    now_ms, count = clock.now_ms(), 0
    with database.writing(timeout_s) as connection:
        for seq, replacement in verdicts:
            gone = connection.execute(sqlite_rows.DELETE_DEAD, (seq,)).rowcount
            count += gone
            # Two sweeps at once: only the one that removed the letter sends its replacement.
            if gone and replacement is not None:
                missing = outbox.declare_for(connection, [replacement], now_ms)
                if missing:
                    raise ConfigError(f"{database.label} has no queue {replacement.queue!r}")
                sqlite_rows.insert(connection, [outbox.row(replacement, now_ms)])
    return count


class SqliteReplay(Replay):
    """See `Replay`. Removing a letter and sending its message is one transaction."""

    def __init__(self, database: Database, outbox: Outbox, prefix: str, timeout_s: float) -> None:
        self.stranded = {}
        self.whole = True
        self._database = database
        self._outbox = outbox
        self._prefix = prefix
        self._timeout_s = timeout_s

    def __enter__(self) -> "SqliteReplay":
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Nothing is held."""

    def run(
        self,
        visit: Callable[[Delivery], Outgoing | None],
        limit: int,
        prepare: Callable[[Sequence[Outgoing]], None],
        pace: Callable[[int], int],
    ) -> int:
        """See `Replay`."""
        wanted: list[tuple[int, Outgoing]] = []

        def look(delivery: Delivery) -> Verdict:
            if len(wanted) < limit:
                outgoing = visit(delivery)
                if outgoing is not None:
                    wanted.append((delivery.receipt, outgoing))
            return "keep"

        with translated():
            sweep(self._database, self._outbox, self._prefix, look, self._timeout_s)
        sent = 0
        while wanted:
            count = pace(min(len(wanted), _PAGE))
            part, wanted = wanted[:count], wanted[count:]
            prepare([outgoing for _, outgoing in part])
            with translated():
                sent += _apply(self._database, self._outbox, part, self._timeout_s)
        return sent
