"""Schedules as plain data, and back; what a hand has edited is read with the same care."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from taskq.errors import ConfigError
from taskq.schedules.base import Schedule, only
from taskq.schedules.cron import crontab
from taskq.schedules.interval import every, once


def moment_from_text(name: str, text: Any) -> datetime:
    """Read an ISO-8601 date; without offset it counts as UTC.

    Args:
        name: What it is, for messages.
        text: The date; a datetime is taken as it is.

    Raises:
        ConfigError: If it is none.
    """
    try:
        found = text if isinstance(text, datetime) else datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise ConfigError(
            f"{name} is {text!r:.60}; write a date such as 2026-01-31T12:00:00+01:00"
        ) from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def schedule_from_wire(wire: Any) -> Schedule:
    """Read what `Schedule.to_wire` wrote.

    Raises:
        ConfigError: If it is no schedule, or one that can never fire.
    """
    if not isinstance(wire, Mapping):
        raise ConfigError(f"{wire!r:.80} is no schedule; use a map with crontab, every_s or once")
    kinds = [name for name in ("crontab", "every_s", "once") if name in wire]
    if len(kinds) != 1:
        raise ConfigError(
            f"a schedule has exactly one of crontab, every_s and once, not {dict(wire)!r:.80}"
        )
    if kinds == ["crontab"]:
        only(wire, "crontab", "tz", "hash_id")
        return crontab(wire["crontab"], wire.get("tz", "UTC"), hash_id=wire.get("hash_id", ""))
    if kinds == ["once"]:
        only(wire, "once")
        return once(moment_from_text("once", wire["once"]))
    only(wire, "every_s", "anchor", "jitter_s", "hash_id")
    anchor = wire.get("anchor")
    return every(
        wire["every_s"],
        anchor=None if anchor is None else moment_from_text("anchor", anchor),
        jitter_s=wire.get("jitter_s", 0),
        hash_id=wire.get("hash_id", ""),
    )
