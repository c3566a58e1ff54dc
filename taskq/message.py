"""The wire format: the minimal form of Celery's message protocol v2, as pure functions.

A message is AMQP properties, a table of headers and a body `[args, kwargs, embed]`. The headers
`task` and `id` are always there; of Celery's others only those that are not at their default; what
is taskq's own begins with `taskq-`. The embedded broker stores the same parts in columns.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from taskq import codecs
from taskq.errors import DecodeError, EncodeError

WIRE_VERSION = 1
TOP_PRIORITY = 9
MAX_HEADER_BYTES = 96 * 1024
"""Headers travel in one AMQP frame of 128 KiB at most, properties included."""
MAX_BODY_BYTES = 16 * 1024 * 1024
"""RabbitMQ 4 refuses larger messages, and a decompressed body may not exceed it either."""

DUE = "taskq-due"
HISTORY = "taskq-history"
FIRST = "taskq-first"
UNKNOWN_SINCE = "taskq-unknown-since"
REPLAYS = "taskq-replays"
REPLAY = "taskq-replay"
DEADLINE = "taskq-deadline"
SHARD_KEY = "taskq-shard"
STARTS = "taskq-starts"
LOST = "taskq-lost"
"""The last two travel from a hub to its executors only; a message that is sent carries neither."""
SENT = "taskq-sent"
"""When it was sent, in epoch ms; only where the id does not tell, see `taskq.ids`."""
DEAD_PREFIX = "taskq-dead-"
KEYS = "taskq-keys"
"""Keys of a message's limits: a map of kind (`r c u i b`) to key."""
CLAIMED = "x"
"""Kind in `taskq-keys` that says that the sender holds the claim of `u`."""
SENT_AT = "t"
"""Kind in `taskq-keys` with when a debounced call was sent, in microseconds, as text."""
WAITED = "taskq-waited"
"""What a limit sent back: [kinds, promised moment in us, version of the limits]."""


class Message(NamedTuple):
    """One task call on the wire; immutable, a retry is a new copy.

    A tuple, because one is made for every delivery in the hub and in the executor: a frozen
    dataclass of nine fields costs 1.5 us more each time.

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
    headers: Mapping[str, Any] = {}  # never changed in place: with_headers copies
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
        return self._replace(headers=headers)

    def to_list(self) -> list[Any]:
        """Return the fields in order, for msgpack; `from_list` reads them."""
        return list(self)

    @classmethod
    def from_list(cls, parts: Sequence[Any]) -> "Message":
        """Build a message from `to_list`'s form."""
        return cls._make(parts)


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
    return message._replace(task=task, id=task_id, headers={**message.headers, **headers})
