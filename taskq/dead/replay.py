"""Sending letters back to their queues."""

import hashlib
import itertools
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from taskq.body import decode_call
from taskq.brokers.base import Broker, Delivery, Outgoing
from taskq.brokers.replay import Replay
from taskq.canvas import step_ids
from taskq.dead.edit import Edit
from taskq.dead.journal import Journal, Key
from taskq.dead.letter import DeadLetter, read_letter
from taskq.dead.pace import Pace
from taskq.errors import ConfigError, DecodeError, TaskqError
from taskq.message import REPLAY, Message
from taskq.resend import revived
from taskq.results.base import ResultStore

Progress = Callable[[int], None]
AT_ONCE: Final = 500
_PENDING_TTL_S: Final = 86400
_STEP_S: Final = 30.0
"""With a rate, so many seconds' letters leave the dead letters together."""
_RESUMED_WALKS: Final = 30
_RETURN_S: Final = 1.0
"""What a killed replay held comes back within moments; until then a walk does not see it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a replay does.

    Attributes:
        keys: The letters.
        to: Queue to send them to instead of their own.
        rate_per_s: How many a second; 0 for as fast as it goes.
        create: Whether queues that do not exist any more are created.
        edit: What is changed in each of them.
        resumed: Whether it goes on with one that was killed.
    """

    keys: set[Key]
    to: str = ""
    rate_per_s: float = 0.0
    create: bool = False
    edit: Edit | None = None
    resumed: bool = False


class Replayer:
    """One replay.

    Args:
        broker: Where the letters are.
        results: Where the tasks' failures are recorded, or None.
        journal: Where it is written down, or None.
        progress: Called with the number of letters sent.
    """

    def __init__(
        self,
        broker: Broker,
        results: ResultStore | None,
        journal: Journal | None,
        progress: Progress | None,
    ) -> None:
        self._broker = broker
        self._results = results
        self._journal = journal
        self._progress = progress
        self._job = secrets.token_hex(8) if journal is None else journal.job
        self._ids: list[str] = []
        self._shown: set[Key] = set()
        self._let_go = 0

    def run(self, plan: Plan, queues: Sequence[str]) -> Sequence[str]:
        """Do it; see `DeadLetters.replay`.

        Args:
            plan: What to do.
            queues: Where letters will go.
        """
        pace = Pace(plan.rate_per_s, time.sleep)
        limit = max(1, int(plan.rate_per_s * _STEP_S)) if plan.rate_per_s else 10**9
        already = set(self._journal.sent) if self._journal is not None else set()
        targets = [plan.to] if plan.to else queues
        try:
            self._run(plan, targets, limit, pace, already)
        except TaskqError as error:
            # Nothing was touched, so there is nothing to go on with.
            if self._journal is not None and not self._journal.sent and not plan.resumed:
                self._journal.note(ended=0, error=str(error))
            raise
        if self._journal is not None:
            self._journal.note(ended=len({*self._ids, *already}))
        return self._ids

    def _run(
        self, plan: Plan, targets: Sequence[str], limit: int, pace: Pace, already: set[str]
    ) -> None:
        with self._broker.replay(targets, plan.create) as replay:
            self._adopt(replay, plan)
            for walk in itertools.count(1):
                sent = self._walk(replay, plan, limit, pace)
                if sent >= limit:
                    continue
                missing = len(plan.keys) - len(self._ids) - len(already)
                if not plan.resumed or replay.whole or (missing <= 0 and not replay.stranded):
                    break
                if walk >= _RESUMED_WALKS:
                    raise ConfigError(
                        "others look at the dead letters, and hold some of them; the replay is "
                        "not at its end. Go on with it when they have ended: "
                        "taskq dead replay --resume"
                    )
                time.sleep(_RETURN_S)

    def _adopt(self, replay: Replay, plan: Plan) -> None:
        """Take over what a killed replay left half-way.

        Raises:
            ConfigError: If that was another replay than this one.
        """
        if not replay.stranded:
            return
        if not plan.resumed:
            count = sum(replay.stranded.values())
            raise ConfigError(
                f"a replay was cut off with {count:,} letters on their way; nothing was sent. "
                "Go on with it first: taskq dead replay --resume"
            )
        self._job = next(iter(replay.stranded)).partition("/")[0]

    def _walk(self, replay: Replay, plan: Plan, limit: int, pace: Pace) -> int:
        prefix = self._broker.options.prefix
        stranded = dict(replay.stranded)

        def visit(delivery: Delivery) -> Outgoing | None:
            letter = read_letter(delivery, prefix)
            tag = f"{self._job}/{_digest(letter)}"
            if letter.key not in plan.keys and tag not in stranded:
                return None
            outgoing = self._outgoing(letter, plan, tag)
            if outgoing is not None and letter.key not in self._shown:
                self._shown.add(letter.key)
                self._ids.append(letter.id)
            return outgoing

        def paced(waiting: int) -> int:
            count = pace(waiting)
            self._let_go += count
            if self._progress is not None:
                self._progress(self._let_go)
            return count

        return replay.run(visit, limit, self._prepare, paced)

    def _outgoing(self, letter: DeadLetter, plan: Plan, tag: str) -> Outgoing | None:
        queue = plan.to or letter.queue
        if not queue:
            return None
        message = letter.message if plan.edit is None else plan.edit.apply(letter)
        fresh = revived(message)
        return Outgoing(queue, fresh._replace(headers={**fresh.headers, REPLAY: tag}))

    def _prepare(self, batch: Sequence[Outgoing]) -> None:
        for start in range(0, len(batch), AT_ONCE):
            part = batch[start : start + AT_ONCE]
            self._forget_failures(
                [i for one in part for i in (one.message.id, *_steps(one.message)) if i]
            )
        if self._journal is not None:
            self._journal.note(sent=[one.message.id for one in batch])

    def _forget_failures(self, ids: Sequence[str]) -> None:
        store = self._results
        if store is None or not ids:
            return
        records = store.fetch(ids)
        # A success, which another copy of the message may have had, stays final.
        failed = [i for i, data in zip(ids, records, strict=True) if data and data[:1] == b"F"]
        if failed:
            store.forget(failed)
            if not store.covers(self._broker.url):
                store.mark_pending(failed, _PENDING_TTL_S)


def _digest(letter: DeadLetter) -> str:
    return hashlib.sha256(repr(letter.key).encode(errors="replace")).hexdigest()[:16]


def _steps(message: Message) -> Sequence[str]:
    try:
        return step_ids(decode_call(message).embed)
    except DecodeError:
        return ()
