"""The wire format: the minimal form of Celery's message protocol v2, as pure functions.

A message is AMQP properties, a table of headers and a body `[args, kwargs, embed]`. The headers
`task` and `id` are always there; of Celery's others only those that are not at their default; what
is taskq's own begins with `taskq-`. The embedded broker stores the same parts in columns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from taskq import clock, codecs
from taskq.errors import DecodeError, EncodeError

WIRE_VERSION = 1
MAX_HEADER_BYTES = 96 * 1024
"""Headers travel in one AMQP frame of 128 KiB at most, properties included."""
MAX_BODY_BYTES = 16 * 1024 * 1024
"""RabbitMQ 4 refuses larger messages, and a decompressed body may not exceed it either."""

DUE = "taskq-due"
HISTORY = "taskq-history"
FIRST = "taskq-first"
UNKNOWN_SINCE = "taskq-unknown-since"
REPLAYS = "taskq-replays"
DEAD_PREFIX = "taskq-dead-"


@dataclass(frozen=True, slots=True)
class Message:
    """One task call on the wire; immutable, a retry is a new copy.

    Attributes:
        task: Registered name of the task; empty when a hostile message has none.
        id: Task id; empty likewise.
        body: Encoded `[args, kwargs, embed]`.
        headers: All headers but `task` and `id`; only values that AMQP and msgpack both carry
            (None, bool, int, str, bytes, lists and maps with text keys).
        content_type: `application/x-msgpack` or `application/json`.
        content_encoding: `binary` or `utf-8`.
        priority: 0 (lowest, the default) to 9.
        correlation_id: Empty when it is the task id.
        reply_to: Celery's reply queue, passed through.
    """

    task: str
    id: str
    body: bytes
    headers: Mapping[str, Any] = field(default_factory=dict)
    content_type: str = codecs.MSGPACK
    content_encoding: str = "binary"
    priority: int = 0
    correlation_id: str = ""
    reply_to: str = ""

    def with_headers(self, **changes: Any) -> "Message":
        """Return a copy; a header given as None is dropped, `_` in names stands for `-`."""
        headers = dict(self.headers)
        for name, value in changes.items():
            key = name.replace("_", "-") if name.startswith("taskq_") else name
            if value is None:
                headers.pop(key, None)
            else:
                headers[key] = value
        return replace(self, headers=headers)

    def to_list(self) -> list[Any]:
        """Return the fields in order, for msgpack; `from_list` reads them."""
        return [
            self.task,
            self.id,
            self.body,
            self.headers,
            self.content_type,
            self.content_encoding,
            self.priority,
            self.correlation_id,
            self.reply_to,
        ]

    @classmethod
    def from_list(cls, parts: Sequence[Any]) -> "Message":
        """Build a message from `to_list`'s form."""
        return cls(*parts)


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


@dataclass(frozen=True, slots=True)
class Call:
    """A decoded body: `args` (list), `kwargs` (text keys), and what follows."""

    args: list[Any]
    kwargs: dict[str, Any]
    embed: Embed = _NO_EMBED


@dataclass(frozen=True, slots=True)
class Envelope:
    """The headers that steer a task, checked.

    Attributes:
        retries: Attempts already spent; 0 on the first.
        due_ms: Earliest start as epoch ms, 0 for now.
        expires_ms: Latest start as epoch ms, 0 for never.
        time_limit_s: Hard limit of this call, or None for the task's own.
        soft_time_limit_s: Soft limit of this call, or None.
        root_id: First task of the workflow; the task's own id by default.
        parent_id: Task that sent this one, or None.
        ignore_result: Whether the caller asked that no value is kept.
    """

    retries: int = 0
    due_ms: int = 0
    expires_ms: int = 0
    time_limit_s: float | None = None
    soft_time_limit_s: float | None = None
    root_id: str = ""
    parent_id: str | None = None
    ignore_result: bool = False


_PLAIN = Envelope()


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


def check_header_values(headers: Mapping[str, Any]) -> None:
    """Refuse headers that AMQP or msgpack could not carry.

    Raises:
        EncodeError: For names over 255 bytes, floats and other foreign types, or over 96 KiB.
    """
    for name, value in headers.items():
        if not isinstance(name, str) or len(name.encode()) > 255:
            raise EncodeError(f"header names are text of at most 255 bytes, not {name!r}")
        _check_header_value(name, value)
    if len(codecs.dumps(dict(headers))) > MAX_HEADER_BYTES:
        raise EncodeError(f"headers take more than {MAX_HEADER_BYTES:,} bytes; use arguments")


def _check_header_value(name: str, value: Any) -> None:
    if value is None or isinstance(value, str | bool | bytes):
        return
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return
    if isinstance(value, list | tuple):
        for item in value:
            _check_header_value(name, item)
        return
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        for item in value.values():
            _check_header_value(name, item)
        return
    raise EncodeError(
        f"header {name!r} holds a {type(value).__name__}; "
        "use text, integers of 64 bits, booleans, bytes, lists or maps of these"
    )


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


def adopt_protocol_1(message: Message) -> Message:
    """Return Celery's protocol 1 (no headers, all in the body) as a message with task and id.

    Raises:
        DecodeError: If the body is not such a map.
    """
    body = codecs.loads(message.body, message.content_type)
    if not isinstance(body, dict):
        raise DecodeError("the message has no `task` header")
    task, task_id = body.get("task"), body.get("id")
    if not isinstance(task, str) or not isinstance(task_id, str) or not task or not task_id:
        raise DecodeError("the message names no task or no id")
    names = ("retries", "eta", "expires", "timelimit")
    headers = {name: body[name] for name in names if body.get(name)}
    return replace(message, task=task, id=task_id, headers={**message.headers, **headers})


def read_envelope(message: Message) -> Envelope:
    """Check the headers that steer a task.

    Raises:
        DecodeError: If one of them has a wrong type or value.
    """
    headers = message.headers
    if not headers:
        return _PLAIN
    hard, soft = _limits(headers.get("timelimit"))
    due_ms = _integer(headers, DUE)
    return Envelope(
        retries=_integer(headers, "retries"),
        due_ms=due_ms or _date_ms(headers, "eta"),
        expires_ms=_date_ms(headers, "expires"),
        time_limit_s=hard,
        soft_time_limit_s=soft,
        root_id=_text(headers, "root_id") or "",
        parent_id=_text(headers, "parent_id"),
        ignore_result=bool(headers.get("ignore_result")),
    )


def _integer(headers: Mapping[str, Any], name: str) -> int:
    value = headers.get(name)
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**62:
        raise DecodeError(f"header {name} is not a non-negative integer: {value!r:.50}")
    return value


def _text(headers: Mapping[str, Any], name: str) -> str | None:
    value = headers.get(name)
    if value is not None and not isinstance(value, str):
        raise DecodeError(f"header {name} is not text: {value!r:.50}")
    return value


def _date_ms(headers: Mapping[str, Any], name: str) -> int:
    value = _text(headers, name)
    if not value:
        return 0
    try:
        return clock.from_iso(value)
    except ValueError as error:
        raise DecodeError(f"header {name} is not a date: {value!r:.50}") from error


def _limits(value: Any) -> tuple[float | None, float | None]:
    if value is None:
        return None, None
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise DecodeError("header timelimit is not [hard, soft]")
    for limit in value:
        if limit is not None and (
            isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit < 2**31
        ):
            raise DecodeError("header timelimit holds no positive numbers of seconds")
    return value[0], value[1]
