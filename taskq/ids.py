"""Task ids that tell when they were made, and when a message was sent.

An id is a UUID of version 7: 48 bits of milliseconds, then randomness. A cancel that names a kind
of task must know which of them were sent before it, and the id says so without a byte on the wire.
"""

import os
from typing import Any, Final

from taskq import clock
from taskq.message import FIRST, SENT, Message

_TIME_DIGITS: Final = 12
_UUID_CHARS: Final = 36
_EARLIEST_MS: Final = 1_577_836_800_000
_LATEST_MS: Final = 4_102_444_800_000


def new_id() -> str:
    """Return a fresh task id: a UUID of version 7 as text."""
    text = os.urandom(10).hex()
    made = f"{clock.now_ms():012x}"
    variant = "89ab"[int(text[3], 16) & 3]
    return f"{made[:8]}-{made[8:]}-7{text[:3]}-{variant}{text[4:7]}-{text[7:19]}"


def made_ms(task_id: str) -> int | None:
    """Return when an id was made, as epoch ms; None when it does not tell."""
    if len(task_id) != _UUID_CHARS or task_id[14] != "7" or task_id[8] != "-":
        return None
    try:
        at_ms = int(task_id[:8] + task_id[9:13], 16)
    except ValueError:
        return None
    # Another program's id may only look like one.
    return at_ms if _EARLIEST_MS < at_ms < _LATEST_MS else None


def sent_ms(message: Message) -> int | None:
    """Return when a message was sent first, as epoch ms; None when nothing in it tells.

    Celery's messages carry no such time, unless a failed attempt left one.
    """
    for name in (SENT, FIRST):
        value: Any = message.headers.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if name == SENT and (made := made_ms(message.id)) is not None:
            return made
    return None
