"""One dead letter: its story read out of a message's headers."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from taskq import clock
from taskq.body import Call, decode_call
from taskq.brokers.base import DEAD_QUEUE, Delivery
from taskq.brokers.shapes import base_part
from taskq.errors import DecodeError
from taskq.message import DEAD_PREFIX, HISTORY, REPLAY, REPLAYS, Message
from taskq.plain import plain
from taskq.redact import Redactor
from taskq.resend import REASONS, strip_broker_headers

_FRAME: Final = re.compile(r'^[\s|]*File "([^"]*)", line \d+, in (.+)\n?[\s|]*(.*)$', re.MULTILINE)
_LIBRARY: Final = re.compile(r"[/\\](?:site-packages|dist-packages|python3\.\d+)[/\\]")
_BROKER_SAYS: Final = {
    "delivery_limit": "the broker gave up delivering it",
    "queue_full": "its queue had reached its max_length",
    "message_ttl": "it waited in its queue for longer than message_ttl_s",
    "unroutable": "its queue was gone when its delay ended",
}


@dataclass(frozen=True, slots=True)
class DeadException:
    """Why a message is dead, as data.

    Attributes:
        type: Qualified name of the exception's class; empty where the broker gave the message up.
        message: Its text.
        fingerprint: 12 hex digits, equal for failures of one type at one place of the user's code.
        module: Module of the class, or empty.
    """

    type: str
    message: str
    fingerprint: str
    module: str = ""


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """One earlier attempt.

    Attributes:
        attempt: Its number, from 1.
        at_ms: When it failed, as epoch ms.
        type: Qualified name of the exception's class.
        message: At most 200 characters of its text.
    """

    attempt: int
    at_ms: int
    type: str
    message: str


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that ended for good without success.

    Attributes:
        id: Task id; `letter-` and 12 hex digits for a message that has none.
        task: Task name; empty where none could be read.
        queue: Queue it came from, where a replay sends it; empty where nobody knows.
        reason: One of `taskq.resend.REASONS`.
        exception: The last exception.
        attempts: Runs that were started.
        failed_at_ms: When it ended, as epoch ms; 0 where nobody knows.
        worker: Worker that gave up; empty where the broker did.
        replays: How often it was replayed before.
        traceback: The last exception's traceback, at most 8 KiB; may be empty.
        history: Earlier attempts, oldest first, at most 20.
        headers: The message's other headers.
        message: The message itself, body bytes intact.
        problem: Why the message cannot be read, or empty.
    """

    id: str
    task: str
    queue: str
    reason: str
    exception: DeadException
    attempts: int
    failed_at_ms: int
    worker: str
    replays: int
    traceback: str = field(repr=False)
    history: tuple[FailedAttempt, ...] = field(repr=False)
    headers: Mapping[str, Any] = field(repr=False)
    message: Message = field(repr=False)
    problem: str = ""

    @property
    def failed_at(self) -> str:
        """When it ended, as ISO-8601 in UTC; empty where nobody knows."""
        return _iso(self.failed_at_ms)

    @property
    def key(self) -> tuple[str, int, str, int]:
        """What tells it from other letters, also of the same task."""
        return self.id, self.failed_at_ms, self.queue, self.replays

    def call(self) -> Call:
        """Return the decoded arguments.

        Raises:
            DecodeError: If they cannot be read.
        """
        return decode_call(self.message)

    def to_json(
        self,
        full: bool = False,
        redactor: Redactor | None = None,
        parameters: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Return plain data for JSON.

        Args:
            full: Whether arguments, traceback, history and headers are wanted.
            redactor: Hides what is secret in arguments and headers; None hides nothing.
            parameters: Names of the task's positional parameters, where they are known.

        Always `id, task, queue, reason, exception {type, message, fingerprint, module}, attempts,
        failed_at, worker, replays`. With `full` also `args, kwargs` (both null when they cannot be
        read; `problem` says why), `traceback`, `history [{attempt, at, type, message}]`, `headers`,
        `content_type` and `body_bytes`.
        """
        error = self.exception
        data: dict[str, Any] = {
            "id": self.id,
            "task": self.task,
            "queue": self.queue,
            "reason": self.reason,
            "exception": {
                "type": error.type,
                "message": error.message,
                "fingerprint": error.fingerprint,
                "module": error.module,
            },
            "attempts": self.attempts,
            "failed_at": self.failed_at or None,
            "worker": self.worker,
            "replays": self.replays,
        }
        if not full:
            return data
        return {**data, **self._details(redactor or Redactor(()), parameters)}

    def _details(self, redactor: Redactor, parameters: Sequence[str]) -> dict[str, Any]:
        problem = self.problem
        args, kwargs = None, None
        try:
            call = self.call()
            args = plain(redactor.arguments(call.args, parameters))
            kwargs = plain(redactor.value(call.kwargs))
        except DecodeError as error:
            problem = problem or str(error)
        return {
            "args": args,
            "kwargs": kwargs,
            "problem": problem,
            "traceback": self.traceback,
            "history": [
                {"attempt": a.attempt, "at": _iso(a.at_ms), "type": a.type, "message": a.message}
                for a in self.history
            ],
            "headers": plain(redactor.value(self.headers)),
            "content_type": self.message.content_type,
            "body_bytes": len(self.message.body),
        }


def _iso(moment_ms: int) -> str:
    # A hostile header may hold a moment that no calendar has.
    return clock.to_iso(moment_ms) if 0 < moment_ms < 253_402_300_800_000 else ""


def read_letter(delivery: Delivery, prefix: str = "") -> DeadLetter:
    """Return what a delivery from the dead letters tells; never raises for what a message holds.

    Args:
        delivery: The delivery.
        prefix: The broker's; a queue that the broker itself noted carries it.
    """
    message = delivery.message
    headers = message.headers
    reason = _text(headers, "reason")
    worker, queue = _text(headers, "worker"), _text(headers, "queue")
    if not worker:
        queue = base_part(queue.removeprefix(prefix))
    error = delivery.error
    return DeadLetter(
        id=message.id or _made_up_id(message),
        task=message.task,
        queue="" if queue == DEAD_QUEUE else queue,
        reason=reason if reason in REASONS else "rejected",
        exception=_exception(message, reason),
        attempts=_number(headers.get(DEAD_PREFIX + "attempts")),
        failed_at_ms=_number(headers.get(DEAD_PREFIX + "at")),
        worker=worker,
        replays=_number(headers.get(REPLAYS)),
        traceback=_text(headers, "traceback"),
        history=tuple(_history(headers.get(HISTORY))),
        headers={
            name: value
            for name, value in strip_broker_headers(headers).items()
            if not name.startswith(DEAD_PREFIX) and name not in (HISTORY, REPLAY, REPLAYS)
        },
        message=message,
        problem="" if error is None else str(error),
    )


def _text(headers: Mapping[str, Any], name: str) -> str:
    value = headers.get(DEAD_PREFIX + name)
    return value if isinstance(value, str) else ""


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _made_up_id(message: Message) -> str:
    moment = str(message.headers.get(DEAD_PREFIX + "at", "")).encode()
    return f"letter-{hashlib.sha256(moment + message.body).hexdigest()[:12]}"


def _history(value: Any) -> Iterator[FailedAttempt]:
    for item in value if isinstance(value, list | tuple) else ():
        if isinstance(item, list | tuple) and len(item) == 4:
            attempt, at_ms, kind, text = item
            yield FailedAttempt(_number(attempt), _number(at_ms), str(kind), str(text))


def _exception(message: Message, reason: str) -> DeadException:
    headers = message.headers
    kind, text = _text(headers, "type"), _text(headers, "message")
    if not kind and not text:
        text = _BROKER_SAYS.get(reason, "the broker rejected it")
    place = fingerprint(kind, _text(headers, "traceback"), f"{message.task} {reason}")
    return DeadException(kind, text, place, _text(headers, "module"))


def fingerprint(kind: str, traceback: str, elsewhere: str) -> str:
    """Return 12 hex digits that are equal for failures of one type at one place.

    The place is the user's innermost frame: file name, function and source line, without the line's
    number, so that a change elsewhere in the file changes nothing.

    Args:
        kind: Name of the exception's class.
        traceback: The formatted traceback; of a chain only the last part counts.
        elsewhere: Stands for the place where there is no frame.
    """
    last = traceback.rpartition("Traceback (most recent call last):")[2]
    frames = _FRAME.findall(last)
    own = [frame for frame in frames if not _LIBRARY.search(frame[0])] or frames
    place = elsewhere
    if own:
        path, function, line = own[-1]
        name = re.split(r"[/\\]", path)[-1]
        place = f"{name} {function} {line.strip()}"
    return hashlib.sha256(f"{kind} {place}".encode(errors="replace")).hexdigest()[:12]
