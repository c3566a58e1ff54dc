"""A record as handlers see it, and which one this thread is handling."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from taskq.errors import ConfigError

ATTEMPTS: Final = "taskq-attempts"
"""Header with the number of attempts that were spent on a record."""
DUE_MS: Final = "taskq-due-ms"
ERROR: Final = "taskq-error"
TOPIC: Final = "taskq-topic"
PARTITION: Final = "taskq-partition"
OFFSET: Final = "taskq-offset"
GROUP: Final = "taskq-group"
BYTES: Final = "taskq-bytes"


@dataclass(frozen=True, slots=True)
class Record:
    """A record of a topic.

    Attributes:
        topic: The topic in which it was first; also when it comes from a retry topic.
        partition: Its partition there.
        offset: Its offset there.
        key: Its key; empty for none.
        value: Its bytes.
        headers: Texts by name.
        time_ms: Its time, as epoch milliseconds by the clock of whoever wrote it.
        attempts: Attempts that were spent on it before this one.
    """

    topic: str
    partition: int
    offset: int
    key: str = ""
    value: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    time_ms: int = 0
    attempts: int = 0


_handling = threading.local()


def current_record() -> Record:
    """Return the record that this thread's handler was called for.

    Raises:
        ConfigError: Outside a handler.
    """
    message = getattr(_handling, "message", None)
    if message is None:
        raise ConfigError("current_record() is known while a consumer calls its handler")
    return read(message)


def set_current(message: Any) -> None:
    """Note what this thread is handling; None afterwards."""
    # Read when somebody asks: most handlers need the event alone.
    _handling.message = message


def read(message: Any) -> Record:
    """Return the client's message as a record; one from a retry topic as it was at first."""
    headers = {name: _text(value) for name, value in message.headers() or ()}
    return Record(
        headers.get(TOPIC) or message.topic(),
        _number(headers, PARTITION, message.partition()),
        _number(headers, OFFSET, message.offset()),
        _text(message.key()),
        message.value() or b"",
        headers,
        message.timestamp()[1],
        _number(headers, ATTEMPTS, 0),
    )


def _number(headers: Mapping[str, str], name: str, default: int) -> int:
    # Others may write to these topics, too: what is no number says nothing.
    text = headers.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() else default


def _text(data: bytes | str | None) -> str:
    # Surrogates keep what is not UTF-8, so that it can be written again as it was.
    return data if isinstance(data, str) else (data or b"").decode("utf-8", "surrogateescape")
