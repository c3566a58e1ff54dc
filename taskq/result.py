"""The caller's handle of a task: its state, its value, its failure."""

import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from taskq import outcome
from taskq.errors import (
    DecodeError,
    RemoteError,
    ResultsDisabled,
    ResultTimeout,
    TaskCancelled,
    TaskExpired,
    TaskFailed,
)
from taskq.results.base import Record, ResultStore, decode_record, is_terminal

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

R = TypeVar("R")


class ResultSource(Protocol):
    """What a handle needs of its app."""

    @property
    def results(self) -> ResultStore | None:
        """The results store, or None when results are off."""

    @property
    def get_timeout_s(self) -> float:
        """How long `get` waits when no timeout is given, in seconds."""

    def cancel(self, task_id: str) -> bool:
        """Cancel a task; see `AsyncResult.cancel`."""


class AsyncResult(Generic[R]):
    """Handle of one task call; cheap, and may be made of any id by `app.result(id)`.

    Attributes:
        id: Task id.
        parent: Handle of the chain step before this one, or None.
    """

    __slots__ = ("_app", "id", "parent")

    def __init__(
        self, task_id: str, app: ResultSource, parent: "AsyncResult[Any] | None" = None
    ) -> None:
        self.id = task_id
        self.parent = parent
        self._app = app

    def __repr__(self) -> str:
        return f"<AsyncResult {self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AsyncResult) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def _store(self) -> ResultStore:
        store = self._app.results
        if store is None:
            raise ResultsDisabled(
                "results are off: set `results=` or TASKQ_RESULTS to a redis:// or sqlite:/// URL"
            )
        return store

    def record(self) -> Record | None:
        """Return what is stored of the task, or None for an id never seen.

        Raises:
            ResultsDisabled: If the app has no results store.
            ResultsUnavailable: If the store cannot be reached.
            DecodeError: If the stored bytes are not a record.
        """
        data = self._store().fetch([self.id])[0]
        return None if data is None else decode_record(data)

    @property
    def state(self) -> str:
        """PENDING, RECEIVED, STARTED, RETRY, SUCCESS, FAILURE, CANCELLED, EXPIRED or UNKNOWN."""
        record = self.record()
        return outcome.UNKNOWN if record is None else record.state

    def ready(self) -> bool:
        """Return whether the task has ended, in whichever way."""
        return self.state in outcome.TERMINAL

    def get(self, timeout: float | None = None) -> R:
        """Wait for the task's value.

        Args:
            timeout: Seconds to wait; None for the app's `get_timeout_s`, 0 to look once.

        Raises:
            ResultTimeout: If the task has not ended in time.
            TaskFailed: If it failed; also an instance of the original exception class where that
                class is imported here.
            TaskCancelled: If it was cancelled.
            TaskExpired: If it expired before it started.
            ResultsDisabled: If the app has no results store.
        """
        timeout_s = self._timeout_s(timeout)
        if timeout_s == 0:
            return self._look_once(self._store().fetch([self.id])[0])
        arrived = threading.Event()
        box: list[bytes] = []

        def take(data: bytes) -> None:
            box.append(data)
            arrived.set()

        end = self._store().watch(self.id, take)
        try:
            if not arrived.wait(timeout_s):
                raise ResultTimeout(self.id, timeout_s)
        finally:
            end()
        return self._value(box[0])

    async def aget(self, timeout: float | None = None) -> R:
        """Wait for the task's value without blocking the loop; see `get`."""
        # Imported where it is needed: `import taskq` stays light.
        import asyncio

        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[bytes] = loop.create_future()

        def take(data: bytes) -> None:
            loop.call_soon_threadsafe(_resolve, arrived, data)

        timeout_s = self._timeout_s(timeout)
        if timeout_s == 0:
            found = await asyncio.to_thread(self._store().fetch, [self.id])
            return self._look_once(found[0])
        deadline = time.monotonic() + timeout_s
        end: Callable[[], None] = await asyncio.to_thread(self._store().watch, self.id, take)
        try:
            left_s = max(0.0, deadline - time.monotonic())
            data = await asyncio.wait_for(arrived, left_s or 0.001)
        except TimeoutError:
            raise ResultTimeout(self.id, timeout_s) from None
        finally:
            end()
        return self._value(data)

    def _timeout_s(self, timeout: float | None) -> float:
        if timeout is None:
            return self._app.get_timeout_s
        if timeout < 0 or timeout != timeout:
            raise ValueError(f"timeout is {timeout!r}; use seconds, 0 or more")
        return min(timeout, threading.TIMEOUT_MAX)

    def _look_once(self, data: bytes | None) -> R:
        # Not by a watch: its answer comes from another thread, always later than now.
        if data is None or not is_terminal(data):
            raise ResultTimeout(self.id, 0)
        return self._value(data)

    def _value(self, data: bytes) -> R:
        record = decode_record(data)
        if record.state == outcome.SUCCESS:
            value: R = record.result()
            return value
        if record.state == outcome.CANCELLED:
            raise TaskCancelled(f"task {self.id} was cancelled")
        if record.state == outcome.EXPIRED:
            raise TaskExpired(f"task {self.id} expired before it started")
        if record.error is None:
            raise DecodeError(f"the record of task {self.id} names no error")
        raise failure(self.id, record.error)

    def forget(self) -> None:
        """Delete what is stored of the task; its id is UNKNOWN from then on."""
        self._store().forget([self.id])

    def cancel(self) -> bool:
        """Cancel the task: it never starts, even if no worker is alive now.

        Returns:
            Whether it is cancelled; False when it had ended already or was never seen.

        Raises:
            ResultsDisabled: If the app has no results store to remember it in.
        """
        return self._app.cancel(self.id)


def _resolve(future: "asyncio.Future[bytes]", data: bytes) -> None:
    if not future.done():
        future.set_result(data)


def failure(task_id: str, error: RemoteError) -> TaskFailed:
    """Return the exception for a failed task.

    It is an instance of both `TaskFailed` and the original class, where that class is imported in
    this process. Nothing is imported for it: a stored record must not decide what code runs here,
    and a caller that can name the class in `except` has imported it.
    """
    original = _find_class(error)
    if original is None:
        return TaskFailed(task_id, error)
    try:
        combined: Any = type(
            original.__name__, (TaskFailed, original), {"__module__": error.module}
        )
        raised: TaskFailed = combined.__new__(combined)
        TaskFailed.__init__(raised, task_id, error)
    # Some classes cannot be combined (layout, metaclass, a __new__ that wants arguments).
    except Exception:
        return TaskFailed(task_id, error)
    raised.args = error.args or (error.message,)
    return raised


def _find_class(error: RemoteError) -> type[Exception] | None:
    found: Any = sys.modules.get(error.module)
    for part in error.type.split("."):
        found = getattr(found, part, None)
    # KeyboardInterrupt and SystemExit must not be raised here because a task raised them there.
    if isinstance(found, type) and issubclass(found, Exception):
        return None if issubclass(found, TaskFailed) else found
    return None
