"""Which dead letters are meant."""

import fnmatch
from dataclasses import asdict, dataclass
from typing import Any

from taskq.dead.letter import DeadLetter


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which letters; what is left empty matches every letter.

    Attributes:
        ids: Task ids, or their endings of at least 8 characters.
        task: Task name; `*` and `?` stand for any text and any character.
        queue: Queue it came from.
        reason: One of `taskq.resend.REASONS`.
        since_ms: Ended at this moment or later, as epoch ms.
        before_ms: Ended before this moment, as epoch ms.
        exception: Class name of the exception, with or without its module.
        fingerprint: Beginning of the exception's fingerprint.
        attempts: Runs that were started, at least so many.
    """

    ids: tuple[str, ...] = ()
    task: str = ""
    queue: str = ""
    reason: str = ""
    since_ms: int = 0
    before_ms: int = 0
    exception: str = ""
    fingerprint: str = ""
    attempts: int = 0

    def matches(self, letter: DeadLetter) -> bool:
        """Return whether a letter is wanted."""
        error = letter.exception
        return (
            (not self.ids or any(same_id(letter.id, wanted) for wanted in self.ids))
            and (not self.task or fnmatch.fnmatchcase(letter.task, self.task))
            and (not self.queue or letter.queue == self.queue)
            and (not self.reason or letter.reason == self.reason)
            and letter.failed_at_ms >= self.since_ms
            and (not self.before_ms or letter.failed_at_ms < self.before_ms)
            and self.exception in ("", error.type, f"{error.module}.{error.type}")
            and error.fingerprint.startswith(self.fingerprint)
            and letter.attempts >= self.attempts
        )

    def to_json(self) -> dict[str, Any]:
        """Return what is set, for a journal."""
        return {name: value for name, value in asdict(self).items() if value}


def same_id(task_id: str, wanted: str) -> bool:
    """Return whether `wanted` names a task: its id, or at least the last 8 characters.

    Not the first: ids of version 7 begin with the time, and all letters of a minute would be meant.
    """
    return task_id == wanted or (len(wanted) >= 8 and task_id.endswith(wanted))
