"""A circuit breaker inside one consumer: the rules of tasks' circuit breakers, on local state."""

import threading
import time
from typing import Any, Final

from taskq.flow.asks import GO, Ask, NoSlots, Release
from taskq.flow.returns import release
from taskq.flow.rules import judge
from taskq.flow.spec import CircuitBreaker, span_us

_CELL: Final = "b"
_LEASE_US: Final = 3_600_000_000


class _Cells(NoSlots, dict[str, Any]):
    """State of the rules in a dictionary; nothing expires, for the rules look at the moments."""

    def put(self, name: str, state: list[Any], ttl_us: int) -> None:
        """Replace a cell."""
        self[name] = state

    def drop(self, name: str) -> None:
        """Forget a cell."""
        self.pop(name, None)

    def finished(self, task_id: str) -> bool:
        """No task is known here."""
        return False


class LocalBreaker:
    """Says whether a handler may be called, and learns from what became of it.

    Attributes:
        opened: How often it opened.
    """

    def __init__(self, spec: CircuitBreaker) -> None:
        self.opened = 0
        self._spec = spec
        self._cells = _Cells()
        self._reset_us = span_us("CircuitBreaker.reset_s", spec.reset_s)
        window_us = span_us("CircuitBreaker.window_s", spec.window_s)
        self._breaker = (_CELL, spec.failures, window_us, self._reset_us)
        self._probing = False
        self._lock = threading.Lock()

    @property
    def state(self) -> str:
        """`closed`, `open`, or `half-open` when one event decides."""
        cell = self._cells.get(_CELL)
        if not cell or not cell[1]:
            return "closed"
        return "open" if _now_us() < cell[1] else "half-open"

    def allows(self) -> bool:
        """Return whether the next event may be handled; after it, tell `ended`."""
        # One consumer probes at a time: its id is the same for all events.
        ask = Ask("", "c", 0, False, "", _LEASE_US, breaker=(_CELL, self._reset_us))
        with self._lock:
            verdict = judge(ask, self._cells, _now_us())
            self._probing = verdict.code == GO and verdict.probe
        return verdict.code == GO

    def counts(self, error: BaseException) -> bool:
        """Return whether a failure counts."""
        return self._spec.counts(error)

    def ended(self, error: BaseException | None) -> None:
        """Learn from a call of the handler."""
        failed = error is not None and self.counts(error)
        given = Release(
            "c", "", "f" if failed else "s", failed, breaker=self._breaker, probe=self._probing
        )
        with self._lock:
            if release(given, self._cells, _now_us()) == "opened":
                self.opened += 1


def _now_us() -> int:
    return time.monotonic_ns() // 1000
