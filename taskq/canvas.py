"""Calls as data: signatures and chains, and what follows a task that ended.

A signature's wire form is Celery's. In an embed the remaining steps of a chain stand in reverse
order, the next one last; every step's id is allocated when the chain is sent, so that the handle of
the last step exists from the start.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

from taskq.body import Embed, encode_call
from taskq.brokers.base import Outgoing
from taskq.errors import ConfigError, DecodeError
from taskq.ids import new_id
from taskq.message import DEADLINE, Message
from taskq.result import AsyncResult
from taskq.timelimits import carried_limits

R = TypeVar("R")


class Sender(Protocol):
    """What a signature needs of its app."""

    def send(self, calls: "Sequence[Signature[Any] | Chain]") -> list[AsyncResult[Any]]:
        """Send calls and return their handles in order."""

    async def asend(self, calls: "Sequence[Signature[Any] | Chain]") -> list[AsyncResult[Any]]:
        """Do what `send` does without blocking the loop."""


@dataclass(frozen=True)
class Signature(Generic[R]):
    """One call as data; made by `task.s(...)` and `task.si(...)`.

    Attributes:
        task: Registered name.
        args: Positional arguments; in a chain the previous value is put before them.
        kwargs: Keyword arguments.
        options: What `apply_async` takes besides the arguments.
        immutable: Whether the previous value of a chain is left out.
        app: Who sends it.
    """

    task: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    immutable: bool = False
    app: Sender | None = field(default=None, compare=False, repr=False)

    def set(self, **options: Any) -> "Signature[R]":
        """Return a copy with further options, such as `queue` or `countdown`."""
        return replace(self, options={**self.options, **options})

    def delay(self, *args: Any, **kwargs: Any) -> AsyncResult[R]:
        """Send the call; arguments given here come before and over its own."""
        return self.apply_async(args, kwargs)

    def apply_async(
        self,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> AsyncResult[R]:
        """Send the call with options; see `Task.apply_async`."""
        return _sender(self.app).send([self.merged(args, kwargs or {}, options)])[0]

    def merged(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> "Signature[R]":
        """Return a copy with arguments put before, and keywords and options put over its own."""
        if self.immutable:
            return replace(self, options={**self.options, **options})
        return replace(
            self,
            args=(*args, *self.args),
            kwargs={**self.kwargs, **kwargs},
            options={**self.options, **options},
        )

    def __or__(self, other: "Signature[Any] | Chain") -> "Chain":
        return chain(self, other)

    def to_wire(self) -> dict[str, Any]:
        """Return Celery's map of this signature."""
        return {
            "task": self.task,
            "args": list(self.args),
            "kwargs": dict(self.kwargs),
            "options": dict(self.options),
            "subtask_type": None,
            "immutable": self.immutable,
        }

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> "Signature[Any]":
        """Read Celery's map of a signature.

        Raises:
            DecodeError: If a part has a wrong type.
        """
        args, kwargs, options = (
            wire.get("args") or [],
            wire.get("kwargs") or {},
            wire.get("options") or {},
        )
        task = wire.get("task")
        if (
            not isinstance(task, str)
            or not isinstance(args, list | tuple)
            or not isinstance(kwargs, dict)
            or not isinstance(options, dict)
        ):
            raise DecodeError(f"not a signature: {wire!r:.100}")
        return cls(task, tuple(args), kwargs, options, bool(wire.get("immutable")))


@dataclass(frozen=True)
class Chain:
    """Calls that run one after the other, each with the value of the one before.

    Attributes:
        steps: At least one signature.
    """

    steps: tuple[Signature[Any], ...]

    def __iter__(self) -> Iterator[Signature[Any]]:
        return iter(self.steps)

    def __or__(self, other: "Signature[Any] | Chain") -> "Chain":
        return chain(self, other)

    def delay(self, *args: Any, **kwargs: Any) -> AsyncResult[Any]:
        """Send the chain; arguments go to its first step. Returns the last step's handle."""
        return self.apply_async(args, kwargs)

    def apply_async(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult[Any]:
        """Send the chain; arguments and options go to its first step.

        Returns:
            The handle of the last step; `.parent` leads to the steps before.
        """
        first = self.steps[0].merged(args, kwargs or {}, options)
        whole = Chain((first, *self.steps[1:]))
        return _sender(first.app).send([whole])[0]


def _sender(app: Sender | None) -> Sender:
    if app is None:
        raise ConfigError("this signature belongs to no app; make it with task.s(), or app.send()")
    return app


def chain(*calls: Signature[Any] | Chain) -> Chain:
    """Return the chain of these calls, in order; chains among them are joined in.

    Raises:
        ConfigError: If there is no call, or one is not a signature.
    """
    steps: list[Signature[Any]] = []
    for call in calls:
        if isinstance(call, Chain):
            steps.extend(call.steps)
        elif isinstance(call, Signature):
            steps.append(call)
        else:
            raise ConfigError(f"a chain is made of signatures such as task.s(1), not {call!r:.60}")
    if not steps:
        raise ConfigError("a chain needs at least one call")
    return Chain(tuple(steps))


def next_outgoing(
    message: Message, embed: Embed, value: Any, queue: str, root_id: str
) -> list[Outgoing]:
    """Return what a successful task sends on: its callbacks and the next step of its chain.

    Args:
        message: The message that was run; the next step keeps its serializer and priority.
        embed: What follows it.
        value: What it returned.
        queue: Where steps go that name no queue.
        root_id: First task of the workflow.

    Raises:
        EncodeError: If the value cannot be passed on.
        DecodeError: If a signature cannot be read.
    """
    found = [
        _step(message, Signature.from_wire(wire), value, queue, root_id, Embed())
        for wire in embed.callbacks
    ]
    if embed.chain:
        rest = Embed(chain=tuple(embed.chain[:-1]))
        step = Signature.from_wire(embed.chain[-1])
        found.append(_step(message, step, value, queue, root_id, rest))
    return found


def errback_outgoing(message: Message, embed: Embed, queue: str, root_id: str) -> list[Outgoing]:
    """Return the errbacks of a failed task, each with the failed task's id put first.

    They have all the time they need: what is left of the task's own may be nothing.
    """
    if embed.errbacks:
        message = message.with_headers(taskq_deadline=None)
    return [
        _step(message, Signature.from_wire(wire), message.id, queue, root_id, Embed())
        for wire in embed.errbacks
    ]


def step_ids(embed: Embed) -> list[str]:
    """Return the ids of the chain steps that will not run when this task fails, next first."""
    ids = [(wire.get("options") or {}).get("task_id") for wire in reversed(embed.chain)]
    return [task_id for task_id in ids if isinstance(task_id, str) and task_id]


def _step(
    message: Message, step: Signature[Any], value: Any, queue: str, root_id: str, rest: Embed
) -> Outgoing:
    options = step.options
    args = step.args if step.immutable else (value, *step.args)
    own_links = Embed(
        callbacks=_wires(options.get("link")),
        errbacks=_wires(options.get("link_error")),
        chain=rest.chain,
    )
    task_id = options.get("task_id")
    priority = options.get("priority")
    headers = {**(options.get("headers") or {}), "parent_id": message.id}
    headers["root_id"] = root_id or message.id
    headers["timelimit"] = carried_limits(options)
    deadline_ms = message.headers.get(DEADLINE)
    if isinstance(deadline_ms, int):
        headers[DEADLINE] = deadline_ms
    sent = encode_call(
        step.task,
        task_id if isinstance(task_id, str) and task_id else new_id(),
        args,
        step.kwargs,
        embed=own_links,
        serializer="json" if message.content_type.endswith("json") else "msgpack",
        priority=priority if isinstance(priority, int) else message.priority,
        headers=headers,
    )
    return Outgoing(str(options.get("queue") or queue), sent)


def _wires(links: Any) -> tuple[dict[str, Any], ...]:
    if not links:
        return ()
    items = links if isinstance(links, list | tuple) else (links,)
    return tuple(item.to_wire() if isinstance(item, Signature) else dict(item) for item in items)
