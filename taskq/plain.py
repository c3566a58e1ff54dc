"""Any value as plain JSON data, for people and programs that look at tasks; not a wire format."""

import base64
import math
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

_MAX_DEPTH: Final = 100
_CUT: Final = 200


def plain(value: Any, depth: int = 0) -> Any:
    """Return a value as None, bools, numbers, texts, lists and maps with text keys.

    Bytes become `{"__type__": "base64", "__value__": text}`, dates ISO-8601 text, numbers that JSON
    lacks (`nan`, `inf`) and `Decimal` and `UUID` text, and anything else the beginning of its
    `repr`.

    Args:
        value: Whatever a task got or returned.
        depth: How deep it lies in the value that is being written; below 100 it is cut.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes | bytearray):
        return {"__type__": "base64", "__value__": base64.b64encode(value).decode()}
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal | UUID):
        return str(value)
    if depth < _MAX_DEPTH:
        if isinstance(value, dict):
            return {str(key): plain(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item, depth + 1) for item in value]
        return repr(value)[:_CUT]
    return "..."
