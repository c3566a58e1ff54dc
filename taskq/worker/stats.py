"""Counters of a worker and its log lines about tasks; never arguments."""

import logging
import time
from collections import Counter, deque
from typing import Any

from taskq import outcome
from taskq.worker import endings
from taskq.worker.endings import Ending
from taskq.worker.held import Held

log = logging.getLogger("taskq.worker.task")

_LEVELS = {
    outcome.RETRY: logging.WARNING,
    outcome.FAILURE: logging.WARNING,
    outcome.CANCELLED: logging.INFO,
    outcome.EXPIRED: logging.INFO,
    endings.PARKED: logging.WARNING,
    endings.MALFORMED: logging.WARNING,
}
_WORDS = {
    outcome.SUCCESS: "succeeded",
    outcome.FAILURE: "failed",
    outcome.RETRY: "retrying",
    outcome.CANCELLED: "cancelled",
    outcome.EXPIRED: "expired",
    endings.IGNORED: "ignored",
    endings.REQUEUED: "requeued",
    endings.DEFERRED: "deferred",
    endings.PARKED: "parked unknown task",
    endings.MALFORMED: "malformed",
    endings.KEYED: "sent back with its keys",
}


class Stats:
    """What a worker did since its start.

    Attributes:
        received: Deliveries taken from the broker.
        endings: How many ended in which way, by code.
        runtime_us: Sum of run times, in microseconds.
        started_s: When the worker started, on the monotonic clock.
        unknown: Parked messages of the last ten minutes: name to (how many, last seen).
    """

    def __init__(self) -> None:
        self.received = 0
        self.endings: Counter[str] = Counter()
        self.runtime_us = 0
        self.started_s = time.monotonic()
        self._unknown: deque[tuple[float, str, str]] = deque(maxlen=1000)

    def ended(self, outcomes: list[tuple[Held, Ending]]) -> None:
        """Count endings and log them."""
        debug = log.isEnabledFor(logging.DEBUG)
        counts = self.endings
        for held, ending in outcomes:
            code = ending.code
            counts[code] += 1
            self.runtime_us += ending.runtime_us
            if code == endings.PARKED:
                message = held.delivery.message
                self._unknown.append((time.monotonic(), message.task, message.id))
            if debug or code in _LEVELS:
                _log(held, ending)

    def unknown(self) -> list[dict[str, Any]]:
        """Return what was parked in the last ten minutes: [{task, id, age_s}], newest last."""
        now = time.monotonic()
        latest = {
            task_id: (seen, task) for seen, task, task_id in self._unknown if now - seen < 600
        }
        return [
            {"task": task, "id": task_id, "age_s": round(now - seen, 1)}
            for task_id, (seen, task) in latest.items()
        ]

    def summary(self) -> dict[str, Any]:
        """Return the counters as plain data."""
        return {
            "received": self.received,
            "endings": dict(self.endings),
            "runtime_s": round(self.runtime_us / 1e6, 3),
            "uptime_s": round(time.monotonic() - self.started_s, 1),
        }


def _named(text: str) -> str:
    """Return a name for a log line; whoever can publish chose it, and could forge lines with it."""
    if not text:
        return "?"
    return text[:200] if text.isprintable() else repr(text[:200])


def _log(held: Held, ending: Ending) -> None:
    message = held.delivery.message
    log.log(
        _LEVELS.get(ending.code, logging.DEBUG),
        "%s task=%s id=%s attempt=%d runtime_ms=%.1f%s",
        _WORDS.get(ending.code, ending.code.lower()),
        _named(message.task),
        _named(message.id),
        held.envelope.retries + 1,
        ending.runtime_us / 1000,
        f" why={ending.detail}" if ending.detail and ending.code != outcome.SUCCESS else "",
        extra={
            "task": message.task,
            "task_id": message.id,
            "attempt": held.envelope.retries + 1,
            "queue": held.delivery.queue,
            "state": ending.code,
        },
    )
