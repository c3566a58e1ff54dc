"""Middleware: wrap the sending and the running of every task with the next callable.

Override what you need. `send` and `run` are plain methods; `arun` is the coroutine form of `run`
for `async def` tasks. A middleware that has only one of the two forms is used for both kinds of
task: `run` around a coroutine moves to a thread, `arun` around a function to a loop on another
thread, while the function stays on its own.
"""

import importlib
from collections.abc import Awaitable, Callable, Sequence
from types import ModuleType
from typing import Any

from taskq.brokers.base import Outgoing
from taskq.request import Request

SendNext = Callable[[Outgoing], Outgoing]
RunNext = Callable[[Request], Any]
AsyncRunNext = Callable[[Request], Awaitable[Any]]


class Middleware:
    """Base class; every method passes on as it is."""

    def send(self, call_next: SendNext, outgoing: Outgoing) -> Outgoing:
        """Wrap a send in the client, before the message leaves.

        Args:
            call_next: Continues with the message it is given.
            outgoing: Message, queue and due time; immutable, pass on a changed copy.

        Returns:
            What is sent. Raising keeps the message from being sent.
        """
        return call_next(outgoing)

    def run(self, call_next: RunNext, request: Request) -> Any:
        """Wrap a run in the executor, around the user's function.

        Args:
            call_next: Runs the task and returns its value or raises its exception.
            request: The call.

        Returns:
            The task's result, which may be another than `call_next` gave.
        """
        return call_next(request)

    async def arun(self, call_next: AsyncRunNext, request: Request) -> Any:
        """Wrap the run of an `async def` task; see `run`."""
        return await call_next(request)


def compose_send(middlewares: Sequence[Middleware], last: SendNext) -> SendNext:
    """Return one callable that passes a message through all, the first outermost."""
    for middleware in reversed(middlewares):
        if type(middleware).send is not Middleware.send:
            last = _bind(middleware.send, last)
    return last


def compose_run(middlewares: Sequence[Middleware], last: RunNext) -> RunNext:
    """Return one callable that runs a plain function under all middlewares."""
    for middleware in reversed(middlewares):
        kind = type(middleware)
        if kind.run is not Middleware.run:
            last = _bind(middleware.run, last)
        elif kind.arun is not Middleware.arun:
            last = _mixed().around_function(middleware.arun, last)
    return last


def compose_arun(middlewares: Sequence[Middleware], last: AsyncRunNext) -> AsyncRunNext:
    """Return one coroutine function that runs an `async def` task under all middlewares."""
    for middleware in reversed(middlewares):
        kind = type(middleware)
        if kind.arun is not Middleware.arun:
            last = _bind(middleware.arun, last)
        elif kind.run is not Middleware.run:
            last = _mixed().around_coroutine(middleware.run, last)
    return last


def _bind(method: Callable[..., Any], call_next: Callable[..., Any]) -> Callable[..., Any]:
    def call(value: Any) -> Any:
        return method(call_next, value)

    return call


def _mixed() -> ModuleType:
    # Imported where it is needed: `import taskq` stays light, and asyncio is not.
    return importlib.import_module("taskq.middleware_mixed")
