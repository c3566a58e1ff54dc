"""A declared task: the decorated function with its options, and the ways to send it."""

import inspect
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from taskq.canvas import Sender, Signature
from taskq.errors import ConfigError, Retry
from taskq.request import Request
from taskq.request import current as current_request
from taskq.result import AsyncResult
from taskq.spec import TaskSpec, make_spec
from taskq.steering import Steering
from taskq.timelimits import DECLARED

if TYPE_CHECKING:
    from datetime import datetime, timedelta

P = ParamSpec("P")
R = TypeVar("R")


class BaseTask(Steering, Generic[P, R]):
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
            "deadline": spec.deadline,
            DECLARED: (spec.time_limit, spec.soft_time_limit),
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

    @property
    def call_signature(self) -> inspect.Signature:
        """The function's signature as callers see it: without the task of a bound one."""
        whole = inspect.signature(self.function)
        if not self.spec.bind:
            return whole
        return whole.replace(parameters=list(whole.parameters.values())[1:])

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
        deadline: "float | datetime | timedelta | None" = None,
        queue: str | None = None,
        priority: int | None = None,
        task_id: str | None = None,
        headers: Mapping[str, Any] | None = None,
        serializer: str | None = None,
        time_limit: int | None = None,
        soft_time_limit: int | None = None,
        ignore_result: bool | None = None,
        idempotency_key: str | int | None = None,
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
            deadline: Seconds or moment by which it must have ended, with everything it sends.
            queue: Queue that replaces the task's own.
            priority: 0 (lowest) to 9.
            task_id: Id to use; sending one id twice has one outcome.
            headers: Custom headers, seen as `self.request.headers`.
            serializer: `msgpack` or `json`.
            time_limit: Hard limit of this call in whole seconds.
            soft_time_limit: Soft limit of this call in whole seconds.
            ignore_result: Whether the value is thrown away.
            idempotency_key: At most one run succeeds of all calls of this task with this key.
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
            "deadline": deadline,
            "queue": queue,
            "priority": priority,
            "task_id": task_id,
            "headers": headers,
            "serializer": serializer,
            "time_limit": time_limit,
            "soft_time_limit": soft_time_limit,
            "ignore_result": ignore_result,
            "idempotency_key": idempotency_key,
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

    def once(self, connection: Any, effect: str = "") -> bool:
        """Mark in your own SQL transaction that this task's effect happens in it.

        Commit marker and effect together, and leave the effect out when this returns False::

            with sqlite3.connect("shop.db") as db:
                if self.once(db):
                    db.execute("UPDATE accounts SET ...")

        The marker is a row of the table `taskq_once`, under the task's id, which retries and
        redeliveries keep.

        Args:
            connection: A `sqlite3.Connection`, or SQLAlchemy's `Connection` or `Session`.
            effect: A name where one task has several effects.

        Returns:
            True when the effect has not happened; in place, without a worker, always.

        Raises:
            ConfigError: If the connection is of another kind, or commits by itself.
        """
        request = self.request
        if request.called_directly:
            return True
        from taskq.flow.once import mark

        return mark(connection, f"{request.id}/{effect}" if effect else request.id)

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
