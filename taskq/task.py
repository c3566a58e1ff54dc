"""A declared task: the decorated function with its options, and the ways to send it."""

import inspect
import math
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypedDict, TypeVar

from taskq.brokers.base import check_queue_name
from taskq.canvas import Sender, Signature
from taskq.config import nearest
from taskq.errors import ConfigError, Retry
from taskq.request import Request
from taskq.request import current as current_request
from taskq.result import AsyncResult
from taskq.retry import RetryPolicy

if TYPE_CHECKING:
    from datetime import datetime, timedelta

P = ParamSpec("P")
R = TypeVar("R")


class TaskOptions(TypedDict, total=False):
    """What `@app.task(...)` takes; see `TaskSpec` for the meaning of each."""

    name: str
    queue: str
    max_retries: int
    retry: RetryPolicy
    soft_time_limit: float
    time_limit: float
    priority: int
    serializer: str
    dead_letter: bool
    ignore_result: bool
    result_ttl: int
    expires: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """The options of a task.

    Attributes:
        name: Registered name.
        queue: Queue it is sent to; empty for the app's default.
        bind: Whether the function takes the task itself first.
        max_retries: Retries after the first attempt; None for the app's setting.
        retry: When a failed attempt runs again.
        soft_time_limit: Seconds until SoftTimeLimitExceeded is raised in the task; None for never.
        time_limit: Seconds until it is stopped from outside; None for never.
        priority: 0 (lowest) to 9.
        serializer: `msgpack` or `json`; empty for the app's setting.
        dead_letter: Whether a final failure leaves a dead letter.
        ignore_result: Whether the value is thrown away; the state is kept all the same.
        result_ttl: Seconds to keep the result; None for the app's setting.
        expires: Seconds after sending within which it must start; None for ever.
    """

    name: str
    queue: str = ""
    bind: bool = False
    max_retries: int | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    soft_time_limit: float | None = None
    time_limit: float | None = None
    priority: int = 0
    serializer: str = ""
    dead_letter: bool = True
    ignore_result: bool = False
    result_ttl: int | None = None
    expires: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 0 < len(self.name.encode()) <= 200:
            raise ConfigError(f"task name {self.name!r:.80} is not text of 1 to 200 bytes")
        if self.queue:
            check_queue_name(self.queue)
        if not isinstance(self.retry, RetryPolicy):
            raise ConfigError(f"{self.name}: retry is {self.retry!r}; use a RetryPolicy")
        _whole(self, "max_retries", 0, 10_000)
        _whole(self, "priority", 0, 9)
        _whole(self, "result_ttl", 1, 10**9)
        for name in ("soft_time_limit", "time_limit", "expires"):
            _positive(self, name)
        soft, hard = self.soft_time_limit, self.time_limit
        if soft is not None and hard is not None and soft >= hard:
            raise ConfigError(
                f"{self.name}: soft_time_limit {soft:g} must be below time_limit {hard:g}"
            )
        if self.serializer not in ("", "msgpack", "json"):
            raise ConfigError(f"{self.name}: serializer {self.serializer!r}: 'msgpack' or 'json'")


def _whole(spec: TaskSpec, name: str, low: int, high: int) -> None:
    value = getattr(spec, name)
    if value is None and name != "priority":
        return
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(f"{spec.name}: {name} is {value!r}; use a whole number {low} to {high}")


def _positive(spec: TaskSpec, name: str) -> None:
    value = getattr(spec, name)
    if value is None:
        return
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not 0 < value < math.inf:
        raise ConfigError(f"{spec.name}: {name} is {value!r}; use seconds above 0")


_OPTION_NAMES = tuple(item.name for item in fields(TaskSpec))


def default_name(function: Callable[..., Any]) -> str:
    """Return `<module>.<function>`; under `__main__` the file's stem stands for the module."""
    module = function.__module__
    if module == "__main__":
        path = getattr(sys.modules["__main__"], "__file__", None)
        module = Path(path).stem if path else "__main__"
    return f"{module}.{function.__qualname__}"


def make_spec(function: Callable[..., Any], options: Mapping[str, Any]) -> TaskSpec:
    """Return the checked options of a task.

    Raises:
        ConfigError: For an unknown option or an unusable value.
    """
    if not callable(function):
        raise ConfigError(f"@task decorates functions, not {function!r:.60}")
    for name in options:
        if name not in _OPTION_NAMES:
            raise ConfigError(f"unknown task option {name!r}{nearest(name, _OPTION_NAMES)}")
    given = {name: value for name, value in options.items() if value is not None}
    return TaskSpec(**{"name": default_name(function), **given})


class BaseTask(Generic[P, R]):
    """What plain and `async def` tasks share; made by `@app.task`, never directly.

    Attributes:
        function: The decorated function.
        spec: Its options.
        name: Its registered name.
        defaults: The options that a send of it starts from.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        spec: TaskSpec,
        find_app: Callable[[], Sender],
    ) -> None:
        self.function = function
        self.spec = spec
        self.name = spec.name
        self.__doc__ = function.__doc__
        self.__module__ = function.__module__
        self.__name__ = getattr(function, "__name__", spec.name)
        self.__qualname__ = getattr(function, "__qualname__", spec.name)
        self.__wrapped__ = function
        self.defaults: Mapping[str, Any] = {
            "queue": spec.queue,
            "priority": spec.priority,
            "serializer": spec.serializer or None,
            "expires": spec.expires,
        }
        self._find_app = find_app
        self._signature: inspect.Signature | None = None

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    @property
    def is_async(self) -> bool:
        """Whether the function is a coroutine function."""
        return inspect.iscoroutinefunction(self.function)

    @property
    def request(self) -> Request:
        """The call being run in this context; an empty one with `called_directly` in place."""
        return current_request.get() or Request(task=self.name, called_directly=True)

    def check_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Hold arguments against the function's signature.

        Raises:
            TypeError: If the function could not be called with them.
        """
        signature = self._signature
        if signature is None:
            signature = self._signature = inspect.signature(self.function)
        try:
            if self.spec.bind:
                signature.bind(self, *args, **kwargs)
            else:
                signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.name}(): {error}") from None

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """Send the task with these arguments.

        Returns:
            The handle, once the broker has confirmed the message.

        Raises:
            TypeError: If the function could not be called with them.
            EncodeError: If an argument has no form on the wire.
            PublishError: If the broker did not confirm in time.
        """
        return self._find_app().send([Signature(self.name, args, kwargs)])[0]

    async def adelay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """Send the task without blocking the loop; see `delay`."""
        return (await self._find_app().asend([Signature(self.name, args, kwargs)]))[0]

    def apply_async(
        self,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        countdown: float | None = None,
        eta: "datetime | None" = None,
        expires: "float | datetime | timedelta | None" = None,
        queue: str | None = None,
        priority: int | None = None,
        task_id: str | None = None,
        headers: Mapping[str, Any] | None = None,
        serializer: str | None = None,
        time_limit: int | None = None,
        soft_time_limit: int | None = None,
        ignore_result: bool | None = None,
        link: "Signature[Any] | Sequence[Signature[Any]] | None" = None,
        link_error: "Signature[Any] | Sequence[Signature[Any]] | None" = None,
    ) -> AsyncResult[R]:
        """Send the task with options.

        Args:
            args: Positional arguments.
            kwargs: Keyword arguments.
            countdown: Start not before so many seconds from now, up to 366 days.
            eta: Start not before this moment; an aware datetime.
            expires: Seconds or moment by which it must have started.
            queue: Queue that replaces the task's own.
            priority: 0 (lowest) to 9.
            task_id: Id to use; sending one id twice has one outcome.
            headers: Custom headers, seen as `self.request.headers`.
            serializer: `msgpack` or `json`.
            time_limit: Hard limit of this call in whole seconds.
            soft_time_limit: Soft limit of this call in whole seconds.
            ignore_result: Whether the value is thrown away.
            link: Signatures sent with the value after success.
            link_error: Signatures sent with the task's id after a final failure.

        Raises:
            ConfigError: For an unusable option.
            TypeError: If the function could not be called with the arguments.
            EncodeError: If an argument has no form on the wire.
            PublishError: If the broker did not confirm in time.
        """
        options = {
            "countdown": countdown,
            "eta": eta,
            "expires": expires,
            "queue": queue,
            "priority": priority,
            "task_id": task_id,
            "headers": headers,
            "serializer": serializer,
            "time_limit": time_limit,
            "soft_time_limit": soft_time_limit,
            "ignore_result": ignore_result,
            "link": link,
            "link_error": link_error,
        }
        call: Signature[R] = Signature(self.name, tuple(args), dict(kwargs or {}), options)
        return self._find_app().send([call])[0]

    def s(self, *args: Any, **kwargs: Any) -> Signature[R]:
        """Return the call as data; in a chain the previous value is put before the arguments."""
        return Signature(self.name, args, kwargs, app=self._find_app())

    def si(self, *args: Any, **kwargs: Any) -> Signature[R]:
        """Return the call as data that ignores the previous value of a chain."""
        return Signature(self.name, args, kwargs, immutable=True, app=self._find_app())

    def retry(
        self,
        exc: BaseException | None = None,
        *,
        countdown: float | None = None,
        max_retries: int | None = None,
    ) -> Retry:
        """Return the exception that asks for another attempt: `raise self.retry(countdown=5)`.

        Args:
            exc: Why; the exception being handled by default.
            countdown: Seconds to wait; the retry policy's by default.
            max_retries: Bound that replaces the task's own.

        Raises:
            ConfigError: If `countdown` or `max_retries` is not usable.
        """
        if countdown is not None and not 0 <= countdown <= 366 * 86400:
            raise ConfigError(f"countdown is {countdown!r}; use 0 to 366 days in seconds")
        if max_retries is not None and max_retries < 0:
            raise ConfigError(f"max_retries is {max_retries!r}; use 0 or more")
        return Retry(countdown, exc if exc is not None else sys.exception(), max_retries)


class Task(BaseTask[P, R]):
    """A task made of a plain function; calling it runs the function in place."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here and now, without any broker."""
        value: R
        value = (
            self.function(self, *args, **kwargs)
            if self.spec.bind
            else self.function(*args, **kwargs)
        )
        return value


class AsyncTask(BaseTask[P, R]):
    """A task made of an `async def` function; calling it returns the coroutine."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Return the function's coroutine, to be awaited here."""
        made: Coroutine[Any, Any, R]
        made = (
            self.function(self, *args, **kwargs)
            if self.spec.bind
            else self.function(*args, **kwargs)
        )
        return made


def make_task(
    function: Callable[..., Any], options: Mapping[str, Any], find_app: Callable[[], Sender]
) -> BaseTask[Any, Any]:
    """Return the task of a function.

    Raises:
        ConfigError: For an unknown option or an unusable value.
    """
    kind = AsyncTask if inspect.iscoroutinefunction(function) else Task
    return kind(function, make_spec(function, options), find_app)
