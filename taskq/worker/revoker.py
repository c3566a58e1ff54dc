"""Ends what was cancelled while this worker has it in hand.

Once a second, and when somebody says so, the hub looks up what it holds: the records of the tasks,
and new cancel rules. What has not started ends at once. A running task is asked first (its next
`checkpoint()` raises, a coroutine is cancelled); after `cancel_grace_s` TaskCancelled is raised in
it wherever it is; a second later it is stopped as at its hard time limit.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taskq import outcome
from taskq.cancels import RuleBook, unpack_rule
from taskq.errors import DecodeError
from taskq.results.base import MAX_NEWS, ResultStore
from taskq.worker import endings
from taskq.worker.admission import Admission
from taskq.worker.endings import Ending
from taskq.worker.held import Held

if TYPE_CHECKING:
    from taskq.worker.hub import Hub

log = logging.getLogger("taskq.worker")

_YOUNG_S = 0.5
_LOOK_S = 1.0
_FORCE_S = 1.0


def look_up(store: ResultStore, rules: RuleBook, task_ids: Sequence[str]) -> list[bytes | None]:
    """Return the records of tasks, and learn the rules that are new, in one round trip.

    Args:
        store: Where both are.
        rules: What is known so far.
        task_ids: Whose records.

    Raises:
        ResultsUnavailable: If the store cannot be reached.
    """
    records, news = store.fetch_news(task_ids, rules.last)
    rules.learn(news)
    while len(news) == MAX_NEWS:
        _, news = store.fetch_news((), rules.last)
        rules.learn(news)
    return records


class Revoker:
    """The cancels that concern deliveries in a hub's hands; on the hub's loop."""

    def __init__(
        self, hub: "Hub", store: ResultStore | None, admission: Admission, grace_s: float
    ) -> None:
        """Watch a hub.

        Args:
            hub: Whose deliveries.
            store: Where cancels are; None when results are off, and nothing can be cancelled.
            admission: Says what is one.
            grace_s: How long a running task may take to end by itself, in seconds.
        """
        self._hub = hub
        self._store = store
        self._admission = admission
        self._grace_s = grace_s
        self._looked_s = 0.0
        self._asked: dict[int, Held] = {}

    def tick(self) -> None:
        """Look when it is time, and insist where a task does not end by itself."""
        if self._store is None:
            return
        now_s = time.monotonic()
        if now_s - self._looked_s >= _LOOK_S:
            self.look(_YOUNG_S)
        if not self._asked:
            return
        running = {held.tag: child for child, held, _ in self._hub.pool.running()}
        for held in list(self._asked.values()):
            child = running.get(held.tag)
            if child is None or held.limit_hit:
                continue
            asked_s = now_s - held.cancelled_s
            if asked_s > self._grace_s and not held.forced:
                held.forced = True
                child.revoke([held.tag], by_force=True)
            elif asked_s > self._grace_s + _FORCE_S and child.pid:
                # In the solo pool nobody is left to end it; its result will not be taken.
                self._hub.pool.stop_task(child, held)

    def look(self, young_s: float = 0.0) -> None:
        """Look up everything that was admitted at least `young_s` seconds ago."""
        store = self._store
        if store is None:
            return
        now_s = self._looked_s = time.monotonic()
        batch = [
            held
            for held in self._hub.held.values()
            if held.since_s and now_s - held.since_s >= young_s and not held.cancelled_s
        ]
        if batch:
            done = self._hub.intake.run(lambda: self._cancelled_of(store, batch))
            done.add_done_callback(self._looked)

    def _cancelled_of(self, store: ResultStore, batch: Sequence[Held]) -> list[Held]:
        ids = [held.delivery.message.id for held in batch]
        admission = self._admission
        records = look_up(store, admission.rules, ids)
        return [
            held
            for held, data in zip(batch, records, strict=True)
            if admission.cancelled(held, data)
        ]

    def _looked(self, done: "asyncio.Future[list[Held]]") -> None:
        error = None if done.cancelled() else done.exception()
        if error is not None:
            # The next look is soon, and admission tells what is wrong with the store.
            log.debug("cannot look for cancels error=%s", error)
        elif not done.cancelled():
            self._found(done.result())

    def _found(self, cancelled: Sequence[Held]) -> None:
        hub = self._hub
        for held in cancelled:
            if held.void or held.cancelled_s or hub.held.get(held.tag) is not held:
                continue
            message = held.delivery.message
            log.info("cancelling id=%s task=%s", message.id, message.task)
            ending = self._final(held)
            if held.child is None:
                held.void = True
                hub.settle([(held, ending)])
                continue
            held.cancelled_s = time.monotonic()
            self._asked[held.tag] = held
            # By a rule nothing is stored of it yet: whoever waits for it hears now.
            hub.settler.put([(None, Ending(outcome.CANCELLED, ending.writes))])
            held.child.revoke([held.tag], by_force=False)

    def _final(self, held: Held, runtime_us: int = 0) -> Ending:
        case = held.case(self._hub.name, True)
        return endings.final(case, outcome.CANCELLED, None, us=runtime_us)

    def ended(self, outcomes: list[tuple[Held, Ending]]) -> list[tuple[Held, Ending]]:
        """Return endings as they are to be settled: of a cancelled task only one is possible."""
        if not self._asked:
            return outcomes
        return [
            (held, self._final(held, ending.runtime_us))
            if self._asked.pop(held.tag, None) and ending.code != endings.MALFORMED
            else (held, ending)
            for held, ending in outcomes
        ]

    def unstarted(self, batch: list[Held]) -> list[Held]:
        """End the cancelled ones of what an executor gave back, and return the others."""
        gone = [held for held in batch if held.tag in self._asked]
        if gone:
            self._hub.settle([(held, Ending(endings.REQUEUED)) for held in gone])
        return [held for held in batch if held not in gone]

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Count what a rule hits here, and look at once unless it is only to be counted."""
        packed = request.get("rule")
        counts = {"running": 0, "held": 0}
        if isinstance(packed, bytes):
            try:
                rule = unpack_rule(packed)
            except DecodeError as error:
                return {"error": str(error)}
            running = {held.tag for _, held, _ in self._hub.pool.running()}
            for held in self._hub.held.values():
                message = held.delivery.message
                if not held.void and rule.hits(message, held.envelope.root_id or message.id):
                    counts["running" if held.tag in running else "held"] += 1
        if request.get("act", True):
            self.look()
        return counts
