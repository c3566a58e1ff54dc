"""Which of the ticks that are due are sent, and which come too late; pure."""

from typing import Final, NamedTuple

from taskq.schedules.entry import Entry

ON_TIME_MS: Final = 1000
"""A new leader takes ticks of the last second for its own."""
MOST: Final = 1000
"""Ticks of one schedule in one turn; what is left comes in the next."""
_MOST_COUNTED: Final = 10_000


class Ticks(NamedTuple):
    """What becomes of the ticks of one schedule up to now.

    Attributes:
        send: Due moments to be sent, in order, as epoch ms.
        missed: How many came too late; no more than 10,000 are counted.
        upto_ms: The last tick that was too late, as epoch ms; 0 for none.
    """

    send: list[int]
    missed: int
    upto_ms: int


def sort_ticks(entry: Entry, cursor_ms: int, now_ms: int, since_ms: int) -> Ticks:
    """Sort the ticks after a cursor by the entry's `catch_up` and `max_age_s`.

    A tick counts as late only when it was due before this leader began: one that it was there for
    is sent however late it is, after a step of the clock too.

    Args:
        entry: Whose ticks.
        cursor_ms: Those up to here were dealt with.
        now_ms: Those up to here are due.
        since_ms: From when on this leader has been there.
    """
    late_ms = since_ms - ON_TIME_MS
    too_old_ms = min(late_ms, now_ms - round(entry.max_age_s * 1000))
    if entry.catch_up == "skip":
        too_old_ms = late_ms
    missed, upto_ms = _count(entry, cursor_ms, too_old_ms)
    send: list[int] = []
    due_ms = entry.next_ms(max(cursor_ms, upto_ms, too_old_ms - 1))
    while due_ms is not None and due_ms <= now_ms and len(send) < MOST:
        if entry.catch_up == "last" and send and due_ms < late_ms:
            missed, upto_ms = missed + 1, send[0]
            send.clear()
        send.append(due_ms)
        due_ms = entry.next_ms(due_ms)
    return Ticks(send, missed, upto_ms)


def _count(entry: Entry, cursor_ms: int, end_ms: int) -> tuple[int, int]:
    """Return how many ticks lie in (cursor, end), and the last that was counted."""
    missed, last_ms = 0, 0
    due_ms = entry.next_ms(cursor_ms)
    while due_ms is not None and due_ms < end_ms and missed < _MOST_COUNTED:
        missed, last_ms = missed + 1, due_ms
        due_ms = entry.next_ms(due_ms)
    if missed == _MOST_COUNTED:
        last_ms = end_ms - 1
    return missed, last_ms
