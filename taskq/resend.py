"""Messages that are sent again: retries, dead letters and their replays, as pure functions."""

from collections.abc import Mapping
from typing import Any

from taskq import clock
from taskq.errors import RemoteError
from taskq.message import (
    DEAD_PREFIX,
    DEADLINE,
    DUE,
    FIRST,
    HISTORY,
    LOST,
    REPLAY,
    REPLAYS,
    SENT,
    STARTS,
    UNKNOWN_SINCE,
    WAITED,
    Message,
)

TEXT_LIMIT = 1000
HISTORY_LIMIT = 20
REASONS = (
    "failed",
    "worker_lost",
    "malformed",
    "unknown_task",
    "rejected",
    "unroutable",
    "delivery_limit",
    "queue_full",
    "message_ttl",
)
"""Why a message can be dead."""
QUEUE_FULL = "queue_full"
EXPIRED_IN_QUEUE = "message_ttl"

_BROKER_OWNED = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count")
_BROKER_OWNED_EXACT = frozenset({"x-acquired-count", STARTS, LOST})


def strip_broker_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headers without those that RabbitMQ owns, or that hold for one delivery only.

    RabbitMQ's cycle detection drops a re-published message silently when it still carries them.
    """
    return {
        name: value
        for name, value in headers.items()
        if not name.startswith(_BROKER_OWNED) and name not in _BROKER_OWNED_EXACT
    }


def retried(message: Message, retries: int, due_ms: int, error: RemoteError) -> Message:
    """Return the copy that runs next after a failed attempt.

    Args:
        message: The message whose run failed.
        retries: Attempts spent now, for the header.
        due_ms: Earliest start as epoch ms.
        error: Why it failed; goes into the attempt history without its traceback.
    """
    headers = strip_broker_headers(message.headers)
    now = clock.now_ms()
    known = headers.get(HISTORY)
    # Anyone can set this header, and whoever counts attempts must not fall over it.
    history = list(known)[-(HISTORY_LIMIT - 1) :] if isinstance(known, list | tuple) else []
    history.append([retries, now, error.type, error.message[:200]])
    headers[HISTORY] = history
    headers.setdefault(FIRST, now)
    headers.pop("eta", None)
    headers.pop(WAITED, None)
    headers["retries"] = retries
    headers[DUE] = due_ms
    return message._replace(headers=headers)


def dead(
    message: Message,
    reason: str,
    queue: str,
    *,
    error: RemoteError | None = None,
    attempts: int = 0,
    worker: str = "",
) -> Message:
    """Return the dead letter of a message: its body untouched, the story in `taskq-dead-*`.

    Args:
        message: The message that ends here.
        reason: One of `REASONS`.
        queue: Queue it came from, where a replay sends it.
        error: The last exception.
        attempts: Runs that were started.
        worker: Name of the worker that gave up.
    """
    headers = strip_broker_headers(message.headers)
    story: dict[str, Any] = {
        "reason": reason,
        "queue": queue,
        "at": clock.now_ms(),
        "attempts": attempts,
        "worker": worker,
    }
    if error is not None:
        story["module"] = error.module
        story["type"] = error.type
        story["message"] = error.message[:TEXT_LIMIT]
        story["traceback"] = error.traceback
    headers.update({DEAD_PREFIX + name: value for name, value in story.items()})
    return message._replace(headers=headers)


def revived(message: Message) -> Message:
    """Return a dead letter as the fresh message that a replay sends: attempts start again at 0."""
    headers = {
        name: value
        for name, value in strip_broker_headers(message.headers).items()
        if not name.startswith(DEAD_PREFIX)
        and name != REPLAY
        and name
        not in (DEADLINE, DUE, FIRST, HISTORY, UNKNOWN_SINCE, WAITED, "retries", "eta", "expires")
    }
    replays = message.headers.get(REPLAYS)
    # A hostile header may hold anything, and its letter must be replayable all the same.
    headers[REPLAYS] = replays + 1 if isinstance(replays, int) and 0 <= replays < 2**31 else 1
    # An older cancel of its kind must not hit what an operator sends again now.
    headers[SENT] = clock.now_ms()
    return message._replace(headers=headers)
