"""The app that is current, and the tasks that belong to whichever app that is."""

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, Unpack, overload

from taskq.declare import Declare, DeclareBound, register
from taskq.errors import ConfigError
from taskq.spec import TaskOptions
from taskq.task import AsyncTask, BaseTask, Task, make_task

if TYPE_CHECKING:
    from taskq.app import TaskQ

P = ParamSpec("P")
R = TypeVar("R")

shared_tasks: dict[str, BaseTask[Any, Any]] = {}
"""Tasks of the module-level `@task`, by name."""
_current: "TaskQ | None" = None


def make_current(app: "TaskQ") -> None:
    """Make an app the one that `current_app` returns."""
    global _current
    _current = app


def current_app() -> "TaskQ":
    """Return the app that was made last.

    Raises:
        ConfigError: If there is none yet.
    """
    if _current is None:
        raise ConfigError("no app exists yet; make one: app = TaskQ('name')")
    return _current


@overload
def task(  # type: ignore[overload-overlap]
    function: Callable[P, Coroutine[Any, Any, R]], /
) -> AsyncTask[P, R]: ...


@overload
def task(function: Callable[P, R], /) -> Task[P, R]: ...


@overload
def task(*, bind: Literal[True], **options: Unpack[TaskOptions]) -> DeclareBound: ...


@overload
def task(*, bind: Literal[False] = False, **options: Unpack[TaskOptions]) -> Declare: ...


def task(function: Any = None, /, **options: Any) -> Any:
    """Declare a task that belongs to whichever app is current when it is used.

    Libraries declare tasks with it, without an app at hand. Options are `TaskQ.task`'s.

    Raises:
        ConfigError: For an unknown option, an unusable value, or a name that is taken.
    """

    def declare(decorated: Callable[..., Any]) -> BaseTask[Any, Any]:
        return register(shared_tasks, make_task(decorated, options, current_app))

    return declare if function is None else declare(function)
