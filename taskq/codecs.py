"""Values to bytes and back: msgpack (the default) and JSON.

Both carry, beyond their native types, `datetime`, `date`, `time`, `Decimal` and `UUID` (and `bytes`
in JSON) as maps `{"__type__": name, "__value__": text}`. The names and forms are those that
kombu >= 5.3 writes in JSON, so a Celery worker reads our JSON and we read Celery's.
Tuples come back as lists. Pickle is never read or written.
"""

import base64
import bz2
import json
import lzma
import zlib
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgpack

from taskq.errors import DecodeError, EncodeError

MSGPACK = "application/x-msgpack"
JSON = "application/json"
SERIALIZERS = {"msgpack": (MSGPACK, "binary"), "json": (JSON, "utf-8")}
"""Serializer name to (content type, content encoding)."""


def _special(value: Any) -> dict[str, Any]:
    # datetime is a date, so it is asked for first.
    if isinstance(value, datetime):
        return {"__type__": "datetime", "__value__": value.isoformat()}
    if isinstance(value, date):
        return {"__type__": "date", "__value__": value.isoformat()}
    if isinstance(value, time):
        return {"__type__": "time", "__value__": value.isoformat()}
    if isinstance(value, Decimal):
        return {"__type__": "decimal", "__value__": str(value)}
    if isinstance(value, UUID):
        return {"__type__": "uuid", "__value__": {"hex": value.hex}}
    raise TypeError(f"object of type {type(value).__qualname__}")


def _json_special(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return {"__type__": "base64", "__value__": base64.b64encode(bytes(value)).decode()}
    custom = getattr(value, "__json__", None)
    return custom() if callable(custom) else _special(value)


def _uuid(value: Any) -> UUID:
    return UUID(**value) if isinstance(value, dict) else UUID(value)


_READERS: dict[str, Callable[[Any], Any]] = {
    "datetime": datetime.fromisoformat,
    "date": lambda text: datetime.fromisoformat(text).date(),
    "time": time.fromisoformat,
    "decimal": Decimal,
    "uuid": _uuid,
    "bytes": lambda text: text.encode(),
    "base64": base64.b64decode,
}


def _revive(pairs: dict[Any, Any]) -> Any:
    # A map with other keys, or with a type that is not ours, is the user's own data.
    if len(pairs) != 2 or "__type__" not in pairs or "__value__" not in pairs:
        return pairs
    kind = pairs["__type__"]
    reader = _READERS.get(kind) if isinstance(kind, str) else None
    return pairs if reader is None else reader(pairs["__value__"])


def dumps(value: Any, content_type: str = MSGPACK) -> bytes:
    """Encode one value.

    Args:
        value: None, bool, int (64 bits in msgpack), float, str, bytes, list, tuple, dict, and the
            types named above, nested up to about 500 levels.
        content_type: `application/x-msgpack` or `application/json`.

    Raises:
        EncodeError: If a value has no form on the wire; the message names its place.
    """
    try:
        if content_type == MSGPACK:
            packed: bytes = msgpack.packb(value, default=_special)
            return packed
        if content_type == JSON:
            return json.dumps(value, default=_json_special, separators=(",", ":")).encode()
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        where = _offender(value, content_type) or "the value"
        raise EncodeError(
            f"cannot encode {where}: {error}; "
            "send plain data (numbers, text, bytes, lists, dicts, dates) or an id to look up"
        ) from error
    raise EncodeError(f"unknown content type {content_type!r}; use {MSGPACK} or {JSON}")


def loads(data: bytes, content_type: str = MSGPACK) -> Any:
    """Decode one value.

    Raises:
        DecodeError: If `data` is not valid, or the content type is not msgpack or JSON.
    """
    try:
        if content_type == MSGPACK:
            return msgpack.unpackb(data, object_hook=_revive, strict_map_key=False)
        if content_type == JSON:
            return json.loads(data, object_hook=_revive)
    # A reader of hostile bytes meets whatever msgpack, json and the readers above raise.
    except Exception as error:
        raise DecodeError(f"not valid {content_type}: {error}") from error
    raise DecodeError(f"content type {content_type!r} is not read; only {MSGPACK} and {JSON} are")


def _inflate_zlib(data: bytes, limit_bytes: int) -> bytes:
    worker = zlib.decompressobj()
    plain = worker.decompress(data, limit_bytes)
    if not worker.eof:
        raise ValueError("it is cut short or too large")
    return plain


def _inflate_bz2(data: bytes, limit_bytes: int) -> bytes:
    worker = bz2.BZ2Decompressor()
    plain = worker.decompress(data, limit_bytes)
    if not worker.eof:
        raise ValueError("it is cut short or too large")
    return plain


def _inflate_lzma(data: bytes, limit_bytes: int) -> bytes:
    worker = lzma.LZMADecompressor()
    plain = worker.decompress(data, limit_bytes)
    if not worker.eof:
        raise ValueError("it is cut short or too large")
    return plain


_INFLATE: dict[str, Callable[[bytes, int], bytes]] = {
    # Celery's "gzip" is zlib's format, as captured on the wire.
    "application/x-gzip": _inflate_zlib,
    "application/x-bz2": _inflate_bz2,
    "application/x-lzma": _inflate_lzma,
}


def inflate(data: bytes, compression: Any, limit_bytes: int) -> bytes:
    """Decompress a body that Celery compressed.

    Args:
        data: The body.
        compression: The `compression` header, a MIME type.
        limit_bytes: Longest result; a small bomb must not fill the memory.

    Raises:
        DecodeError: If the compression is unknown, or the data is damaged or too large.
    """
    worker = _INFLATE.get(compression) if isinstance(compression, str) else None
    if worker is None:
        raise DecodeError(f"compression {compression!r:.60} is not supported")
    try:
        return worker(data, limit_bytes)
    except (ValueError, OSError, zlib.error, lzma.LZMAError, EOFError) as error:
        raise DecodeError(f"the body does not decompress: {error}") from error


def _offender(value: Any, content_type: str, path: str = "", depth: int = 0) -> str | None:
    """Return the path of the first part that cannot be encoded, such as `[0]['user']`."""
    if depth > 20:
        return f"{path} (nested too deeply)"
    if isinstance(value, dict):
        parts = [(f"{path}[{key!r}]", item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    else:
        return None if _encodes(value, content_type) else path
    for place, item in parts:
        found = _offender(item, content_type, place, depth + 1)
        if found is not None:
            return found
    return None


def _encodes(value: Any, content_type: str) -> bool:
    try:
        if content_type == MSGPACK:
            msgpack.packb(value, default=_special)
        else:
            json.dumps(value, default=_json_special)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return False
    return True
