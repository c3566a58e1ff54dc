"""Listeners of an app: called in executors, in the order of registration.

A listener observes; what it raises is logged and changes nothing. To change an outcome, write a
middleware.
"""

import logging
from collections.abc import Callable
from typing import Any, Final, TypeVar

from taskq.request import Request

log = logging.getLogger("taskq.hooks")

Listener = TypeVar("Listener", bound=Callable[..., Any])

EVENTS: Final = (
    "worker_start",
    "worker_stop",
    "task_start",
    "task_success",
    "task_failure",
    "task_retry",
    "dead_letter",
)
"""Names of the events that listeners may be registered for."""


class Hooks:
    """Registers listeners by decorator and calls them."""

    def __init__(self) -> None:
        self._listeners: dict[str, list[Callable[..., Any]]] = {name: [] for name in EVENTS}

    def on_worker_start(self, listener: Listener) -> Listener:
        """Call `listener()` in every executor process before its first task."""
        return self._add("worker_start", listener)

    def on_worker_stop(self, listener: Listener) -> Listener:
        """Call `listener()` in every executor process at its orderly end."""
        return self._add("worker_stop", listener)

    def on_task_start(self, listener: Listener) -> Listener:
        """Call `listener(request)` before each run."""
        return self._add("task_start", listener)

    def on_task_success(self, listener: Listener) -> Listener:
        """Call `listener(request, value)` after each successful run."""
        return self._add("task_success", listener)

    def on_task_failure(self, listener: Listener) -> Listener:
        """Call `listener(request, error)` after each final failure of a run."""
        return self._add("task_failure", listener)

    def on_task_retry(self, listener: Listener) -> Listener:
        """Call `listener(request, error)` after each run that will be retried."""
        return self._add("task_retry", listener)

    def on_dead_letter(self, listener: Listener) -> Listener:
        """Call `listener(letter)` for each dead letter that a worker has left.

        Called once the broker has the letter, in an executor, on a thread beside the tasks; see
        `taskq.dead.DeadLetter`. Best effort: a worker that is killed tells nobody, one that is
        killed before its acknowledgement may tell twice, and letters that the broker itself makes
        (`delivery_limit`, `unroutable` at the end of a delay) are not told.
        """
        return self._add("dead_letter", listener)

    def _add(self, event: str, listener: Listener) -> Listener:
        self._listeners[event].append(listener)
        return listener

    def has_listeners(self, event: str) -> bool:
        """Return whether anyone listens, so that the hot path can skip the call."""
        return bool(self._listeners[event])

    def emit(self, event: str, *details: Request | BaseException | Any) -> None:
        """Call every listener of an event; exceptions are logged."""
        for listener in self._listeners[event]:
            try:
                listener(*details)
            # A listener may not alter an outcome, whatever it raises.
            except Exception:
                log.exception("listener failed event=%s listener=%r", event, listener)
