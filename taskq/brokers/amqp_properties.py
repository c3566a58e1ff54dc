"""Basic properties of AMQP 0-9-1 to messages and back, as pure functions over bytes.

pika's own codec takes half of its time per message, turns timestamps into dates (and raises in the
I/O loop where a hostile one is no date), and cannot write floats. What arrives here is hostile
until read: every length is checked against the end of the bytes.
"""

import struct
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

from taskq import resend
from taskq.brokers.base import DEAD_QUEUE
from taskq.codecs import MSGPACK
from taskq.errors import DecodeError, EncodeError
from taskq.message import DEAD_PREFIX, Message, adopt_protocol_1

MAX_DEPTH: Final = 32
"""Tables and arrays nested deeper are refused; msgpack and recursion have limits too."""
MAX_ID_BYTES: Final = 255
_MAX_TIMESTAMP: Final = 2**62
_TEXT: Final = ord("S")

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
_u32 = struct.Struct(">I").unpack_from
_u64 = struct.Struct(">Q").unpack_from
_size = struct.Struct(">I").pack

Reader = Callable[[bytes, int, int, int], tuple[Any, int]]


def _number(form: str) -> Reader:
    layout = struct.Struct(form)
    unpack, size = layout.unpack_from, layout.size

    def read(raw: bytes, at: int, end: int, depth: int) -> tuple[Any, int]:
        return unpack(raw, at)[0], at + size

    return read


def _boolean(raw: bytes, at: int, end: int, depth: int) -> tuple[Any, int]:
    return raw[at] != 0, at + 1


def _nothing(raw: bytes, at: int, end: int, depth: int) -> tuple[Any, int]:
    return None, at


def _timestamp(raw: bytes, at: int, end: int, depth: int) -> tuple[Any, int]:
    value = _u64(raw, at)[0]
    if value >= _MAX_TIMESTAMP:
        raise DecodeError(f"timestamp {value} is no moment")
    return value, at + 8


def _decimal(raw: bytes, at: int, end: int, depth: int) -> tuple[Any, int]:
    digits = struct.unpack_from(">i", raw, at + 1)[0]
    return str(Decimal(digits).scaleb(-raw[at])), at + 5


def _long(raw: bytes, at: int, end: int) -> int:
    """Return where a value with a length of 4 bytes at `at` ends."""
    stop: int = at + 4 + _u32(raw, at)[0]
    if stop > end:
        raise DecodeError("a length points beyond the end")
    return stop


def _text(raw: bytes, at: int, end: int, depth: int) -> tuple[Any, int]:
    stop = _long(raw, at, end)
    value = raw[at + 4 : stop]
    try:
        return value.decode(), stop
    except UnicodeDecodeError:
        return value, stop


def _bytes(raw: bytes, at: int, end: int, depth: int) -> tuple[Any, int]:
    stop = _long(raw, at, end)
    return raw[at + 4 : stop], stop


def _array(raw: bytes, at: int, end: int, depth: int) -> tuple[Any, int]:
    stop = _long(raw, at, end)
    if depth >= MAX_DEPTH:
        raise DecodeError(f"headers are nested deeper than {MAX_DEPTH} levels")
    at += 4
    items = []
    while at < stop:
        value, at = _value(raw, at, stop, depth + 1)
        items.append(value)
    if at != stop:
        raise DecodeError("an array's length does not match its items")
    return items, stop


def _nested(raw: bytes, at: int, end: int, depth: int) -> tuple[Any, int]:
    if depth >= MAX_DEPTH:
        raise DecodeError(f"headers are nested deeper than {MAX_DEPTH} levels")
    table: dict[str, Any] = {}
    return table, _read_table(raw, at, end, depth + 1, table)


_READERS: Final[dict[int, Reader]] = {
    ord("t"): _boolean,
    ord("b"): _number(">b"),
    ord("B"): _number(">B"),
    ord("U"): _number(">h"),
    ord("s"): _number(">h"),
    ord("u"): _number(">H"),
    ord("I"): _number(">i"),
    ord("i"): _number(">I"),
    ord("L"): _number(">q"),
    ord("l"): _number(">q"),
    ord("f"): _number(">f"),
    ord("d"): _number(">d"),
    ord("D"): _decimal,
    _TEXT: _text,
    ord("x"): _bytes,
    ord("A"): _array,
    ord("T"): _timestamp,
    ord("F"): _nested,
    ord("V"): _nothing,
}


def _value(raw: bytes, at: int, end: int, depth: int) -> tuple[Any, int]:
    reader = _READERS.get(raw[at])
    if reader is None:
        raise DecodeError(f"unknown field type {raw[at : at + 1]!r}")
    return reader(raw, at + 1, end, depth)


def _read_table(raw: bytes, at: int, end: int, depth: int, table: dict[str, Any]) -> int:
    """Fill `table` from the bytes at `at`; return where it ends."""
    stop = _long(raw, at, end)
    at += 4
    readers, u32 = _READERS, _u32
    while at < stop:
        start = at + 1
        at = start + raw[at]
        name = raw[start:at].decode()
        if raw[at] == _TEXT:
            # Almost every header is text: one call less for each.
            value_at = at + 5
            at = value_at + u32(raw, at + 1)[0]
            if at > stop:
                raise DecodeError("a length points beyond the end")
            try:
                table[name] = raw[value_at:at].decode()
            except UnicodeDecodeError:
                table[name] = raw[value_at:at]
            continue
        reader = readers.get(raw[at])
        if reader is None:
            raise DecodeError(f"unknown field type {raw[at : at + 1]!r}")
        table[name], at = reader(raw, at + 1, stop, depth)
    if at != stop:
        raise DecodeError("a table's length does not match its fields")
    return stop


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
        at = _read_table(raw, at, len(raw), 0, headers)
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
        fields["timestamp"], at = _timestamp(raw, at, len(raw), 0)
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
    if len(headers) > 2 and any([name.startswith("x-") for name in headers]):
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
    if reason == "expired" and isinstance(keys, list) and keys:
        # Its delay ended where its queue no longer was.
        reason, queue = "unroutable", keys[0]
    if reason not in resend.REASONS:
        reason = "rejected"
    seconds = last.get("time")
    story: dict[str, Any] = {"reason": reason, "attempts": 0, "worker": ""}
    story["queue"] = queue if isinstance(queue, str) else DEAD_QUEUE
    story["at"] = seconds * 1000 if isinstance(seconds, int) else 0
    return {DEAD_PREFIX + name: value for name, value in story.items()}


def _short(text: str) -> bytes:
    data = text.encode()
    if len(data) > 255:
        raise EncodeError(f"a property takes {len(data)} bytes, over AMQP's limit of 255")
    return bytes((len(data),)) + data


def _field(value: Any, depth: int = 0) -> bytes:
    """Return a header's value with its type."""
    if isinstance(value, str):
        data = value.encode()
        return b"S" + _size(len(data)) + data
    if value is None or isinstance(value, bool):
        return b"V" if value is None else (b"t\x01" if value else b"t\x00")
    if isinstance(value, int):
        try:
            small = -(2**31) <= value < 2**31
            return struct.pack(">ci", b"I", value) if small else struct.pack(">cq", b"l", value)
        except struct.error:
            raise EncodeError(f"{value} does not fit in 64 bits") from None
    if isinstance(value, float):
        return struct.pack(">cd", b"d", value)
    if isinstance(value, bytes | bytearray | memoryview):
        return b"x" + _size(len(value)) + bytes(value)
    if depth > MAX_DEPTH:
        raise EncodeError(f"headers are nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        return b"F" + encode_table(value, depth + 1)
    if isinstance(value, list | tuple):
        data = b"".join([_field(item, depth + 1) for item in value])
        return b"A" + _size(len(data)) + data
    raise EncodeError(f"headers cannot hold a {type(value).__name__}")


def encode_table(table: Mapping[str, Any], depth: int = 0) -> bytes:
    """Return a table of headers with its length.

    Raises:
        EncodeError: If a name is longer than 255 bytes, or a value has no form in AMQP.
    """
    data = b"".join([_short(name) + _field(value, depth) for name, value in table.items()])
    return _size(len(data)) + data


@lru_cache(maxsize=64)
def _head(flags: int, content_type: str, content_encoding: str) -> bytes:
    return struct.pack(">H", flags) + _short(content_type) + _short(content_encoding)


def encode(message: Message) -> bytes:
    """Write the properties of a message, headers included; `task` and `id` come first.

    A message without id (a malformed one on its way to the dead letters) has no such header.

    Raises:
        EncodeError: If an id is longer than 255 bytes, or a header has no form in AMQP.
    """
    table = [b"\x04task" + _field(message.task)] if message.task else []
    if message.id:
        table.append(b"\x02id" + _field(message.id))
    for name, value in message.headers.items():
        if name not in ("task", "id"):
            table.append(_short(name) + _field(value))
    headers = b"".join(table)
    flags = _PLAIN
    tail = b"\x02"
    if message.priority:
        flags |= _PRIORITY
        tail += bytes((min(max(message.priority, 0), 9),))
    correlation_id = message.correlation_id or message.id
    if correlation_id:
        flags |= _CORRELATION_ID
        tail += _short(correlation_id)
    if message.reply_to:
        flags |= _REPLY_TO
        tail += _short(message.reply_to)
    if message.id:
        flags |= _MESSAGE_ID
        tail += _short(message.id)
    head = _head(flags, message.content_type, message.content_encoding)
    return b"".join((head, _size(len(headers)), headers, tail))
