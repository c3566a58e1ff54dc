"""The types of the task decorators, and how a declared task enters a registry.

The first overload of each pair overlaps the second by design: an `async def` function is also a
plain callable, and type checkers take the first that fits.
"""

import os
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from taskq.errors import ConfigError
from taskq.task import AsyncTask, BaseTask, Task

P = ParamSpec("P")
R = TypeVar("R")


class Declare(Protocol):
    """The decorator that `@app.task(...)` returns."""

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...

    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


class DeclareBound(Protocol):
    """The decorator that `@app.task(bind=True, ...)` returns."""

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...

    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> Task[P, R]: ...


def _same_source(first: BaseTask[Any, Any], second: BaseTask[Any, Any]) -> bool:
    """Whether two tasks are one function imported twice, as `__main__` and by its name."""
    codes = [getattr(task.function, "__code__", None) for task in (first, second)]
    places = [code and (os.path.abspath(code.co_filename), code.co_firstlineno) for code in codes]
    return places[0] is not None and places[0] == places[1]


def register(
    registry: dict[str, BaseTask[Any, Any]], task: BaseTask[Any, Any]
) -> BaseTask[Any, Any]:
    """Add a task to a registry and return it.

    Raises:
        ConfigError: If the name is taken by another function.
    """
    known = registry.get(task.name)
    if known is not None and not _same_source(known, task):
        raise ConfigError(
            f"task {task.name!r} is registered twice: {known.function.__module__} and "
            f"{task.function.__module__}; give one of them another name="
        )
    registry[task.name] = task
    return task
