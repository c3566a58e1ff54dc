"""Schedules from taskq.toml: the tables below `[schedules]`."""

import os
import re
from collections.abc import Mapping
from typing import Any, Final

from taskq.calls import OPTIONS
from taskq.config import nearest, read_content
from taskq.errors import ConfigError
from taskq.schedules.entry import Entry, limit_ms
from taskq.schedules.wire import moment_from_text, schedule_from_wire

_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw]?)")
_UNITS_S: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_WHEN: Final = ("crontab", "tz", "hash_id", "every", "anchor", "jitter_s", "once")
_POLICY: Final = ("task", "args", "kwargs", "catch_up", "max_age_s", "overlap", "max_runs")
_KNOWN: Final = (*_WHEN, *_POLICY, "starting_at", "until", *sorted(OPTIONS))


def span_s(text: Any) -> Any:
    """Return the seconds of a text such as `30m`; anything else as it is."""
    found = _SPAN.fullmatch(text.strip()) if isinstance(text, str) else None
    return float(found[1]) * _UNITS_S[found[2]] if found else text


def read_entries(environ: Mapping[str, str] | None = None) -> list[Entry]:
    """Return the schedules of taskq.toml, or of `[tool.taskq]` in pyproject.toml.

    Args:
        environ: The environment, for TASKQ_CONFIG; the process's own by default.

    Raises:
        ConfigError: If one of them cannot be; the message names file and schedule.
    """
    origin, content = read_content(os.environ if environ is None else environ)
    tables = content.get("schedules", {})
    if not isinstance(tables, dict):
        raise ConfigError(f"[schedules] in {origin} is not a table")
    return [_entry(name, table, origin) for name, table in tables.items()]


def _entry(name: str, table: Any, origin: str) -> Entry:
    if not isinstance(table, dict):
        raise ConfigError(f"[schedules.{name}] in {origin} is not a table")
    for key in table:
        if key not in _KNOWN:
            raise ConfigError(
                f"[schedules.{name}] in {origin} has an unknown {key!r}{nearest(key, _KNOWN)}"
            )
    wire = {key: table[key] for key in _WHEN if key in table}
    if "every" in wire:
        wire["every_s"] = span_s(wire.pop("every"))
    values = {key: table[key] for key in _POLICY if key in table}
    for key in ("starting_at", "until"):
        if key in table:
            values[f"{key}_ms"] = limit_ms(moment_from_text(key, table[key]))
    if isinstance(values.get("args"), list):
        values["args"] = tuple(values["args"])
    options = {key: table[key] for key in table if key in OPTIONS}
    try:
        return Entry(
            **{"task": "", **values},
            name=name,
            schedule=schedule_from_wire(wire),
            options=options,
            source="file",
        )
    except ConfigError as error:
        raise ConfigError(f"[schedules.{name}] in {origin}: {error}") from None
