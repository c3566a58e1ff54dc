"""Cancelling from outside: the record or the rule is stored first, then workers are told.

What is stored holds by itself: workers look at it before they start a task, and once a second for
what they hold. The word to them only makes it prompt.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Protocol

from taskq import clock, outcome
from taskq.brokers.base import Broker
from taskq.cancels import RULE_TTL_S, CancelRule, make_rule, pack_rule, root_of
from taskq.config import Settings
from taskq.errors import ResultsDisabled, TaskqError
from taskq.results.base import MAX_ATTEMPT, Record, ResultStore, encode_record, is_terminal

log = logging.getLogger("taskq.app")

_TELL_S: Final = 0.05
_COUNT_S: Final = 1.0
_PAGE: Final = 500


@dataclass(frozen=True, slots=True)
class CancelCount:
    """What a cancel by workflow, name or header means, as far as it can be counted.

    Attributes:
        running: Tasks that run now, on the workers that answered.
        held: Tasks in those workers' hands that have not started.
        waiting: All tasks that have not started, also delayed ones and those in workers' hands;
            None where the broker's queues cannot be looked through (RabbitMQ).
        workers: How many workers answered.
    """

    running: int
    held: int
    waiting: int | None
    workers: int


class CancelSource(Protocol):
    """What cancelling needs of an app."""

    @property
    def results(self) -> ResultStore | None:
        """The results store, or None when results are off."""

    @property
    def broker(self) -> Broker:
        """The broker."""

    @property
    def settings(self) -> Settings:
        """The app's settings."""


class CancelMethods:
    """The methods of an app that cancel tasks."""

    def cancel(self: CancelSource, task_id: str) -> bool:
        """Cancel a task; see `AsyncResult.cancel`."""
        store, settings = _store_of(self), self.settings
        ttl_s = max(settings.result_ttl_s, settings.failure_ttl_s)
        (before,) = cancel_ids(store, self.broker, [task_id], ttl_s)
        return before == outcome.CANCELLED or before not in (None, *outcome.TERMINAL)

    def cancel_all(
        self: CancelSource,
        *,
        root_id: str | None = None,
        task: str | None = None,
        headers: Mapping[str, Any] | None = None,
        dry_run: bool = False,
        ttl_s: int = RULE_TTL_S,
    ) -> CancelCount:
        """Cancel all tasks of a workflow, of a name, or with a header; also with no worker alive.

        What is given must all be so. By name and header it means what was sent before; a workflow
        is cancelled with whatever its tasks still send. States change when a worker meets a task.

        Args:
            root_id: First task of the workflow.
            task: Registered name.
            headers: Header to value; values are compared as text.
            dry_run: Whether to count only.
            ttl_s: How long the cancel is remembered, in seconds: longer than any delay by default.

        Returns:
            How many tasks it means, as far as they can be counted.

        Raises:
            ConfigError: If nothing is named, or something is not usable.
            ResultsDisabled: If the app has no results store to remember it in.
            ResultsUnavailable: If the store cannot be reached; then nothing was cancelled.
        """
        store = _store_of(self)
        rule = make_rule(root_id, task, headers, clock.now_ms(), ttl_s)
        if dry_run:
            return count(store, self.broker, rule)
        return cancel_by_rule(store, self.broker, rule)


def _store_of(app: CancelSource) -> ResultStore:
    store = app.results
    if store is None:
        raise ResultsDisabled("cancel needs a results store: set `results=` or TASKQ_RESULTS")
    return store


def cancelled_record() -> bytes:
    """Return the record that wins over every attempt."""
    return encode_record(Record(outcome.CANCELLED, MAX_ATTEMPT, at_ms=clock.now_ms()))


def cancel_ids(
    store: ResultStore, broker: Broker, task_ids: Sequence[str], ttl_s: int
) -> list[str | None]:
    """Cancel tasks by id; see `AsyncResult.cancel`.

    Args:
        store: Where their records are.
        broker: Over which workers are told.
        task_ids: Which.
        ttl_s: How long the records are kept, at least, in seconds.

    Returns:
        Their states before, None for an id never seen.

    Raises:
        ResultsUnavailable: If the store cannot be reached; then nothing was cancelled.
    """
    before = store.cancel(task_ids, cancelled_record(), ttl_s)
    if outcome.STARTED in before:
        _tell(broker, {"command": "cancel"})
    return before


def cancel_by_rule(store: ResultStore, broker: Broker, rule: CancelRule) -> CancelCount:
    """Store a rule and tell the workers; see `TaskQ.cancel_all`.

    Raises:
        ResultsUnavailable: If the store cannot be reached; then nothing was cancelled.
    """
    counted = count(store, broker, rule, tell=True)
    while clock.now_ms() <= rule.at_ms:
        # What its caller sends next must carry a later time than the rule.
        pass
    return counted


def count(
    store: ResultStore, broker: Broker, rule: CancelRule, *, tell: bool = False
) -> CancelCount:
    """Count what a rule hits.

    Args:
        store: Where records are.
        broker: Where tasks wait.
        rule: The rule.
        tell: Whether it is also stored, and workers act on it at once.

    Raises:
        ResultsUnavailable: If the store cannot be reached.
    """
    if tell:
        store.add_rule(pack_rule(rule), rule.ends_ms)
    request = {"command": "cancel", "rule": pack_rule(rule), "act": tell}
    try:
        # First, as workers that are told end what they hold.
        waiting = _waiting(store, broker, rule)
        answers = broker.ask(request, _COUNT_S)
        running = sum(_number(answer, "running") for answer in answers)
        held = sum(_number(answer, "held") for answer in answers)
    except TaskqError as error:
        if not tell:
            raise
        # The rule is stored and holds; only the count is missing.
        log.warning("cancelled, but the tasks cannot be counted error=%s", error)
        return CancelCount(0, 0, None, 0)
    if waiting is not None:
        waiting = max(0, waiting - running)
    return CancelCount(running, held, waiting, len(answers))


def _number(answer: Mapping[str, Any], name: str) -> int:
    value = answer.get(name)
    return value if isinstance(value, int) else 0


def _waiting(store: ResultStore, broker: Broker, rule: CancelRule) -> int | None:
    """Count the messages that a rule hits and whose tasks have not ended; None where it cannot."""
    found = broker.waiting()
    if found is None:
        return None
    ids = (message.id for message in found if rule.hits(message, root_of(message)))
    total = 0
    while page := list(islice(ids, _PAGE)):
        records = store.fetch(page)
        total += sum(data is None or not is_terminal(data) for data in records)
    return total


def _tell(broker: Broker, request: dict[str, Any]) -> None:
    try:
        broker.ask(request, _TELL_S)
    except TaskqError as error:
        log.info("workers cannot be told of a cancel, they will see it error=%s", error)
