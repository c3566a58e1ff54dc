"""Every exception of taskq, below one root.

::

    TaskqError
    ├── ConfigError                 a setting, URL, name or declaration is wrong
    │   ├── TopologyMismatch        a broker object exists with other arguments
    │   └── ShardsChanged           a queue has another number of shards on the broker
    ├── BrokerError
    │   ├── BrokerUnavailable       the broker cannot be reached
    │   └── PublishError            a send was not confirmed in time
    ├── AlreadyQueued               a task of that unique key is queued or running
    ├── KeyExpressionFailed         a key cannot be made from a call's arguments
    ├── EncodeError                 a value cannot be written to the wire
    ├── DecodeError                 a message or record cannot be read
    ├── ResultError
    │   ├── ResultTimeout           no result arrived in time
    │   ├── ResultsDisabled         no results store is configured
    │   ├── ResultsUnavailable      the results store cannot be reached
    │   ├── TaskFailed              the task ended in FAILURE
    │   ├── TaskCancelled           the task was cancelled
    │   └── TaskExpired             the task expired before it started
    ├── SoftTimeLimitExceeded       raised inside a task at its soft limit
    ├── TimeLimitExceeded           the task passed its hard limit
    ├── WorkerLost                  the process running the task died
    └── Control                     raised by a task to steer its own outcome
        ├── Retry
        ├── Reject
        └── Ignore
"""

from collections.abc import Sequence
from dataclasses import dataclass


class TaskqError(Exception):
    """Root of all exceptions of taskq."""


class ConfigError(TaskqError):
    """A setting, URL, name or declaration is wrong; the message says what to change."""


class TopologyMismatch(ConfigError):
    """A broker object exists with other arguments than taskq declares."""


class ShardsChanged(ConfigError):
    """A queue has another number of shards on the broker than the app declares."""


class BrokerError(TaskqError):
    """The broker refused or failed."""


class BrokerUnavailable(BrokerError):
    """The broker cannot be reached."""


class PublishError(BrokerError):
    """A send was not confirmed: unroutable, refused, blocked, down, or too late.

    "Not confirmed" is not "not sent": sending again with the same `task_id` is safe.

    Attributes:
        task_id: Id of the message that was not confirmed.
        reason: `unroutable`, `nacked`, `blocked`, `unavailable`, `timeout`, `refused`, or `denied`
            (wrong credentials, no such vhost).
        failed_ids: Ids of all messages of the same batch that were not confirmed.
    """

    def __init__(self, task_id: str, reason: str, detail: str) -> None:
        super().__init__(
            f"task {task_id} was not confirmed ({reason}): {detail}; "
            "sending it again with the same task_id is safe"
        )
        self.task_id = task_id
        self.reason = reason
        self.detail = detail
        self.failed_ids: list[str] = [task_id]

    def __reduce__(self) -> tuple[type["PublishError"], tuple[str, str, str]]:
        return type(self), (self.task_id, self.reason, self.detail)


class AlreadyQueued(TaskqError):
    """A task of the same unique key is queued or running, so this one was not sent.

    Attributes:
        task: Name of the task.
        task_id: Id of the one that is there already.
    """

    def __init__(self, task: str, task_id: str) -> None:
        super().__init__(f"{task} is queued or running already, as {task_id}")
        self.task = task
        self.task_id = task_id

    def __reduce__(self) -> tuple[type["AlreadyQueued"], tuple[str, str]]:
        return type(self), (self.task, self.task_id)


class KeyExpressionFailed(TaskqError):
    """A key cannot be made from the arguments of a call.

    Attributes:
        expression: The expression, or the callable's name.
        problem: What went wrong.
    """

    def __init__(self, expression: str, problem: object) -> None:
        kind = type(problem).__name__ if isinstance(problem, Exception) else ""
        text = f"{kind}: {problem}" if kind else str(problem)
        super().__init__(f"no key from {expression!r} with these arguments: {text}")
        self.expression = expression
        self.problem = text

    def __reduce__(self) -> tuple[type["KeyExpressionFailed"], tuple[str, str]]:
        return type(self), (self.expression, self.problem)


class EncodeError(TaskqError):
    """A value cannot be written to the wire."""


class DecodeError(TaskqError):
    """A message or a stored record cannot be read."""


class ResultError(TaskqError):
    """A result cannot be given."""


class ResultTimeout(ResultError):
    """No result arrived in time. The task may still be running.

    Attributes:
        task_id: The task waited for.
        timeout_s: How long was waited, in seconds.
    """

    def __init__(self, task_id: str, timeout_s: float) -> None:
        super().__init__(f"no result for {task_id} after {timeout_s:g} s; is a worker running?")
        self.task_id = task_id
        self.timeout_s = timeout_s

    def __reduce__(self) -> tuple[type["ResultTimeout"], tuple[str, float]]:
        return type(self), (self.task_id, self.timeout_s)


class ResultsDisabled(ResultError):
    """No results store is configured; set `results=` or TASKQ_RESULTS."""


class ResultsUnavailable(ResultError):
    """The results store cannot be reached."""


@dataclass(frozen=True, slots=True)
class RemoteError:
    """An exception as data: what is stored of a failure, never a pickle.

    Attributes:
        module: Module of the exception's class, such as `builtins`.
        type: Qualified name of the class, such as `ValueError`.
        message: `str()` of the exception.
        args: Its arguments where all are plain (str, int, float, bool, None), else empty.
        traceback: The formatted traceback, at most its last 8 KiB.
        causes: The chain of `__cause__` or `__context__`, nearest first, without tracebacks.
    """

    module: str
    type: str
    message: str
    args: tuple[str | int | float | bool | None, ...] = ()
    traceback: str = ""
    causes: tuple["RemoteError", ...] = ()


class TaskFailed(ResultError):
    """The task ended in FAILURE.

    What `AsyncResult.get` raises is also an instance of the original exception class where that
    class can be imported, so `except ValueError` works across processes.

    Attributes:
        task_id: The task that failed.
        error: The remote exception as data.
    """

    def __init__(self, task_id: str, error: RemoteError) -> None:
        # Not super(): in a combined class the next in line is the original exception, whose own
        # __init__ may want other arguments, or would take this text for one of them.
        Exception.__init__(self, f"task {task_id} failed: {error.type}: {error.message}")
        self.task_id = task_id
        self.error = error

    def __str__(self) -> str:
        # Said again here: a combined class may inherit __str__ from the original exception
        # (KeyError shows only its key's repr).
        return f"task {self.task_id} failed: {self.error.type}: {self.error.message}"

    @property
    def remote_type(self) -> str:
        """Qualified name of the remote exception's class."""
        return self.error.type

    @property
    def remote_message(self) -> str:
        """What `str()` of the remote exception gave."""
        return self.error.message

    @property
    def traceback(self) -> str:
        """The remote traceback as text, at most its last 8 KiB."""
        return self.error.traceback

    @property
    def causes(self) -> Sequence[RemoteError]:
        """The remote exception's chained causes, nearest first."""
        return self.error.causes


class TaskCancelled(ResultError):
    """The task was cancelled."""


class TaskExpired(ResultError):
    """The task expired before it started."""


class SoftTimeLimitExceeded(TaskqError):
    """Raised inside a task that passed its soft time limit, so that it can clean up."""


class TimeLimitExceeded(TaskqError):
    """The task passed its hard time limit and was stopped from outside."""


class WorkerLost(TaskqError):
    """The process that ran the task died: killed, out of memory, or crashed."""


class Control(TaskqError):
    """Raised by a task to steer its own outcome; not a failure."""


class Retry(Control):
    """The task asks to be run again. Made by `self.retry()`.

    Attributes:
        countdown_s: Seconds to wait, or None for the task's retry policy.
        cause: The exception that led to the retry, or None.
        max_retries: Bound that replaces the task's own for this call, or None.
    """

    def __init__(
        self,
        countdown_s: float | None = None,
        cause: BaseException | None = None,
        max_retries: int | None = None,
    ) -> None:
        super().__init__("the task asked for a retry")
        self.countdown_s = countdown_s
        self.cause = cause
        self.max_retries = max_retries


class Reject(Control):
    """The task refuses its message: to the dead letters, or back to its queue.

    Attributes:
        reason: Free text for the dead letter.
        requeue: Whether the message goes back to its queue, at once and without an attempt spent.
    """

    def __init__(self, reason: str = "", requeue: bool = False) -> None:
        super().__init__(reason or "the task rejected its message")
        self.reason = reason
        self.requeue = requeue


class Ignore(Control):
    """The task ends without a result: its message is acknowledged and no state is stored."""
