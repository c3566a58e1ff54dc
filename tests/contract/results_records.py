"""Records for the tests of results stores."""

import uuid

from taskq.errors import RemoteError
from taskq.results.base import Record, Write, encode_record


def new_id() -> str:
    """Return an id that no other test uses."""
    return str(uuid.uuid4())


def record(state: str, attempt: int = 0, value: bytes | None = None) -> bytes:
    """Return a stored record; a failure carries an error."""
    error = RemoteError("builtins", "ValueError", "no") if state == "FAILURE" else None
    return encode_record(Record(state, attempt, value, error, "mail.send", "w1", 1, 2))


def write(task_id: str, state: str, attempt: int = 0, value: bytes | None = None) -> Write:
    """Return a write of such a record that is kept for a minute."""
    return Write(task_id, record(state, attempt, value), 60)
