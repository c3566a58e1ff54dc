"""Values of AMQP 0-9-1 header tables to Python's and back, as pure functions over bytes.

What arrives is hostile until read: every length is checked against the end of the bytes.
"""

import struct
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final

from taskq.errors import DecodeError, EncodeError

MAX_DEPTH: Final = 32
"""Tables and arrays nested deeper are refused; msgpack and recursion have limits too."""
_MAX_TIMESTAMP: Final = 2**62
_TEXT: Final = ord("S")

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


def timestamp(raw: bytes, at: int, end: int, depth: int) -> tuple[Any, int]:
    """Read a timestamp as the integer it is: (value, where it ends)."""
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
    return table, read_table(raw, at, end, depth + 1, table)


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
    ord("T"): timestamp,
    ord("F"): _nested,
    ord("V"): _nothing,
}


def _value(raw: bytes, at: int, end: int, depth: int) -> tuple[Any, int]:
    reader = _READERS.get(raw[at])
    if reader is None:
        raise DecodeError(f"unknown field type {raw[at : at + 1]!r}")
    return reader(raw, at + 1, end, depth)


def read_table(raw: bytes, at: int, end: int, depth: int, table: dict[str, Any]) -> int:
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


def short_text(text: str) -> bytes:
    """Return a text of at most 255 bytes with its length.

    Raises:
        EncodeError: If it is longer.
    """
    data = text.encode()
    if len(data) > 255:
        raise EncodeError(f"a property takes {len(data)} bytes, over AMQP's limit of 255")
    return bytes((len(data),)) + data


def field(value: Any, depth: int = 0) -> bytes:
    """Return a header's value with its type.

    Raises:
        EncodeError: If it has no form in AMQP.
    """
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
        data = b"".join([field(item, depth + 1) for item in value])
        return b"A" + _size(len(data)) + data
    raise EncodeError(f"headers cannot hold a {type(value).__name__}")


def encode_table(table: Mapping[str, Any], depth: int = 0) -> bytes:
    """Return a table of headers with its length.

    Raises:
        EncodeError: If a name is longer than 255 bytes, or a value has no form in AMQP.
    """
    data = b"".join([short_text(name) + field(value, depth) for name, value in table.items()])
    return _size(len(data)) + data
