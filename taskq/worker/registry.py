"""The narrow interface through which an executor finds what to run.

Another registry, such as an existing Celery application's, can stand behind the same hub by
offering `find` and `Runnable`.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from taskq.app import TaskQ
from taskq.body import Call
from taskq.events.redact import redacted
from taskq.flow.keys import Key, compute_keys, read_keys
from taskq.hooks import Hooks
from taskq.message import KEYS
from taskq.middleware import compose_arun, compose_run
from taskq.request import Request
from taskq.task import BaseTask
from taskq.worker.manifest import TaskInfo, task_info


class Runnable:
    """Something a message can name: a callable under its middleware.

    Attributes:
        info: The declaration.
        is_async: Whether `call` returns a coroutine.
        call: Runs it under middleware with a Request, and returns its value or raises.
        bound: Whether its function takes the task first.
    """

    __slots__ = ("_breaker", "_keys", "_kinds", "_retries", "_task", "call", "info", "is_async")

    def __init__(self, app: TaskQ, task: BaseTask[Any, Any]) -> None:
        self.info: TaskInfo = task_info(task.spec, app.settings)
        self.is_async = inspect.iscoroutinefunction(task.function)
        self.call: Callable[[Request], Any] = _call_of(app, task, self.is_async)
        self._task = task
        self._retries = task.spec.retry.retries
        flow = task.spec.flow
        self._keys: Mapping[str, Key | None] = {} if flow is None else flow.keys()
        self._kinds = sorted(self._keys)
        self._breaker = None if flow is None else flow.breaker

    def retries(self, error: BaseException) -> bool:
        """Return whether the policy gives this error another attempt."""
        return self._retries(error)

    def trips(self, error: BaseException) -> bool:
        """Return whether this error counts for the task's circuit breaker."""
        return self._breaker is not None and self._breaker.counts(error)

    def missing_keys(self, headers: Mapping[str, Any], call: Call) -> dict[str, str] | None:
        """Return the keys of a message that does not carry them, else None.

        Raises:
            KeyExpressionFailed: If they cannot be made from its arguments.
        """
        if not self._kinds or read_keys(headers.get(KEYS), self._kinds) is not None:
            return None
        return compute_keys(self._keys, call.args, call.kwargs, self._task.call_signature)

    def fits(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Return whether the function could be called with these arguments."""
        try:
            self._task.check_arguments(args, kwargs)
        except TypeError:
            return False
        return True


def _call_of(app: TaskQ, task: BaseTask[Any, Any], is_async: bool) -> Callable[[Request], Any]:
    function = task.function
    first: tuple[Any, ...] = (task,) if task.spec.bind else ()

    def call(request: Request) -> Any:
        return function(*first, *request.args, **request.kwargs)

    if is_async:

        async def acall(request: Request) -> Any:
            return await function(*first, *request.args, **request.kwargs)

        return compose_arun(app.middlewares, acall)
    return compose_run(app.middlewares, call)


class Registry(Protocol):
    """Where an executor finds runnables."""

    hooks: Hooks
    results: bool
    shown: Callable[[Any], str] | None

    def find(self, name: str) -> Runnable | None:
        """Return the runnable of a task name, or None."""


class AppRegistry:
    """The registry of a `TaskQ` app.

    Attributes:
        hooks: The app's listeners.
        results: Whether records are stored.
        shown: Makes a result's text for events, without secrets; None where none is wanted.
    """

    def __init__(self, app: TaskQ) -> None:
        self.hooks: Hooks = app
        self.results = app.settings.results is not None
        self.shown: Callable[[Any], str] | None = None
        if app.settings.event_results and app.settings.events != "off":
            self.shown = partial(redacted, names=app.settings.redact)
        self._runnables = {name: Runnable(app, task) for name, task in app.tasks.items()}

    def find(self, name: str) -> Runnable | None:
        """Return the runnable of a task name, or None."""
        return self._runnables.get(name)
