"""A schedule as it stands in the store, for those who look."""

import json
from dataclasses import dataclass
from datetime import datetime

from taskq.errors import ConfigError
from taskq.schedules.base import local
from taskq.schedules.entry import Entry
from taskq.schedules.store import Row


@dataclass(frozen=True, slots=True)
class ScheduleInfo:
    """A schedule as it stands in the store.

    Attributes:
        name: Its name.
        entry: Its definition; None where the stored text cannot be read.
        trouble: Why it is not sent; empty when it is.
        paused: Whether it is paused.
        why: Why it is paused.
        next_at: When it is due next, in its zone; None for never, or while it is paused.
        last_at: The last tick that was dealt with; None before the first.
        last_id: Task id of the last tick that was sent; empty before the first.
        fired: Ticks that were sent.
        skipped: Ticks that were left out because of an overlap.
        missed: Ticks that were too old.
    """

    name: str
    entry: Entry | None
    trouble: str
    paused: bool
    why: str
    next_at: datetime | None
    last_at: datetime | None
    last_id: str
    fired: int
    skipped: int
    missed: int


def info_of(row: Row) -> ScheduleInfo:
    """Return what a row says."""
    entry, trouble, next_at, last_at = None, "", None, None
    try:
        entry = Entry.from_text(row.name, row.text).bound()
    except ConfigError as error:
        trouble = str(error)
    if entry is not None:
        zone = entry.schedule.zone()
        over = 0 < entry.max_runs <= row.fired
        due_ms = None if row.paused or over else entry.next_ms(max(row.cursor_ms, 0))
        next_at = None if due_ms is None else local(due_ms, zone)
        if row.fired or row.skipped or row.missed:
            last_at = local(row.cursor_ms, zone)
    return ScheduleInfo(
        name=row.name,
        entry=entry,
        trouble=trouble,
        paused=bool(row.paused),
        why=_why(row.paused),
        next_at=next_at,
        last_at=last_at,
        last_id=row.last_id,
        fired=row.fired,
        skipped=row.skipped,
        missed=row.missed,
    )


def _why(note: str) -> str:
    try:
        found = json.loads(note) if note else {}
    except ValueError:
        return note
    return str(found.get("why", "")) if isinstance(found, dict) else note
