"""The headers that steer a task: checked once, where a delivery arrives."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from taskq import clock
from taskq.errors import DecodeError
from taskq.message import DEADLINE, DUE, LOST, STARTS, Message


class Envelope(NamedTuple):
    """The headers that steer a task, checked.

    Attributes:
        retries: Attempts already spent; 0 on the first.
        due_ms: Earliest start as epoch ms, 0 for now.
        expires_ms: Latest start as epoch ms, the earlier of `expires` and the deadline; 0 for none.
        deadline_ms: When it must have ended, as epoch ms; 0 for none.
        time_limit_s: Hard limit of this call, or None for the task's own.
        soft_time_limit_s: Soft limit of this call, or None.
        root_id: First task of the workflow; the task's own id by default.
        parent_id: Task that sent this one, or None.
        ignore_result: Whether the caller asked that no value is kept.
        starts: Which counted start of a redelivered message this is; 0 where none was counted.
        lost: Attempts, on top of `retries`, that the deaths of whole workers have cost.
    """

    retries: int = 0
    due_ms: int = 0
    expires_ms: int = 0
    deadline_ms: int = 0
    time_limit_s: float | None = None
    soft_time_limit_s: float | None = None
    root_id: str = ""
    parent_id: str | None = None
    ignore_result: bool = False
    starts: int = 0
    lost: int = 0

    @property
    def spent(self) -> int:
        """Attempts spent, whichever way."""
        return self.retries + self.lost


_PLAIN = Envelope()


def read_envelope(message: Message) -> Envelope:
    """Check the headers that steer a task.

    Raises:
        DecodeError: If one of them has a wrong type or value.
    """
    headers = message.headers
    if not headers:
        return _PLAIN
    hard, soft = _limits(headers.get("timelimit"))
    due_ms = _integer(headers, DUE)
    expires_ms, deadline_ms = _date_ms(headers, "expires"), _integer(headers, DEADLINE)
    if deadline_ms and not 0 < expires_ms < deadline_ms:
        expires_ms = deadline_ms
    return Envelope(
        retries=_integer(headers, "retries"),
        due_ms=due_ms or _date_ms(headers, "eta"),
        expires_ms=expires_ms,
        deadline_ms=deadline_ms,
        time_limit_s=hard,
        soft_time_limit_s=soft,
        root_id=_text(headers, "root_id") or "",
        parent_id=_text(headers, "parent_id"),
        ignore_result=bool(headers.get("ignore_result")),
        starts=_integer(headers, STARTS),
        lost=_integer(headers, LOST),
    )


def _integer(headers: Mapping[str, Any], name: str) -> int:
    value = headers.get(name)
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**62:
        raise DecodeError(f"header {name} is not a non-negative integer: {value!r:.50}")
    return value


def _text(headers: Mapping[str, Any], name: str) -> str | None:
    value = headers.get(name)
    if value is not None and not isinstance(value, str):
        raise DecodeError(f"header {name} is not text: {value!r:.50}")
    return value


def _date_ms(headers: Mapping[str, Any], name: str) -> int:
    value = _text(headers, name)
    if not value:
        return 0
    try:
        return clock.from_iso(value)
    except ValueError as error:
        raise DecodeError(f"header {name} is not a date: {value!r:.50}") from error


def _limits(value: Any) -> tuple[float | None, float | None]:
    if value is None:
        return None, None
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise DecodeError("header timelimit is not [hard, soft]")
    for limit in value:
        if limit is not None and (
            isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit < 2**31
        ):
            raise DecodeError("header timelimit holds no positive numbers of seconds")
    return value[0], value[1]
