"""Changing what a dead letter calls, and where."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from taskq.body import Call, encode_call
from taskq.brokers.shapes import check_queue_name
from taskq.dead.letter import DeadLetter
from taskq.errors import ConfigError, DecodeError
from taskq.message import DEAD_PREFIX, Message

_STALE = ("compression", "argsrepr", "kwargsrepr")
"""Headers of Celery's that describe the body that is replaced."""


class Known(Protocol):
    """A task that the app knows; `taskq.task.BaseTask` is one."""

    function: Any

    def check_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise TypeError if the function could not be called with them."""


@dataclass(frozen=True, slots=True)
class Edit:
    """What is changed; None, or an empty text, stays as it is.

    Attributes:
        args: All positional arguments.
        kwargs: All keyword arguments.
        queue: Queue it is sent to.
    """

    args: list[Any] | None = None
    kwargs: dict[str, Any] | None = None
    queue: str = ""

    def apply(self, letter: DeadLetter, tasks: Mapping[str, Known] | None = None) -> Message:
        """Return the letter's message, changed; still a dead letter.

        Args:
            letter: The letter.
            tasks: What the app declares; arguments are held against the task's signature.

        Raises:
            ConfigError: If the letter cannot be changed so.
            TypeError: If the task could not be called with these arguments.
            EncodeError: If an argument has no form on the wire.
        """
        message = letter.message
        if self.queue:
            check_queue_name(self.queue)
            headers = {**message.headers, f"{DEAD_PREFIX}queue": self.queue}
            message = message._replace(headers=headers)
        if self.args is None and self.kwargs is None:
            return message
        if not letter.message.task or not letter.message.id:
            raise ConfigError(f"letter {letter.id} names no task, so it has no arguments to edit")
        call = self._call(letter)
        known = (tasks or {}).get(letter.task)
        if known is not None:
            known.check_arguments(call.args, call.kwargs)
        serializer = "json" if "json" in message.content_type else "msgpack"
        made = encode_call(
            letter.task, message.id, call.args, call.kwargs, embed=call.embed, serializer=serializer
        )
        return message._replace(
            body=made.body,
            content_type=made.content_type,
            content_encoding=made.content_encoding,
            headers={name: v for name, v in message.headers.items() if name not in _STALE},
        )

    def names(self) -> list[str]:
        """Return what is changed, without the values: a journal holds no arguments."""
        return [name for name in ("args", "kwargs") if getattr(self, name) is not None]

    def to_json(self) -> dict[str, Any]:
        """Return it for the journal of a replay that may have to be gone on with."""
        return {"args": self.args, "kwargs": self.kwargs, "queue": self.queue}

    @classmethod
    def from_json(cls, data: Any) -> "Edit | None":
        """Read `to_json`'s form; None stays None."""
        return None if data is None else cls(data["args"], data["kwargs"], data["queue"])

    def _call(self, letter: DeadLetter) -> Call:
        try:
            old = letter.call()
        except DecodeError as error:
            if self.args is None or self.kwargs is None:
                raise ConfigError(
                    f"the arguments of letter {letter.id} cannot be read ({error}); "
                    "give both --args and --kwargs"
                ) from error
            return Call(self.args, self.kwargs)
        args = old.args if self.args is None else self.args
        kwargs = old.kwargs if self.kwargs is None else self.kwargs
        return old._replace(args=args, kwargs=kwargs)


def parameter_names(known: Known | None) -> list[str]:
    """Return the names of a task's positional parameters; none for a task that is not known."""
    if known is None:
        return []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = inspect.signature(known.function).parameters.values()
    names = [one.name for one in found if one.kind in kinds]
    spec = getattr(known, "spec", None)
    return names[1:] if getattr(spec, "bind", False) else names
