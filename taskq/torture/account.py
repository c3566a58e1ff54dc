"""The account after a fault: what became of every confirmed task."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from taskq import outcome
from taskq.app import TaskQ
from taskq.dead import DeadLetters
from taskq.errors import BrokerError, ConfigError, ResultError
from taskq.results.base import decode_record, is_terminal
from taskq.torture.load import Load
from taskq.torture.tasks import QUEUE

_PART: Final = 500
_POLL_S: Final = 0.1
_PATIENCE_S: Final = 10.0
_ALL_DELAYS_S: Final = 400 * 86400.0


@dataclass(slots=True, kw_only=True)
class Account:
    """What became of the tasks of one load.

    Attributes:
        confirmed: Tasks whose send returned.
        unconfirmed: Tasks whose send raised.
        completed: Confirmed tasks that ran to their end and have their result.
        dead: Confirmed tasks that are dead letters.
        queued: Messages that still wait in the queues.
        lost: Ids of confirmed tasks that are none of these.
        duplicated: How many runs were begun again within one attempt.
        early: Ids of tasks that started before they were due.
        left_delayed: Messages that still wait in the delay queues.
        slowest_send_s: The longest that one send took, in seconds.
        late: Whether a send took longer than its timeout allows.
        drained_s: How long it took to finish everything after the fault, in seconds.
    """

    confirmed: int
    unconfirmed: int
    completed: int
    dead: int
    queued: int
    lost: list[str]
    duplicated: int
    early: list[str]
    left_delayed: int
    slowest_send_s: float
    late: bool
    drained_s: float


class Runs:
    """The file of runs, read once.

    Attributes:
        started: How often each (task id, attempt) was begun.
        ended: Ids of tasks that ran to their end.
        first_ms: When each task was begun first, in epoch ms.
    """

    def __init__(self, path: Path) -> None:
        self.started: Counter[tuple[str, int]] = Counter()
        self.ended: set[str] = set()
        self.first_ms: dict[str, int] = {}
        try:
            lines = path.read_text().splitlines()
        except FileNotFoundError:
            lines = []
        for line in lines:
            kind, task_id, attempt, _, at_ms = line.split(" ")
            if kind == "e":
                self.ended.add(task_id)
                continue
            self.started[task_id, int(attempt)] += 1
            self.first_ms[task_id] = min(self.first_ms.get(task_id, int(at_ms)), int(at_ms))


def unfinished(app: TaskQ, ids: Collection[str]) -> set[str]:
    """Return the ids without a final record.

    Raises:
        ResultsUnavailable: If the results store cannot be reached.
    """
    store = app.results
    if store is None:
        raise ConfigError("an account needs a results store")
    todo = list(ids)
    open_ids = set()
    for start in range(0, len(todo), _PART):
        part = todo[start : start + _PART]
        records = store.fetch(part)
        open_ids |= {
            task_id
            for task_id, data in zip(part, records, strict=True)
            if data is None or not is_terminal(data)
        }
    return open_ids


def _successes(app: TaskQ, ids: Sequence[str]) -> set[str]:
    store = app.results
    found: set[str] = set()
    for start in range(0, len(ids) if store is not None else 0, _PART):
        part = ids[start : start + _PART]
        records = [] if store is None else store.fetch(part)
        for task_id, data in zip(part, records, strict=True):
            if data is not None and decode_record(data).state == outcome.SUCCESS:
                found.add(task_id)
    return found


def until(condition: Callable[[], bool], limit_s: float) -> bool:
    """Wait for a condition whose servers may be away; return whether it came true in time."""
    deadline_s = time.monotonic() + limit_s
    while True:
        try:
            if condition():
                return True
        except (BrokerError, ResultError):
            # Coming back; asked again below.
            pass
        if time.monotonic() > deadline_s:
            return False
        time.sleep(_POLL_S)


def settle(
    app: TaskQ, load: Load, runs_path: Path, limit_s: float, *, stored: bool = True
) -> Account:
    """Wait until every task of a stopped load has ended, and count.

    Args:
        app: Of the load.
        load: Stopped.
        runs_path: The file of runs.
        limit_s: How long to wait at most, in seconds.
        stored: Whether results count; False after the store was emptied, when only runs do.

    Raises:
        BrokerUnavailable: If the broker does not come back.
        ResultsUnavailable: If the results store does not come back.
    """
    began_s = time.monotonic()
    ids = list(load.confirmed)
    left = set(ids)

    def all_ended() -> bool:
        nonlocal left
        if stored:
            left = unfinished(app, left)
        else:
            left -= Runs(runs_path).ended
        return not left

    until(all_ended, limit_s)
    patience_s = min(_PATIENCE_S, max(1.0, limit_s))
    # A failure's record is there a moment before its dead letter.
    doomed = load.doomed & set(ids)
    until(lambda: _dead_ids(app) >= doomed, patience_s)
    # Tasks whose send raised may be there too, and count for nothing; so may second deliveries.
    until(lambda: _waiting(app) == 0, max(patience_s, limit_s - (time.monotonic() - began_s)))
    drained_s = time.monotonic() - began_s
    return _count(app, load, Runs(runs_path), drained_s, stored)


def _count(app: TaskQ, load: Load, runs: Runs, drained_s: float, stored: bool) -> Account:
    ids = list(load.confirmed)
    own = {*ids, *load.doubtful}
    dead = _dead_ids(app) & set(ids)
    completed = (_successes(app, ids) if stored else runs.ended & set(ids)) - dead
    queued = _waiting(app)
    missing = [task_id for task_id in ids if task_id not in completed and task_id not in dead]
    early = [
        task_id
        for task_id, due_ms in load.confirmed.items()
        if due_ms and runs.first_ms.get(task_id, due_ms) < due_ms
    ]
    return Account(
        confirmed=len(ids),
        unconfirmed=len(load.doubtful),
        completed=len(completed),
        dead=len(dead),
        queued=queued,
        lost=missing[: max(0, len(missing) - queued)],
        duplicated=sum(n - 1 for (task_id, _), n in runs.started.items() if task_id in own),
        early=early,
        left_delayed=app.broker.due_within(_ALL_DELAYS_S),
        slowest_send_s=load.slowest_s,
        late=load.slowest_s > load.limit_s + 1.0,
        drained_s=drained_s,
    )


def _dead_ids(app: TaskQ) -> set[str]:
    return {letter.id for letter in DeadLetters(app.broker).list()}


def _waiting(app: TaskQ) -> int:
    depth = app.broker.depths([QUEUE])[QUEUE]
    ready = 0 if depth is None else depth.ready + max(0, depth.unsettled)
    # The delay queues are many on RabbitMQ: they are asked for when the rest is done.
    return ready or app.broker.due_within(_ALL_DELAYS_S)
