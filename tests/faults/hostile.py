"""Messages that no honest client sends, as raw bytes, for a plain AMQP channel to publish."""

import itertools
import struct
from collections.abc import Iterator
from typing import NamedTuple

import pika

from taskq.brokers.amqp_fields import MAX_DEPTH, field, short_text
from taskq.codecs import dumps
from taskq.ids import new_id

CALL = dumps([[1, 2], {}, None])
MSGPACK, JSON = "application/x-msgpack", "application/json"

CELERY_HEADERS = (
    *("lang", "task", "id", "shadow", "eta", "expires", "group", "group_index", "retries"),
    *("timelimit", "root_id", "parent_id", "argsrepr", "kwargsrepr", "origin", "ignore_result"),
    *("replaced_task_nesting", "stamped_headers", "stamps", "meth", "compression"),
)
OWN_HEADERS = (
    *("taskq-due", "taskq-history", "taskq-first", "taskq-unknown-since", "taskq-replays"),
    *("taskq-replay", "taskq-deadline", "taskq-shard", "taskq-starts", "taskq-lost", "taskq-sent"),
    *("taskq-keys", "taskq-waited", "taskq-dead-reason", "taskq-dead-at", "taskq-dead-attempts"),
    *("taskq-dead-queue", "taskq-dead-worker", "traceparent", "x-death", "x-delivery-count"),
    *("x-first-death-reason", "x-last-death-queue"),
)


def _table(*fields: bytes) -> bytes:
    data = b"".join(fields)
    return struct.pack(">I", len(data)) + data


def _deep_table(depth: int) -> bytes:
    inner = b"F" + _table()
    for _ in range(depth):
        inner = b"F" + _table(b"\x01a" + inner)
    return inner


def _deep_array(depth: int) -> bytes:
    inner = b"A" + _table()
    for _ in range(depth):
        inner = b"A" + _table(inner)
    return inner


VALUES: dict[str, bytes] = {  # NaN and infinity RabbitMQ itself refuses
    "nothing": b"V",
    "true": b"t\x01",
    "zero": field(0),
    "negative": field(-1),
    "2**62": b"l" + struct.pack(">q", 2**62),
    "-2**63": b"l" + struct.pack(">q", -(2**63)),
    "byte": b"b\x80",
    "double": b"d" + struct.pack(">d", 1e308),
    "float": b"f" + struct.pack(">f", 1.5),
    "decimal": b"D\xff" + struct.pack(">i", 2**31 - 1),
    "moment": b"T" + struct.pack(">Q", 1),
    "moment 2**62": b"T" + struct.pack(">Q", 2**62),
    "moment 2**64-1": b"T" + struct.pack(">Q", 2**64 - 1),
    "empty": field(""),
    "text": field("x"),
    "long text": field("x" * 40_000),
    "control characters": field("\x00\n\r\x1b[2J"),
    "no UTF-8": b"S" + _table(b"\xff\xfe\x00"),
    "bytes": b"x" + _table(b"\x00\xff"),
    "list": field([]),
    "list of everything": field([None, True, -1, "x", b"\xff", {"a": [1]}]),
    "map": field({}),
    "map of everything": field({"": None, "task": [], "id": {"a": -1}, "s": -1, "x": "y"}),
    "two texts": field(["x", "y"]),
    "two negatives": field([-1, -2]),
    "two huge ones": field([2**62, 2**62]),
    "three": field([["x"], 2**62, "y"]),
    "deep table": _deep_table(MAX_DEPTH - 2),
    "too deep table": _deep_table(MAX_DEPTH + 2),
    "very deep table": _deep_table(300),
    "too deep list": _deep_array(MAX_DEPTH + 2),
    "very deep list": _deep_array(300),
}

BODIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", MSGPACK),
    "random": (bytes(range(256)) * 4, MSGPACK),
    "cut": (CALL[:-1], MSGPACK),
    "trailing": (CALL + b"\x00", MSGPACK),
    "text": (dumps("text"), MSGPACK),
    "two items": (dumps([[], {}]), MSGPACK),
    "args no list": (dumps([{}, {}, None]), MSGPACK),
    "kwargs no map": (dumps([[], [], None]), MSGPACK),
    "number keys": (b"\x93\x90\x81\x01\x02\xc0", MSGPACK),
    "embed no map": (dumps([[], {}, [1]]), MSGPACK),
    "chain no list": (dumps([[], {}, {"chain": "x"}]), MSGPACK),
    "no signature": (dumps([[], {}, {"callbacks": [{"a": 1}]}]), MSGPACK),
    "deep": (b"\x91" * 5000 + b"\xc0", MSGPACK),
    "claims gigabytes": (b"\xdd\xff\xff\xff\xff", MSGPACK),
    "pickle": (b"\x80\x04K\x01.", "application/x-python-serialize"),
    "no json": (b"{", JSON),
    "json no UTF-8": (b'["\xff"]', JSON),
    "deep json": (b"[" * 100_000, JSON),
    "a picture": (CALL, "image/png"),
    "too few arguments": (dumps([[1], {}, None]), MSGPACK),
}

SHORT_PROPERTIES = ("reply_to", "expiration", "message_id", "type", "app_id")
_FLAGS = {"reply_to": 9, "expiration": 8, "message_id": 7, "type": 5, "app_id": 3}


class Hostile(NamedTuple):
    """A message.

    Attributes:
        kind: What is wrong with it.
        id: Its task id, or empty.
        properties: As they travel.
        body: The body.
        harmless: Whether it may also be run: a header that nobody has to look at.
    """

    kind: str
    id: str
    properties: bytes
    body: bytes
    harmless: bool = False


class RawProperties(pika.BasicProperties):
    """Properties that are sent as given."""

    def __init__(self, raw: bytes) -> None:
        super().__init__()
        self._raw = raw

    def encode(self) -> list[bytes]:
        """Return them; called by pika."""
        return [self._raw]


def properties(fields: dict[str, bytes], content_type: str = MSGPACK) -> bytes:
    """Return properties with a table of headers: {name: value with its type}."""
    table = _table(*(short_text(name) + value for name, value in fields.items()))
    return struct.pack(">H", 1 << 15 | 1 << 13) + short_text(content_type) + table


def _own(**changes: bytes) -> tuple[str, dict[str, bytes]]:
    task_id = new_id()
    return task_id, {"task": field("add"), "id": field(task_id), **changes}


def _headers() -> Iterator[Hostile]:
    for name, (what, value) in itertools.product((*CELERY_HEADERS, *OWN_HEADERS), VALUES.items()):
        task_id, fields = _own()
        fields[name] = value
        unreadable = what.startswith(("moment 2**", "too deep", "very deep"))
        if unreadable or name in ("task", "id"):
            # RabbitMQ 4 sorts headers: what comes behind a damaged one is not read.
            task_id = ""
        looked_at = name in ("task", "id", "compression") and what not in ("empty", "nothing")
        kind, harmless = f"{name}: {what}", not looked_at and not unreadable
        yield Hostile(kind, task_id, properties(fields), CALL, harmless)


def _bodies() -> Iterator[Hostile]:
    for what, (body, content_type) in BODIES.items():
        task_id, fields = _own()
        yield Hostile(f"body: {what}", task_id, properties(fields, content_type), body)


def _properties() -> Iterator[Hostile]:
    """Properties at their limits; those of the broker's own concern RabbitMQ would refuse."""
    for seconds in (0, 2**31, 2**62, 2**62 - 1, 2**63, 2**64 - 1):
        task_id, fields = _own()
        flags = struct.pack(">H", 1 << 15 | 1 << 13 | 1 << 6)
        raw = flags + properties(fields)[2:] + struct.pack(">Q", seconds)
        yield Hostile(f"timestamp {seconds}", task_id, raw, CALL, harmless=True)
    for priority in (0, 9, 10, 255):
        task_id, fields = _own()
        flags = struct.pack(">H", 1 << 15 | 1 << 13 | 1 << 12 | 1 << 11)
        raw = flags + properties(fields)[2:] + b"\x02" + bytes((priority,))
        yield Hostile(f"priority {priority}", task_id, raw, CALL, harmless=True)
    for name, text in itertools.product(SHORT_PROPERTIES, (b"", b"9" * 9, b"x" * 255, b"\xff\xfe")):
        if name == "expiration" and not text.isdigit():
            continue
        task_id, fields = _own()
        flags = struct.pack(">H", 1 << 15 | 1 << 13 | 1 << _FLAGS[name])
        raw = flags + properties(fields)[2:] + bytes((len(text),)) + text
        yield Hostile(f"{name} {text!r:.12}", task_id, raw, CALL, harmless=True)
    yield Hostile("no properties", "", struct.pack(">H", 0), CALL)
    yield Hostile("content type alone", "", struct.pack(">H", 1 << 15) + short_text(MSGPACK), CALL)
    yield Hostile("a task alone", "", properties({"task": field("add")}), CALL)
    yield Hostile("an id alone", "", properties({"id": field("x")}), CALL)
    yield Hostile("an id that is too long", "", properties(_own(id=field("i" * 1000))[1]), CALL)


def all_kinds() -> list[Hostile]:
    """Return one message of every kind, with ids of their own."""
    return [*_bodies(), *_properties(), *_headers()]
