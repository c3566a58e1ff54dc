"""Dead letters: look at them, send them again, drop them.

::

    dead = DeadLetters(app.broker, app.results)
    for letter in dead.list(Filter(reason="failed")):
        print(letter.id, letter.exception.type)
    dead.replay(dead.choose(Filter(task="mail.*")))

Looking never removes or spends a letter. A letter is removed only after its replay was confirmed.
"""

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from taskq.brokers.base import Broker, Delivery, Outgoing, Verdict
from taskq.canvas import step_ids
from taskq.errors import DecodeError
from taskq.letter import DeadException, DeadLetter, FailedAttempt, read_letter
from taskq.resend import revived
from taskq.results.base import ResultStore

__all__ = [
    "Chosen",
    "DeadException",
    "DeadLetter",
    "DeadLetters",
    "FailedAttempt",
    "Filter",
    "read_letter",
    "same_id",
]

Progress = Callable[[int], None]
_FORGET_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which letters; what is left empty matches every letter.

    Attributes:
        ids: Task ids, or beginnings of at least 6 characters.
        task: Task name; `*` and `?` stand for any text and any character.
        queue: Queue it came from.
        reason: One of `taskq.resend.REASONS`.
        since_ms: Ended at this moment or later, as epoch ms.
        exception: Class name of the exception, with or without its module.
        fingerprint: Beginning of the exception's fingerprint.
    """

    ids: tuple[str, ...] = ()
    task: str = ""
    queue: str = ""
    reason: str = ""
    since_ms: int = 0
    exception: str = ""
    fingerprint: str = ""

    def matches(self, letter: DeadLetter) -> bool:
        """Return whether a letter is wanted."""
        error = letter.exception
        return (
            (not self.ids or any(same_id(letter.id, wanted) for wanted in self.ids))
            and (not self.task or fnmatch.fnmatchcase(letter.task, self.task))
            and (not self.queue or letter.queue == self.queue)
            and (not self.reason or letter.reason == self.reason)
            and (not self.since_ms or letter.failed_at_ms >= self.since_ms)
            and self.exception in ("", error.type, f"{error.module}.{error.type}")
            and error.fingerprint.startswith(self.fingerprint)
        )


def same_id(task_id: str, wanted: str) -> bool:
    """Return whether `wanted` names a task: its id, or at least the first 6 characters."""
    return task_id == wanted or (len(wanted) >= 6 and task_id.startswith(wanted))


_ALL: Final = Filter()


@dataclass(slots=True)
class Chosen:
    """Letters chosen for a replay or a drop; letters that arrive later are not among them.

    Attributes:
        keys: `DeadLetter.key` of each.
        ids: Their ids, oldest letter first.
        homeless: Ids of those whose queue nobody knows.
        steps: Ids of the chain steps that failed with them.
    """

    keys: set[tuple[str, int, str, int]] = field(default_factory=set)
    ids: list[str] = field(default_factory=list)
    homeless: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)


class DeadLetters:
    """The dead letters of one broker."""

    def __init__(self, broker: Broker, results: ResultStore | None = None) -> None:
        """Prepare; connects on first use.

        Args:
            broker: Where they are.
            results: Where the tasks' failures are recorded, or None when results are off.
        """
        self._broker = broker
        self._results = results

    def _walk(self, decide: Callable[[DeadLetter], Verdict], progress: Progress | None) -> None:
        prefix = self._broker.options.prefix
        seen = 0

        def visit(delivery: Delivery) -> Verdict:
            nonlocal seen
            seen += 1
            if progress is not None:
                progress(seen)
            return decide(read_letter(delivery, prefix))

        self._broker.sweep_dead(visit)

    def list(
        self, wanted: Filter = _ALL, limit: int = 0, progress: Progress | None = None
    ) -> Sequence[DeadLetter]:
        """Return letters, oldest first.

        Args:
            wanted: Which.
            limit: Only so many, the newest ones; 0 for all.
            progress: Called with the number of letters looked at.

        Raises:
            BrokerUnavailable: If the broker cannot be reached.
        """
        found: list[DeadLetter] = []

        def decide(letter: DeadLetter) -> Verdict:
            if wanted.matches(letter):
                found.append(letter)
                if limit and len(found) > limit:
                    del found[0]
            return "keep"

        self._walk(decide, progress)
        return found

    def choose(self, wanted: Filter = _ALL, progress: Progress | None = None) -> Chosen:
        """Choose letters to replay or to drop; see `list`."""
        chosen = Chosen()

        def decide(letter: DeadLetter) -> Verdict:
            if wanted.matches(letter):
                chosen.keys.add(letter.key)
                chosen.ids.append(letter.id)
                if not letter.queue:
                    chosen.homeless.append(letter.id)
                chosen.steps += _steps(letter)
            return "keep"

        self._walk(decide, progress)
        return chosen

    def replay(
        self, chosen: Chosen, to: str = "", progress: Progress | None = None
    ) -> Sequence[str]:
        """Send letters to their queues again, attempts at 0, and remove them.

        Their recorded FAILURE is forgotten first, with that of the chain steps behind them, or a
        worker would take the replay for the redelivery of a finished task. Letters whose queue
        nobody knows are kept unless `to` is given.

        Args:
            chosen: Which; see `choose`.
            to: Queue to send them to instead of their own.
            progress: Called with the number of letters looked at.

        Returns:
            The ids of the letters that were sent.

        Raises:
            BrokerUnavailable: If the broker cannot be reached.
            PublishError: If one was not confirmed; it and the rest are kept.
            ResultsUnavailable: If the failures cannot be forgotten; nothing was sent.
        """
        self._forget_failures([*chosen.ids, *chosen.steps])
        sent: list[str] = []

        def decide(letter: DeadLetter) -> Verdict:
            queue = to or letter.queue
            if letter.key not in chosen.keys or not queue:
                return "keep"
            sent.append(letter.id)
            return Outgoing(queue, revived(letter.message))

        self._walk(decide, progress)
        return sent

    def drop(self, chosen: Chosen, progress: Progress | None = None) -> Sequence[str]:
        """Delete letters.

        Args:
            chosen: Which; see `choose`.
            progress: Called with the number of letters looked at.

        Returns:
            The ids of the letters that were deleted.
        """
        gone: list[str] = []

        def decide(letter: DeadLetter) -> Verdict:
            if letter.key not in chosen.keys:
                return "keep"
            gone.append(letter.id)
            return "remove"

        self._walk(decide, progress)
        return gone

    def _forget_failures(self, ids: Sequence[str]) -> None:
        store = self._results
        if store is None:
            return
        for start in range(0, len(ids), _FORGET_AT_ONCE):
            part = ids[start : start + _FORGET_AT_ONCE]
            records = store.fetch(part)
            # A success, which another copy of the message may have had, stays final.
            failed = [i for i, data in zip(part, records, strict=True) if data and data[:1] == b"F"]
            if failed:
                store.forget(failed)


def _steps(letter: DeadLetter) -> Sequence[str]:
    try:
        return step_ids(letter.call().embed)
    except DecodeError:
        return ()
