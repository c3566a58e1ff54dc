"""Walks over dead letters in the embedded database."""

from collections.abc import Callable

from taskq import clock
from taskq.brokers import sqlite_rows
from taskq.brokers.base import DEAD_QUEUE, Delivery, Outgoing, Verdict
from taskq.brokers.sqlite_publish import Outbox
from taskq.embedded.database import Database
from taskq.errors import ConfigError

_PAGE = 100


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
    verdicts: list[tuple[int, Outgoing | None]],
    timeout_s: float,
) -> None:
    now_ms = clock.now_ms()
    with database.writing(timeout_s) as connection:
        for seq, replacement in verdicts:
            gone = connection.execute(sqlite_rows.DELETE_DEAD, (seq,)).rowcount
            # Two sweeps at once: only the one that removed the letter sends its replacement.
            if gone and replacement is not None:
                missing = outbox.declare_for(connection, [replacement], now_ms)
                if missing:
                    raise ConfigError(f"{database.label} has no queue {replacement.queue!r}")
                sqlite_rows.insert(connection, [outbox.row(replacement, now_ms)])
