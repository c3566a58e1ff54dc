"""Starts of redelivered messages, counted before they happen: what bounds the deaths of workers.

An executor's death is seen by its hub, which charges one attempt. Nobody sees a hub's death but
the broker, which delivers again what the hub held, started or not. So a redelivered message is
given to a free slot only, where it starts at once, and its start is counted in the store first.
What stands behind the count is also a claim: the STARTED record carries it, and a run that was
believed dead can store nothing over it.

The start of the first delivery is not counted, for that would cost every task a round trip. It is
taken for granted when the task is given up, but never alone: a task of which no start is certain is
never given up. A start is certain when it was counted, or when its STARTED record was found.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from taskq.errors import ResultsUnavailable
from taskq.results.base import MAX_STARTS, ResultStore, is_terminal, starts_of
from taskq.worker import endings, losses
from taskq.worker.admission import Admission
from taskq.worker.endings import Case, Ending
from taskq.worker.held import Held
from taskq.worker.settle import TTL_S

log = logging.getLogger("taskq.worker")

_PAUSE_S = 0.5


def count_key(case: Case) -> str:
    """Return the name under which the starts of one attempt of a task are counted."""
    return f"{case.message.id}:{case.envelope.retries}"


class Verdict(NamedTuple):
    """What the count says of a delivery.

    Attributes:
        starts: Its number of counted starts, this one included.
        lost: Attempts that deaths have cost for certain.
        ending: Why it does not start, or None.
    """

    starts: int
    lost: int
    ending: Ending | None


class Restarts:
    """Counts starts on the admission thread, and hands deliveries back on the hub's loop.

    Attributes:
        flags_returned: See `Broker`.
    """

    def __init__(
        self,
        store: ResultStore,
        admission: Admission,
        run: "Callable[[Callable[[], list[Verdict]]], asyncio.Future[list[Verdict]]]",
        on_counted: Callable[[Held, Ending | None], None],
    ) -> None:
        """Prepare to count.

        Args:
            store: Where it is counted.
            admission: Judges what was stored meanwhile.
            run: Runs a function on the admission thread.
            on_counted: Told each delivery with the ending that keeps it from starting, or None.
        """
        self.flags_returned = False
        self._store = store
        self._admission = admission
        self._run = run
        self._on_counted = on_counted

    def count(self, batch: Sequence[Held]) -> None:
        """Count the starts of deliveries that wait in the slots of executors."""
        places = [held.child for held in batch]
        done = self._run(lambda: self._claim(batch))
        done.add_done_callback(lambda done: self._counted(batch, places, done))

    def refund(self, outcomes: Sequence[tuple[Held, Ending]]) -> None:
        """Have no start charged to what is given back, started or not."""
        for held, ending in outcomes:
            first = self.flags_returned and not held.delivery.redelivered
            if ending.code == endings.REQUEUED and (held.counted or first):
                ending.refund = count_key(self._admission.case(held))

    def _counted(
        self, batch: Sequence[Held], places: Sequence[object], done: "asyncio.Future[list[Verdict]]"
    ) -> None:
        error = None if done.cancelled() else done.exception()
        if done.cancelled() or error is not None:
            if error is not None:
                log.warning("starts wait for the results store error=%s", error)
            loop = asyncio.get_running_loop()
            loop.call_later(_PAUSE_S, self._again, batch, places)
            return
        for held, place, verdict in zip(batch, places, done.result(), strict=True):
            if held.child is not place or place is None:
                # Its executor died meanwhile and it went back to the others; it did not start.
                self._take_back([held])
                continue
            held.counted = True
            held.envelope = held.envelope._replace(starts=verdict.starts, lost=verdict.lost)
            self._on_counted(held, verdict.ending)

    def _again(self, batch: Sequence[Held], places: Sequence[object]) -> None:
        still = [held for held, place in zip(batch, places, strict=True) if held.child is place]
        if still:
            self.count(still)

    def _take_back(self, batch: Sequence[Held]) -> None:
        keys = [count_key(self._admission.case(held)) for held in batch]

        def take_back() -> list[Verdict]:
            self._store.count_starts(keys, TTL_S, -1)
            return []

        self._run(take_back).add_done_callback(_ignore)

    # On the admission thread.

    def _claim(self, batch: Sequence[Held]) -> list[Verdict]:
        cases = [self._admission.case(held) for held in batch]
        counts = self._store.count_starts([count_key(case) for case in cases], TTL_S)
        verdicts = [
            judge(case, count, held.seen_started)
            for held, case, count in zip(batch, cases, counts, strict=True)
        ]
        self._mark(batch, cases, verdicts)
        return verdicts

    def _mark(self, batch: Sequence[Held], cases: list[Case], verdicts: list[Verdict]) -> None:
        """Store STARTED for what may start; what was stored meanwhile may forbid it."""
        open_at = [at for at, verdict in enumerate(verdicts) if verdict.ending is None]
        for _ in range(3):
            writes = []
            for at in open_at:
                envelope = cases[at].envelope._replace(starts=verdicts[at].starts)
                writes.append(endings.started(replace(cases[at], envelope=envelope)))
            taken = self._store.store(writes) if writes else []
            open_at = [at for at, ok in zip(open_at, taken, strict=True) if not ok]
            if not open_at:
                return
            found = self._store.fetch([cases[at].message.id for at in open_at])
            for at, data in zip(open_at, found, strict=True):
                ending = None if data is None else self._admission.judge(batch[at], data)
                starts = verdicts[at].starts
                if ending is None and data is not None and not is_terminal(data):
                    # Another worker claimed it as well, or an older count ran out. The last claim
                    # holds: it is this one, and the other's run will store nothing.
                    starts = min(max(starts, starts_of(data) + 1), MAX_STARTS)
                verdicts[at] = Verdict(starts, verdicts[at].lost, ending)
            open_at = [at for at in open_at if verdicts[at].ending is None]


def judge(case: Case, count: int, seen_started: bool) -> Verdict:
    """Say whether a redelivered message may start once more.

    Args:
        case: The delivery.
        count: Its counted starts, this one included.
        seen_started: Whether the STARTED record of its attempt was found.
    """
    starts = min(max(count, 0), MAX_STARTS)
    certain = max(starts - 1, 1 if seen_started else 0)
    lost = min(certain, starts)
    bound = case.info.max_retries if case.info is not None else 0
    if certain and case.envelope.retries + starts > bound:
        envelope = case.envelope._replace(starts=starts, lost=starts - 1)
        spent = replace(case, envelope=envelope)
        return Verdict(starts, lost, losses.hub_lost(spent))
    return Verdict(starts, lost, None)


def _ignore(done: "asyncio.Future[list[Verdict]]") -> None:
    if not done.cancelled():
        error = done.exception()
        if error is not None and not isinstance(error, ResultsUnavailable):
            log.warning("a start could not be taken back error=%s", error)
