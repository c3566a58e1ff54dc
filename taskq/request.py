"""What a running task can know of its own call."""

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from taskq import clock
from taskq.message import DEADLINE


def _nowhere(*_: Any) -> None:
    """Stand in for the line of a run that has none."""


@dataclass(slots=True)
class Run:
    """The line between a running task and its executor; one for each slot, used again.

    Attributes:
        tag: Number of the running task.
        cancelled: Tags that were cancelled; the executor's, shared by all its runs.
        beat: Tells the hub that the run makes progress.
        send: Sends a frame to the hub.
        said: When a run said last how far it is, on the monotonic clock, and that run's tag.
    """

    tag: int
    cancelled: set[int]
    beat: Callable[[], None]
    send: Callable[..., None] = _nowhere
    said: tuple[float, int] = (0.0, 0)


@dataclass(slots=True)
class Request:
    """The call being run: `self.request` of a bound task.

    Attributes:
        id: Task id; empty when the function was called in place.
        task: Registered name.
        queue: Queue the message came from.
        args: Positional arguments.
        kwargs: Keyword arguments.
        retries: Attempts spent before this one; 0 on the first.
        max_retries: Bound of retries.
        root_id: First task of the workflow.
        parent_id: Task that sent this one, or None.
        headers: Headers of the message, custom ones included.
        priority: 0 to 9.
        redelivered: Whether the broker may have delivered it before.
        worker: Name of the worker; empty in place.
        called_directly: Whether no worker is involved.
        run: The line to the executor; None in place.
    """

    id: str = ""
    task: str = ""
    queue: str = ""
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    retries: int = 0
    max_retries: int = 0
    root_id: str = ""
    parent_id: str | None = None
    headers: Mapping[str, Any] = field(default_factory=dict)
    priority: int = 0
    redelivered: bool = False
    worker: str = ""
    called_directly: bool = False
    run: Run | None = field(default=None, repr=False, compare=False)

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the call's deadline, negative when it passed; None without one."""
        deadline_ms = self.headers.get(DEADLINE)
        return (deadline_ms - clock.now_ms()) / 1000 if isinstance(deadline_ms, int) else None


current: ContextVar[Request | None] = ContextVar("taskq_request", default=None)
"""The request of the task that runs in this context, or None outside of tasks."""
