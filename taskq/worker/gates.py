"""Flow control at admission: who may start now, who waits, who never starts.

Asked once for each admission, in the round trip that fetches the records. What may start keeps a
grant (slots, claims) that is renewed while it is in hand and given back in the settler's batch;
what is over a limit waits for less than a second here, else in the broker's delay, at no attempt.
"""

import logging
import secrets
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from taskq import clock, outcome
from taskq.errors import ConfigError, RemoteError, ResultsUnavailable
from taskq.flow.asks import (
    DONE,
    DUPLICATE,
    GO,
    PASSED,
    START,
    SUPERSEDED,
    WAIT,
    Ask,
    Release,
    Verdict,
)
from taskq.flow.keys import read_keys, split_cell
from taskq.flow.store import FlowStore
from taskq.flow.stores import open_flow
from taskq.message import DUE, KEYS, WAITED
from taskq.results.base import ResultStore, is_terminal
from taskq.worker import endings
from taskq.worker.admission import DUPLICATE as REPEATED
from taskq.worker.endings import Case, Ending
from taskq.worker.gate_plan import Plan
from taskq.worker.held import Held
from taskq.worker.intake import Intake
from taskq.worker.manifest import Manifest
from taskq.worker.shards import Forward

log = logging.getLogger("taskq.worker.flow")

_FAR_MS: Final = 60_000
_AHEAD_MS: Final = 500
"""So much before its moment a message comes back to a rate limit, for the delay's own jitter."""
_NO_FLOW: Final[Mapping[str, Any]] = {"keys": []}
_OUTCOMES: Final = {
    outcome.SUCCESS: "s",
    outcome.FAILURE: "f",
    endings.MALFORMED: "f",
    outcome.RETRY: "r",
    endings.REQUEUED: "b",
    endings.DEFERRED: "b",
}


class Gates:
    """The gates of one worker; a `Gate` of its intake."""

    def __init__(
        self, manifest: Manifest, results: ResultStore, worker: str, intake: Intake
    ) -> None:
        """Attach to the intake.

        Args:
            manifest: Which tasks declare what.
            results: The store, which flow control shares.
            worker: Name of the worker.
            intake: Asks at admission.
        """
        self._results = results
        self._store: FlowStore | None = None
        self._worker = worker
        self._plans = {
            name: Plan(name, info.flow or _NO_FLOW) for name, info in manifest.tasks.items()
        }
        self._limited = {name for name, info in manifest.tasks.items() if info.flow is not None}
        self._lease_us = max(1_000_000, round(manifest.settings.lease_s * 1e6))
        self._boot = secrets.token_hex(4)
        self._judged: dict[int, tuple[Verdict, bytes | None]] = {}
        self._intake = intake
        self._renewed_s = time.monotonic()
        self._plain_fetch = intake.fetch
        intake.fetch = self.fetch
        intake.gates.append(self)

    @property
    def store(self) -> FlowStore:
        """The store of flow control, opened on first use."""
        if self._store is None:
            self._store = open_flow(self._results)
        return self._store

    def fetch(self, batch: Sequence[Held]) -> Sequence[bytes | None]:
        """Return the records of a batch, and keep the verdicts about those with limits."""
        limited = self._limited
        some = False
        for held in batch:
            if held.delivery.message.task in limited or KEYS in held.delivery.message.headers:
                some = True
        if not some:
            return self._plain_fetch(batch)
        asks = self._asks(batch)
        if not asks:
            return self._plain_fetch(batch)
        ids = [held.delivery.message.id for held in batch]
        answer = self.store.admit(ids, asks, self._intake.last_cancel)
        self._intake.learn_cancels(answer.news)
        judged, records, done = self._judged, answer.records, answer.done
        for number, ((at, ask), verdict) in enumerate(zip(asks, answer.verdicts, strict=True)):
            held = batch[at]
            if verdict is START:
                held.grant = (ask, False)
                held.waited, held.asks = None, False
                continue
            judged[held.tag] = (verdict, done.get(number))
            record = records[at]
            if verdict.code == GO:
                held.grant = (ask, verdict.probe)
                held.waited, held.asks = None, False
            elif verdict.code == PASSED and record is not None and is_terminal(record):
                held.grant = (ask._replace(nonce=""), False)
        return records

    def _plan(self, held: Held) -> Plan:
        return self._plans[held.delivery.message.task]

    def _asks(self, batch: Sequence[Held]) -> list[tuple[int, Ask]]:
        now_ms = clock.now_ms()
        asks = []
        limited, plans, boot, lease_us = self._limited, self._plans, self._boot, self._lease_us
        for at, held in enumerate(batch):
            message = held.delivery.message
            header = message.headers.get(KEYS)
            if header is None and message.task not in limited:
                continue
            # Granted before, and held for its moment: a second question would cost a second token.
            if held.void or held.grant is not None:
                continue
            held.asks = True
            if held.due_ms > now_ms:
                continue
            plan = plans[message.task]
            keys = read_keys(header, plan.kinds)
            if keys is None:
                # The executor computes them and sends the message back with them. That is no
                # start: counted as one, it would outrank the run that follows.
                held.asks = held.suspect = False
                continue
            ask = plan.ask(held, keys, f"{boot}-{held.tag}", lease_us)
            if 0 < held.envelope.expires_ms <= now_ms:
                # It will not start; a claim of its sender ends with it.
                held.grant = (ask._replace(nonce=""), False)
                held.asks = False
                continue
            asks.append((at, ask))
        return asks

    def idle(self) -> bool:
        """Return whether no delivery of the batch was asked about; see `Gate`."""
        return not self._judged

    def ask(self, batch: Sequence[Held]) -> Sequence[Ending | None]:
        """Return what becomes of each delivery; see `Gate`."""
        judged, self._judged = self._judged, {}
        return [self._answer(held, judged.get(held.tag)) for held in batch]

    def _answer(self, held: Held, judged: tuple[Verdict, bytes | None] | None) -> Ending | None:
        if judged is None:
            return None
        verdict, done = judged
        now_ms = clock.now_ms()
        if verdict.code == GO:
            if verdict.wait_us > 0:
                held.due_ms = now_ms + -(-verdict.wait_us // 1000)
        elif verdict.code == WAIT:
            held.waited = verdict
            held.due_ms = now_ms + _wait_ms(verdict)
        elif verdict.code == DONE:
            # No detail: of a success it is the result that events show.
            return endings.repeated(held.case(self._worker, True), done)
        elif verdict.code in (DUPLICATE, SUPERSEDED):
            return self._duplicate(held, verdict)
        return None

    def _duplicate(self, held: Held, verdict: Verdict) -> Ending:
        text = f"{held.delivery.message.task} is queued or running already, as {verdict.other}"
        if verdict.code == SUPERSEDED:
            text = f"a later call took its place: {verdict.other}"
        error = RemoteError("taskq.errors", "AlreadyQueued", text)
        ending = endings.final(held.case(self._worker, True), outcome.CANCELLED, error)
        ending.detail = text
        return ending

    def collect(self, outcomes: Iterable[tuple[Held, Ending]]) -> None:
        """Put what deliveries held into their endings, for the settler to give back."""
        for held, ending in outcomes:
            if held.grant is None:
                continue
            ask, probe = held.grant
            held.grant = None
            # A success that was stored, though its worker died before this was told.
            ended = "s" if ending.code == REPEATED else _OUTCOMES.get(ending.code, "e")
            tripped = ending.tripped or (ended in "fr" and self._tripped(held, ending))
            given = self._plan(held).release(ask, probe, ended, tripped)
            # A breaker alone learns of failures and probes only.
            if given.unique or given.idempotency or given.slots or probe or tripped:
                ending.release = given

    def _tripped(self, held: Held, ending: Ending) -> bool:
        breaker = self._plan(held).breaker
        if breaker is None:
            return False
        lost, late = breaker[3:]
        kind = ending.detail.partition(" ")[0]
        return bool((lost and kind == "WorkerLost") or (late and kind == "TimeLimitExceeded"))

    def release(self, batch: list[Release]) -> None:
        """Give back what ended; called by the settler.

        Raises:
            ResultsUnavailable: If the store cannot be reached.
        """
        for given, change in zip(batch, self.store.release(batch), strict=True):
            if change and given.breaker is not None:
                level = logging.WARNING if change == "opened" else logging.INFO
                _kind, task, key = split_cell(given.breaker[0])
                log.log(level, "circuit breaker %s task=%s key=%s", change, task, key or "-")

    def renew(self, in_hand: Collection[Held]) -> None:
        """Keep what the deliveries in hand hold, three times in a lease; called by the ticker."""
        now_s = time.monotonic()
        if now_s - self._renewed_s < self._lease_us / 3e6:
            return
        self._renewed_s = now_s
        given = [
            self._plan(held).release(*held.grant) for held in in_hand if held.grant is not None
        ]
        grants = [item for item in given if item.nonce and _leased(item)]
        if grants:
            self._intake.run(lambda: self._renew(grants))

    def _renew(self, grants: list[Release]) -> None:
        try:
            self.store.renew(grants, self._lease_us)
        except ResultsUnavailable as error:
            # What runs cannot be stopped for it; admission waits for the store meanwhile.
            log.warning("cannot renew what %d tasks hold error=%s", len(grants), error)


def _leased(given: Release) -> bool:
    return bool(given.idempotency or given.slots or given.probe)


def _wait_ms(verdict: Verdict) -> int:
    """Return when a message comes back, in ms from now.

    Far ahead it comes halfway first, so that a limit that is raised meanwhile reaches it.
    """
    wait_ms = -(-verdict.wait_us // 1000)
    if wait_ms > _FAR_MS:
        return wait_ms // 2
    if verdict.waited.endswith("r") and wait_ms > 2 * _AHEAD_MS:
        return wait_ms - _AHEAD_MS
    return wait_ms


def sent_on(held: Held, case: Case) -> Ending:
    """Send an early message on towards its time, with its place in a limit's line."""
    verdict = held.waited
    if verdict is not None:
        headers = {
            **case.message.headers,
            WAITED: [verdict.waited, verdict.at_us, verdict.version],
            DUE: held.due_ms,
        }
        case.message = case.message._replace(headers=headers)
    return endings.deferred(case, held.due_ms)


def make_gates(
    manifest: Manifest, results: ResultStore | None, worker: str, intake: Intake
) -> Gates | None:
    """Return the gates of a worker; None where there is no store and no task needs one.

    Args:
        manifest: Which tasks declare what.
        results: The store; None when results are off.
        worker: Name of the worker.
        intake: Asks at admission.

    Raises:
        ConfigError: If a task declares what needs a store, and there is none.
    """
    if forward := Forward(manifest.shapes, worker, results is not None):
        intake.gates = [*intake.gates, forward]
    if results is not None:
        return Gates(manifest, results, worker, intake)
    for name, info in manifest.tasks.items():
        if info.flow is not None:
            raise ConfigError(
                f"{name} declares limits, uniqueness or a circuit breaker, which all workers "
                "share in the results store: set `results=` or TASKQ_RESULTS, "
                "such as redis://localhost:6379/0"
            )
    return None
