"""Pausing queues and tasks for the whole cluster: what is paused, by whom, why, until when.

A pause is a note in the results store, so it outlives workers and brokers and holds for all of
them; workers read it every second, and at once when they are told to look.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

import msgpack

from taskq import clock
from taskq.brokers.base import DEAD_QUEUE, Broker
from taskq.brokers.shapes import check_queue_name
from taskq.errors import ConfigError, DecodeError, ResultsDisabled, TaskqError
from taskq.results.base import ResultStore

log = logging.getLogger("taskq.pauses")

Kind = Literal["queue", "task"]
NOTES: Final = "pauses"
MAX_WHY: Final = 500
_MAX_S: Final = 366 * 86400.0
_TELL_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Pause:
    """One pause.

    Attributes:
        kind: `queue` or `task`.
        name: Of the queue or of the task.
        why: Reason, or empty.
        by: Who paused it, such as `ann@web-1`.
        since_ms: When, as epoch ms.
        until_ms: When it ends by itself, as epoch ms; 0 for when somebody resumes.
    """

    kind: Kind
    name: str
    why: str = ""
    by: str = ""
    since_ms: int = 0
    until_ms: int = 0

    def holds(self, now_ms: int) -> bool:
        """Return whether it has not ended by itself."""
        return not self.until_ms or now_ms < self.until_ms


def encode_pause(pause: Pause) -> tuple[str, bytes]:
    """Return the name and the value of a pause's note."""
    value: bytes = msgpack.packb([pause.why, pause.by, pause.since_ms, pause.until_ms])
    return f"{pause.kind}:{pause.name}", value


def decode_pause(name: str, value: bytes) -> Pause:
    """Read `encode_pause`'s form.

    Raises:
        DecodeError: If it is not one.
    """
    kind, _, subject = name.partition(":")
    try:
        why, by, since_ms, until_ms = msgpack.unpackb(value)
    # Whatever msgpack raises on what somebody wrote there by hand.
    except Exception as error:
        raise DecodeError(f"the note of pause {name!r:.80} is not readable: {error}") from error
    texts = all(isinstance(text, str) for text in (why, by))
    if kind not in ("queue", "task") or not subject or not texts:
        raise DecodeError(f"the note of pause {name!r:.80} names no queue and no task")
    if not all(isinstance(at, int) and 0 <= at < 2**62 for at in (since_ms, until_ms)):
        raise DecodeError(f"the note of pause {name!r:.80} holds no dates")
    return Pause("queue" if kind == "queue" else "task", subject, why, by, since_ms, until_ms)


def read_pauses(store: ResultStore) -> list[Pause]:
    """Return what is paused now, by kind and name; notes that cannot be read are logged.

    Raises:
        ResultsUnavailable: If the store cannot be reached.
    """
    now_ms = clock.now_ms()
    found = []
    for name, value in store.notes(NOTES).items():
        try:
            found.append(decode_pause(name, value))
        except DecodeError as error:
            log.warning("ignoring a pause: %s; remove it with `resume`", error)
    return sorted(
        (pause for pause in found if pause.holds(now_ms)),
        key=lambda pause: (pause.kind, pause.name),
    )


class Pauses:
    """Pauses and resumes queues and tasks; `app.pauses`.

    A paused queue is not consumed by any worker; what workers hold of it and have not started goes
    back. A message of a paused task is sent on to a later time, without an attempt spent, whatever
    its queue. What runs already runs to its end. Sending goes on in both cases.
    """

    def __init__(
        self,
        find_store: Callable[[], ResultStore | None],
        find_broker: Any,
        announce: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._find_store = find_store
        self._announce = announce
        self._find_broker: Callable[[], Broker] = find_broker

    def pause_queue(
        self,
        name: str,
        *,
        for_s: float | None = None,
        until: datetime | None = None,
        why: str = "",
        by: str | None = None,
    ) -> Pause:
        """Pause a queue; of several pauses of one queue the last holds.

        Args:
            name: The queue.
            for_s: Resume by itself after so many seconds.
            until: Resume by itself at this moment; an aware datetime.
            why: Reason, shown wherever the pause is.
            by: Who pauses; the user and host of this process by default.

        Raises:
            ConfigError: For an unusable name, time or reason.
            ResultsDisabled: If there is no results store.
            ResultsUnavailable: If it cannot be reached.
        """
        check_queue_name(name)
        if name == DEAD_QUEUE:
            raise ConfigError(f"{DEAD_QUEUE} is consumed by no worker, so it cannot be paused")
        return self._pause("queue", name, for_s, until, why, by)

    def pause_task(
        self,
        name: str,
        *,
        for_s: float | None = None,
        until: datetime | None = None,
        why: str = "",
        by: str | None = None,
    ) -> Pause:
        """Pause a task by its registered name; see `pause_queue`."""
        if not isinstance(name, str) or not 0 < len(name.encode()) <= 200:
            raise ConfigError(f"task name {name!r:.80} is not text of 1 to 200 bytes")
        return self._pause("task", name, for_s, until, why, by)

    def resume_queue(self, name: str) -> bool:
        """Resume a queue and return whether it was paused; raises as `pause_queue`."""
        return self._resume("queue", name)

    def resume_task(self, name: str) -> bool:
        """Resume a task and return whether it was paused.

        Its messages that were sent on come back by and by, within half a minute.
        """
        return self._resume("task", name)

    def list(self) -> Sequence[Pause]:
        """Return what is paused now, queues first.

        Raises:
            ResultsDisabled: If there is no results store.
            ResultsUnavailable: If it cannot be reached.
        """
        return read_pauses(self._store())

    def _store(self) -> ResultStore:
        store = self._find_store()
        if store is None:
            raise ResultsDisabled("pauses need a results store: set `results=` or TASKQ_RESULTS")
        return store

    def _pause(
        self,
        kind: Kind,
        name: str,
        for_s: float | None,
        until: datetime | None,
        why: str,
        by: str | None,
    ) -> Pause:
        now_ms = clock.now_ms()
        if not isinstance(why, str) or len(why) > MAX_WHY:
            raise ConfigError(f"why is {why!r:.60}; use text of at most {MAX_WHY} characters")
        until_ms = _until_ms(for_s, until, now_ms)
        pause = Pause(kind, name, why, (by or _who())[:200], now_ms, until_ms)
        store = self._store()
        store.put_note(NOTES, *encode_pause(pause))
        for over in _ended(store, now_ms):
            store.put_note(NOTES, over, None)
        self._tell()
        if kind == "queue":
            facts = {"queue": name, "by": pause.by, "why": why, "until_ms": until_ms}
            self._announce("queue.paused", {key: fact for key, fact in facts.items() if fact})
        return pause

    def _resume(self, kind: Kind, name: str) -> bool:
        known = self._store().put_note(NOTES, f"{kind}:{name}", None)
        self._tell()
        if known and kind == "queue":
            self._announce("queue.resumed", {"queue": name})
        return known

    def _tell(self) -> None:
        """Have workers look at once; without this they look within a second."""
        try:
            self._find_broker().ask({"command": "look"}, _TELL_S)
        except TaskqError as error:
            log.info("workers will see the change in a second: %s", error)


def _ended(store: ResultStore, now_ms: int) -> list[str]:
    ended = []
    for name, value in store.notes(NOTES).items():
        try:
            pause = decode_pause(name, value)
        except DecodeError:
            continue
        if not pause.holds(now_ms):
            ended.append(name)
    return ended


def _until_ms(for_s: float | None, until: datetime | None, now_ms: int) -> int:
    if for_s is not None and until is not None:
        raise ConfigError("for_s and until exclude each other; give one")
    if for_s is not None:
        good = isinstance(for_s, int | float) and not isinstance(for_s, bool)
        if not good or not 0 < for_s <= _MAX_S:
            raise ConfigError(f"for_s is {for_s!r}; use seconds above 0, at most 366 days")
        return now_ms + math.ceil(for_s * 1000)
    if until is None:
        return 0
    if not isinstance(until, datetime) or until.tzinfo is None:
        raise ConfigError(f"until is {until!r}; use an aware datetime")
    until_ms = math.ceil(until.timestamp() * 1000)
    if not now_ms < until_ms <= now_ms + _MAX_S * 1000:
        raise ConfigError(f"until is {until.isoformat()}; use a moment within the next 366 days")
    return until_ms


def _who() -> str:
    import getpass
    import socket

    try:
        user = getpass.getuser()
    # No such user in the password file and no variable either: a container with a bare uid.
    except (OSError, KeyError, ImportError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
