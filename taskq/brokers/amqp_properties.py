"""Basic properties of AMQP 0-9-1 to messages and back, as pure functions over bytes.

pika's own codec takes half of its time per message, turns timestamps into dates (and raises in the
I/O loop where a hostile one is no date), and cannot write floats. What arrives here is hostile
until read: every length is checked against the end of the bytes.
"""

import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from taskq import resend
from taskq.brokers.amqp_fields import field, read_table, short_text, timestamp
from taskq.brokers.base import DEAD_QUEUE
from taskq.codecs import MSGPACK
from taskq.errors import DecodeError
from taskq.message import DEAD_PREFIX, Message, adopt_protocol_1

MAX_ID_BYTES: Final = 255

_CONTENT_TYPE, _CONTENT_ENCODING, _HEADERS = 1 << 15, 1 << 14, 1 << 13
_DELIVERY_MODE, _PRIORITY, _CORRELATION_ID, _REPLY_TO = 1 << 12, 1 << 11, 1 << 10, 1 << 9
_MESSAGE_ID, _TIMESTAMP = 1 << 7, 1 << 6
_PLAIN: Final = _CONTENT_TYPE | _CONTENT_ENCODING | _HEADERS | _DELIVERY_MODE
_TEXTS_AFTER_PRIORITY: Final = (
    (_CORRELATION_ID, "correlation_id"),
    (_REPLY_TO, "reply_to"),
    (1 << 8, "expiration"),
    (_MESSAGE_ID, "message_id"),
)
_TEXTS_AT_THE_END: Final = (
    (1 << 5, "type"),
    (1 << 4, "user_id"),
    (1 << 3, "app_id"),
    (1 << 2, "cluster_id"),
)
_u16 = struct.Struct(">H").unpack_from


def _read_short(raw: bytes, at: int, name: str, fields: dict[str, Any]) -> int:
    stop = at + 1 + raw[at]
    fields[name] = raw[at + 1 : stop].decode()
    return stop


def _read_all(raw: bytes, fields: dict[str, Any], headers: dict[str, Any]) -> None:
    """Fill `fields` and `headers` as far as the bytes can be read."""
    flags = _u16(raw, 0)[0]
    at = 2
    if flags & _CONTENT_TYPE:
        stop = 3 + raw[2]
        fields["content_type"] = raw[3:stop].decode()
        at = stop
    if flags & _CONTENT_ENCODING:
        at = _read_short(raw, at, "content_encoding", fields)
    if flags & _HEADERS:
        at = read_table(raw, at, len(raw), 0, headers)
    if flags & _DELIVERY_MODE:
        fields["delivery_mode"] = raw[at]
        at += 1
    if flags & _PRIORITY:
        fields["priority"] = raw[at]
        at += 1
    for flag, name in _TEXTS_AFTER_PRIORITY:
        if flags & flag:
            at = _read_short(raw, at, name, fields)
    if flags & 0x7F:
        at = _read_tail(raw, at, flags, fields)
    if at != len(raw):
        raise DecodeError("the properties' length does not match their fields")


def _read_tail(raw: bytes, at: int, flags: int, fields: dict[str, Any]) -> int:
    if flags & 3:
        raise DecodeError("unknown property flags")
    if flags & _TIMESTAMP:
        fields["timestamp"], at = timestamp(raw, at, len(raw), 0)
    for flag, name in _TEXTS_AT_THE_END:
        if flags & flag:
            at = _read_short(raw, at, name, fields)
    return at


def _read_checked(
    raw: bytes, fields: dict[str, Any], headers: dict[str, Any]
) -> DecodeError | None:
    try:
        _read_all(raw, fields, headers)
    except DecodeError as error:
        return DecodeError(f"the message's properties cannot be read: {error}")
    except (IndexError, struct.error):
        return DecodeError("the message's properties cannot be read: they are cut short")
    except UnicodeDecodeError as error:
        return DecodeError(f"the message's properties cannot be read: {error}")
    return None


def decode(raw: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read properties: (fields that are set by name, headers).

    Timestamps stay integers, decimals become text, texts that are not UTF-8 bytes.

    Args:
        raw: The content header's payload after the body size, flags first.

    Raises:
        DecodeError: If lengths do not match, a type is unknown, or tables are nested too deeply.
    """
    fields: dict[str, Any] = {}
    headers: dict[str, Any] = {}
    error = _read_checked(raw, fields, headers)
    if error is not None:
        raise error
    return fields, headers


def message_id(raw: bytes) -> str:
    """Return the property of that name, empty when there is none or it cannot be read."""
    fields: dict[str, Any] = {}
    _read_checked(raw, fields, {})
    value: str = fields.get("message_id", "")
    return value


def read_message(
    raw: bytes, body: bytes, *, dead: bool = False
) -> tuple[Message, int, DecodeError | None]:
    """Build the message of a delivery: (message, earlier deliveries, why it cannot be read).

    Never raises: with an error the message holds what could be read, its body untouched. Headers
    that RabbitMQ owns are taken off.

    Args:
        raw: The properties, see `decode`.
        body: The body.
        dead: Whether it is a dead letter: what the broker wrote about its end becomes the
            `taskq-dead-*` headers that taskq itself would have written.
    """
    fields: dict[str, Any] = {}
    headers: dict[str, Any] = {}
    error = _read_checked(raw, fields, headers)
    count = 0
    if len(headers) > 2 and any(map(_is_foreign, headers)):
        count = headers.get("x-delivery-count", 0)
        story = _broker_story(headers) if dead else {}
        headers = {**resend.strip_broker_headers(headers), **story}
    task, task_id = headers.pop("task", None), headers.pop("id", None)
    good = isinstance(task, str) and isinstance(task_id, str)
    message = Message(
        task if isinstance(task, str) else "",
        task_id if isinstance(task_id, str) and _is_short(task_id) else "",
        body,
        headers,
        fields.get("content_type") or MSGPACK,
        fields.get("content_encoding") or "binary",
        min(fields.get("priority", 0), 9),
        _other_id(fields.get("correlation_id", ""), task_id),
        fields.get("reply_to", ""),
    )
    if error is None and not (good and task and message.id):
        message, error = _adopted(message, task, task_id)
    return message, count if type(count) is int and count > 0 else 0, error


def _is_foreign(name: str) -> bool:
    return name.startswith("x-")


def _is_short(text: str) -> bool:
    return len(text) <= MAX_ID_BYTES and (text.isascii() or len(text.encode()) <= MAX_ID_BYTES)


def _other_id(correlation_id: str, task_id: Any) -> str:
    return "" if correlation_id == task_id else correlation_id


def _adopted(message: Message, task: Any, task_id: Any) -> tuple[Message, DecodeError | None]:
    if task is not None or task_id is not None:
        return message, DecodeError(
            "the headers `task` and `id` are not both text of a usable length: "
            f"{task!r:.50}, {task_id!r:.50}"
        )
    try:
        adopted = adopt_protocol_1(message)
    except DecodeError as error:
        return message, error
    if not _is_short(adopted.id):
        return message, DecodeError("the message's id is too long")
    return adopted, None


def _broker_story(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return why RabbitMQ itself dead-lettered a message, as `taskq-dead-*` headers."""
    deaths = headers.get("x-death")
    if DEAD_PREFIX + "reason" in headers or not isinstance(deaths, list) or not deaths:
        return {}
    last = deaths[0] if isinstance(deaths[0], dict) else {}
    queue, reason = last.get("queue"), last.get("reason")
    keys = last.get("routing-keys")
    if reason == "expired" and isinstance(queue, str) and ".delay.v1." not in queue:
        reason = resend.EXPIRED_IN_QUEUE
    elif reason == "expired" and isinstance(keys, list) and keys:
        # Its delay ended where its queue no longer was.
        reason, queue = "unroutable", keys[0]
    elif reason == "maxlen":
        reason = resend.QUEUE_FULL
    if reason not in resend.REASONS:
        reason = "rejected"
    seconds = last.get("time")
    story: dict[str, Any] = {"reason": reason, "attempts": 0, "worker": ""}
    story["queue"] = queue if isinstance(queue, str) else DEAD_QUEUE
    story["at"] = seconds * 1000 if isinstance(seconds, int) else 0
    return {DEAD_PREFIX + name: value for name, value in story.items()}


@lru_cache(maxsize=64)
def _head(flags: int, content_type: str, content_encoding: str) -> bytes:
    return struct.pack(">H", flags) + short_text(content_type) + short_text(content_encoding)


def encode(message: Message) -> bytes:
    """Write the properties of a message, headers included; `task` and `id` come first.

    A message without id (a malformed one on its way to the dead letters) has no such header.

    Raises:
        EncodeError: If an id is longer than 255 bytes, or a header has no form in AMQP.
    """
    table = [b"\x04task" + field(message.task)] if message.task else []
    if message.id:
        table.append(b"\x02id" + field(message.id))
    for name, value in message.headers.items():
        if name not in ("task", "id"):
            table.append(short_text(name) + field(value))
    headers = b"".join(table)
    flags = _PLAIN
    tail = b"\x02"
    if message.priority:
        flags |= _PRIORITY
        tail += bytes((min(max(message.priority, 0), 9),))
    correlation_id = message.correlation_id or message.id
    if correlation_id:
        flags |= _CORRELATION_ID
        tail += short_text(correlation_id)
    if message.reply_to:
        flags |= _REPLY_TO
        tail += short_text(message.reply_to)
    if message.id:
        flags |= _MESSAGE_ID
        tail += short_text(message.id)
    head = _head(flags, message.content_type, message.content_encoding)
    return b"".join((head, len(headers).to_bytes(4), headers, tail))
