"""The body of a message: `[args, kwargs, embed]`, written and read as pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from taskq import codecs
from taskq.errors import DecodeError, EncodeError
from taskq.message import MAX_BODY_BYTES, Message, check_header_values


@dataclass(frozen=True, slots=True)
class Embed:
    """What follows a task: Celery's third body item.

    Attributes:
        callbacks: Signatures (as maps) sent with the result after success.
        errbacks: Signatures sent with the failed task's id.
        chain: Remaining steps in reverse order: the next step is the last item.
        chord: Body signature of the chord that this task is a member of.
    """

    callbacks: Sequence[dict[str, Any]] = ()
    errbacks: Sequence[dict[str, Any]] = ()
    chain: Sequence[dict[str, Any]] = ()
    chord: dict[str, Any] | None = None

    def to_wire(self) -> dict[str, Any] | None:
        """Return Celery's map, or None when nothing follows."""
        if not (self.callbacks or self.errbacks or self.chain or self.chord):
            return None
        return {
            "callbacks": list(self.callbacks) or None,
            "errbacks": list(self.errbacks) or None,
            "chain": list(self.chain) or None,
            "chord": self.chord,
        }


_NO_EMBED = Embed()


class Call(NamedTuple):
    """A decoded body: `args` (list), `kwargs` (text keys), and what follows."""

    args: list[Any]
    kwargs: dict[str, Any]
    embed: Embed = _NO_EMBED


def encode_call(
    task: str,
    task_id: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    embed: Embed = _NO_EMBED,
    serializer: str = "msgpack",
    priority: int = 0,
    headers: Mapping[str, Any] | None = None,
) -> Message:
    """Build the message of one call.

    Args:
        task: Registered name.
        task_id: Id of the call.
        args: Positional arguments.
        kwargs: Keyword arguments.
        embed: What follows the task.
        serializer: `msgpack` or `json`.
        priority: 0 to 9.
        headers: Further headers; those that are None are left out.

    Raises:
        EncodeError: If an argument or header has no form on the wire, or the whole is too large.
    """
    if serializer not in codecs.SERIALIZERS:
        raise EncodeError(f"unknown serializer {serializer!r}; use 'msgpack' or 'json'")
    content_type, encoding = codecs.SERIALIZERS[serializer]
    body = codecs.dumps([args, kwargs, embed.to_wire()], content_type)
    if len(body) > MAX_BODY_BYTES:
        raise EncodeError(
            f"the arguments of {task} take {len(body):,} bytes, over the limit of "
            f"{MAX_BODY_BYTES:,}; store them elsewhere and send a reference"
        )
    kept = {} if headers is None else {k: v for k, v in headers.items() if v is not None}
    if kept:
        check_header_values(kept)
    return Message(task, task_id, body, kept, content_type, encoding, priority)


def decode_call(message: Message) -> Call:
    """Read a body: protocol 2 of taskq and Celery, or Celery's protocol 1.

    Raises:
        DecodeError: If the body is not `[args, kwargs, embed]` in msgpack or JSON.
    """
    body = message.body
    compression = message.headers.get("compression")
    if compression is not None:
        body = codecs.inflate(body, compression, MAX_BODY_BYTES)
    value = codecs.loads(body, message.content_type)
    if isinstance(value, dict):
        return _decode_protocol_1(value)
    if not isinstance(value, list) or len(value) != 3:
        raise DecodeError("the body is not a list [args, kwargs, embed]")
    args, kwargs, embed = value
    if not embed and not kwargs and type(args) is list and type(kwargs) is dict:
        # Most calls: nothing to look into.
        return Call(args, kwargs)
    return _checked_call(args, kwargs, _decode_embed(embed))


def _checked_call(args: Any, kwargs: Any, embed: Embed) -> Call:
    if not isinstance(args, list):
        raise DecodeError("args is not a list")
    if not isinstance(kwargs, dict) or (kwargs and not all(isinstance(key, str) for key in kwargs)):
        raise DecodeError("kwargs is not a map with text keys")
    return Call(args, kwargs, embed)


def _decode_embed(embed: Any) -> Embed:
    if not embed:
        return _NO_EMBED
    if not isinstance(embed, dict):
        raise DecodeError("embed is not a map")
    lists: list[Sequence[dict[str, Any]]] = []
    for name in ("callbacks", "errbacks", "chain"):
        signatures = embed.get(name) or ()
        if not isinstance(signatures, list | tuple):
            raise DecodeError(f"embed.{name} is not a list of signatures")
        for item in signatures:
            _check_signature(item, f"embed.{name}")
        lists.append(signatures)
    chord = embed.get("chord")
    if chord is not None and not isinstance(chord, dict):
        raise DecodeError("embed.chord is not a signature")
    callbacks, errbacks, chain = lists
    return Embed(callbacks, errbacks, chain, chord)


def _check_signature(wire: Any, where: str) -> None:
    """Refuse a follow-up that could not be sent: found when its task ends, it would end the worker.

    Raises:
        DecodeError: If a part has a wrong type or size.
    """
    if not isinstance(wire, dict) or not isinstance(wire.get("task"), str):
        raise DecodeError(f"{where} is not made of signatures: {wire!r:.60}")
    args, kwargs, options = (wire.get(name) for name in ("args", "kwargs", "options"))
    if args is not None and not isinstance(args, list | tuple):
        raise DecodeError(f"the args of {where} are not a list")
    for name, table in (("kwargs", kwargs), ("options", options)):
        if table is not None and not _is_table(table):
            raise DecodeError(f"the {name} of {where} are not a map with text keys")
    if options:
        _check_signature_options(options, where)


def _check_signature_options(options: dict[str, Any], where: str) -> None:
    for name in ("task_id", "queue"):
        value = options.get(name)
        if value is not None and not (isinstance(value, str) and len(value.encode()) <= 200):
            raise DecodeError(f"{name} of {where} is not text of at most 200 bytes")
    if str(options.get("queue") or "").startswith("amq."):
        # Nobody may declare such a queue, so the follow-up could never be confirmed.
        raise DecodeError(f"queue of {where} begins with amq., which is the broker's own")
    priority = options.get("priority")
    if priority is not None and not (isinstance(priority, int) and 0 <= priority <= 255):
        raise DecodeError(f"priority of {where} is not 0 to 255")
    if not _is_table(options.get("headers") or {}):
        raise DecodeError(f"headers of {where} are not a map with text keys")
    for name in ("link", "link_error"):
        links = options.get(name) or ()
        for item in links if isinstance(links, list | tuple) else (links,):
            _check_signature(item, f"{name} of {where}")


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _decode_protocol_1(body: dict[Any, Any]) -> Call:
    embed = {key: body.get(key) for key in ("callbacks", "errbacks", "chord")}
    return _checked_call(body.get("args") or [], body.get("kwargs") or {}, _decode_embed(embed))
