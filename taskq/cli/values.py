"""Values of options: JSON, time spans, moments."""

import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from taskq import clock

_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw]?)")
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", re.IGNORECASE)
_UNITS_BYTES: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS_S: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


if TYPE_CHECKING:
    # Generic since click 8.4 only.
    _Type = click.ParamType[Any]
else:
    _Type = click.ParamType


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


class JsonParameter(_Type):
    """A list, or a map with text keys, written as JSON."""

    name = "json"

    def __init__(self, kind: type[list[Any]] | type[dict[str, Any]]) -> None:
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value; a usage error for anything else."""
        if isinstance(value, self._kind):
            return value
        wanted = "a list such as [2, 3]" if self._kind is list else 'a map such as {"x": 2}'
        try:
            found = json.loads(value, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            self.fail(f"{error}; write {wanted} as JSON", param, ctx)
        if not isinstance(found, self._kind):
            self.fail(f"{value[:60]!r} is another kind of JSON; write {wanted}", param, ctx)
        return found


class Span(_Type):
    """Seconds, or a number with a unit: `90`, `30m`, `12h`, `7d`."""

    name = "span"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return seconds."""
        if isinstance(value, float | int):
            return float(value)
        found = _SPAN.fullmatch(value.strip())
        if found is None:
            self.fail(f"{value!r} is no time span; write 90, 30m, 12h or 7d", param, ctx)
        return float(found[1]) * _UNITS_S[found[2]]


class Size(_Type):
    """Bytes, or a number with a unit: `500MB`, `10GB`."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return bytes."""
        if isinstance(value, int):
            return value
        found = _SIZE.fullmatch(value.strip())
        size_bytes = round(float(found[1]) * _UNITS_BYTES[found[2].upper()]) if found else 0
        if size_bytes < 1:
            self.fail(f"{value!r} is no size; write 500MB or 10GB", param, ctx)
        return size_bytes


class Moment(_Type):
    """An ISO-8601 date; without offset it counts as UTC."""

    name = "moment"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Return an aware date."""
        if isinstance(value, datetime):
            return value
        try:
            found = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no date; write 2026-01-31T12:00:00+01:00", param, ctx)
        return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


class Since(_Type):
    """A moment in the past: a date, or a span before now."""

    name = "since"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return epoch ms."""
        if isinstance(value, int):
            return value
        if _SPAN.fullmatch(value.strip()):
            return max(1, clock.now_ms() - round(Span().convert(value, param, ctx) * 1000))
        try:
            return clock.from_iso(value)
        except ValueError:
            self.fail(f"{value!r}: write 30m, 12h, 7d, or a date like 2026-01-31", param, ctx)


JSON_LIST: Final = JsonParameter(list)
JSON_MAP: Final = JsonParameter(dict)
SPAN: Final = Span()
SIZE: Final = Size()
MOMENT: Final = Moment()
SINCE: Final = Since()
