"""Dead letters: what they say, and finding, replaying and dropping them.

A letter is the message that ended, its body untouched, with its story in `taskq-dead-*` headers.
Letters that RabbitMQ itself dead-lettered have no such story; it is read from `x-death` instead.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from taskq import clock
from taskq.brokers.base import Broker, Delivery, Outgoing, Verdict
from taskq.errors import ConfigError, DecodeError
from taskq.message import DEAD_PREFIX, HISTORY, REPLAYS, Message, decode_call
from taskq.resend import REASONS, revived

_BROKER_REASONS = {
    "delivery_limit": "delivery_limit",
    "rejected": "rejected",
    "expired": "unroutable",
    "maxlen": "unroutable",
}
_FRAME = re.compile(r'File "([^"]+)", line \d+, in (\S+)')


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead letter, read.

    Attributes:
        id: Task id; empty when the message had none.
        task: Registered name; empty likewise.
        queue: Queue it came from, where a replay sends it.
        reason: One of `taskq.resend.REASONS`.
        exception_type: Class of the last exception, or empty.
        exception_message: Its text.
        fingerprint: Same for letters of the same exception type raised in the same function.
        attempts: Runs that were started.
        failed_at_ms: When it ended, as epoch ms; 0 when unknown.
        worker: Who gave up.
        traceback: The last traceback.
        history: Attempts before the last: [[attempt, at_ms, type, message], ...].
        replays: How often it was replayed before.
        message: The message itself.
    """

    id: str
    task: str
    queue: str
    reason: str
    exception_type: str
    exception_message: str
    fingerprint: str
    attempts: int
    failed_at_ms: int
    worker: str
    traceback: str
    history: list[Any]
    replays: int
    message: Message

    def to_json(self) -> dict[str, Any]:
        """Return the documented fields of a listing."""
        return {
            "id": self.id,
            "task": self.task,
            "queue": self.queue,
            "reason": self.reason,
            "exception": {
                "type": self.exception_type,
                "message": self.exception_message,
                "fingerprint": self.fingerprint,
            },
            "attempts": self.attempts,
            "failed_at": clock.to_iso(self.failed_at_ms) if self.failed_at_ms else None,
            "replays": self.replays,
        }

    def details(self) -> dict[str, Any]:
        """Return everything that is known, arguments included where they can be read."""
        try:
            call = decode_call(self.message)
            arguments: dict[str, Any] = {"args": call.args, "kwargs": call.kwargs}
        except DecodeError as error:
            arguments = {"unreadable": str(error), "body": repr(self.message.body[:200])}
        headers = {
            name: value
            for name, value in self.message.headers.items()
            if not name.startswith(DEAD_PREFIX) and name != HISTORY
        }
        return {
            **self.to_json(),
            **arguments,
            "worker": self.worker,
            "traceback": self.traceback,
            "history": [
                {"attempt": n, "at": clock.to_iso(at), "type": kind, "message": text}
                for n, at, kind, text in self.history
            ],
            "headers": headers,
        }


def read_letter(delivery: Delivery) -> DeadLetter:
    """Return what a dead letter says; hostile headers only leave fields empty."""
    message = delivery.message
    headers = message.headers

    def text(name: str) -> str:
        value = headers.get(DEAD_PREFIX + name)
        return value if isinstance(value, str) else ""

    def number(name: str) -> int:
        value = headers.get(DEAD_PREFIX + name)
        return value if isinstance(value, int) else 0

    reason, queue = text("reason"), text("queue")
    if not reason:
        reason, queue = _broker_story(headers)
    history = headers.get(HISTORY)
    replays = headers.get(REPLAYS)
    return DeadLetter(
        id=message.id,
        task=message.task,
        queue=queue,
        reason=reason,
        exception_type=text("type"),
        exception_message=text("message"),
        fingerprint=fingerprint(text("type"), text("traceback")),
        attempts=number("attempts"),
        failed_at_ms=number("at"),
        worker=text("worker"),
        traceback=text("traceback"),
        history=[row for row in history if isinstance(row, list) and len(row) == 4]
        if isinstance(history, list)
        else [],
        replays=replays if isinstance(replays, int) else 0,
        message=message,
    )


def _broker_story(headers: Mapping[str, Any]) -> tuple[str, str]:
    """Return (reason, queue) of a letter that the broker itself put here."""
    deaths = headers.get("x-death")
    first = deaths[0] if isinstance(deaths, list) and deaths else {}
    if not isinstance(first, Mapping):
        first = {}
    keys = first.get("routing-keys")
    key = keys[0] if isinstance(keys, list) and keys and isinstance(keys[0], str) else ""
    queue = first.get("queue")
    name = queue if isinstance(queue, str) else ""
    # From a delay queue the routing key is the queue it was meant for.
    if "taskq.delay." in name or not name:
        name = key
    return _BROKER_REASONS.get(str(first.get("reason")), "unroutable"), name


def fingerprint(exception_type: str, traceback: str) -> str:
    """Return 12 hex digits that are the same for one exception type raised in one function."""
    if not exception_type:
        return ""
    frames = _FRAME.findall(traceback)
    place = f"{frames[-1][0].rpartition('/')[2]}:{frames[-1][1]}" if frames else ""
    return hashlib.sha256(f"{exception_type}|{place}".encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Filter:
    """Which letters are meant; what is empty matches all.

    Attributes:
        ids: Task ids, or prefixes of at least 6 characters.
        task: Registered name.
        queue: Queue it came from.
        reason: One of `taskq.resend.REASONS`.
        exception: Exception type or fingerprint.
        newer_than_s: Only letters of the last so many seconds; 0 for all.
    """

    ids: tuple[str, ...] = ()
    task: str = ""
    queue: str = ""
    reason: str = ""
    exception: str = ""
    newer_than_s: float = 0.0
    _now_ms: int = field(default_factory=lambda: clock.now_ms(), compare=False)

    def __post_init__(self) -> None:
        if self.reason and self.reason not in REASONS:
            raise ConfigError(f"reason {self.reason!r}: use one of {', '.join(REASONS)}")

    def matches(self, letter: DeadLetter) -> bool:
        """Return whether a letter is meant."""
        return (
            (not self.ids or any(_same_id(letter.id, wanted) for wanted in self.ids))
            and self.task in ("", letter.task)
            and self.queue in ("", letter.queue)
            and self.reason in ("", letter.reason)
            and self.exception in ("", letter.exception_type, letter.fingerprint)
            and (
                not self.newer_than_s
                or letter.failed_at_ms >= self._now_ms - self.newer_than_s * 1000
            )
        )


def _same_id(task_id: str, wanted: str) -> bool:
    return task_id == wanted or (len(wanted) >= 6 and task_id.startswith(wanted))


def find(broker: Broker, which: Filter, limit: int = 0) -> list[DeadLetter]:
    """Return letters, oldest first; they all stay where they are.

    Args:
        broker: Where they are.
        which: Which ones.
        limit: At most so many; 0 for all.
    """
    found: list[DeadLetter] = []

    def visit(delivery: Delivery) -> Verdict:
        letter = read_letter(delivery)
        if which.matches(letter) and not (limit and len(found) >= limit):
            found.append(letter)
        return "keep"

    broker.sweep_dead(visit)
    return found


Progress = Callable[[int], None]


def replay(broker: Broker, which: Filter, queue: str = "", progress: Progress | None = None) -> int:
    """Send letters again as fresh messages, and remove each once its message is confirmed.

    Args:
        broker: Where they are.
        which: Which ones.
        queue: Queue to send them to instead of the one each came from.
        progress: Called with how many were replayed so far.

    Returns:
        How many were replayed. A letter that names no queue stays.
    """
    counter = _Counter(progress)

    def visit(delivery: Delivery) -> Verdict:
        letter = read_letter(delivery)
        target = queue or letter.queue
        if not which.matches(letter) or not target:
            return "keep"
        counter.step()
        return Outgoing(target, revived(letter.message))

    broker.sweep_dead(visit)
    return counter.count


def drop(broker: Broker, which: Filter, progress: Progress | None = None) -> int:
    """Delete letters for good and return how many."""
    counter = _Counter(progress)

    def visit(delivery: Delivery) -> Verdict:
        if not which.matches(read_letter(delivery)):
            return "keep"
        counter.step()
        return "remove"

    broker.sweep_dead(visit)
    return counter.count


class _Counter:
    def __init__(self, progress: Progress | None) -> None:
        self.count = 0
        self._progress = progress

    def step(self) -> None:
        self.count += 1
        if self._progress is not None:
            self._progress(self.count)
