"""Time zones: loading one by name, and what its clocks do around a change."""

from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Any

from taskq.config import nearest
from taskq.errors import ConfigError
from taskq.schedules.base import EPOCH, local

DAY_MS = 86_400_000


def load_zone(name: Any) -> tzinfo:
    """Return a zone of the IANA database.

    Raises:
        ConfigError: If there is none of that name.
    """
    # Not at the top: a process without schedules has no use for it.
    import zoneinfo

    try:
        return zoneinfo.ZoneInfo(name)
    # The name is a path below the database: a directory, or one that leads out of it, too.
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError, TypeError, AttributeError):
        known = zoneinfo.available_timezones()
        advice = nearest(str(name), known) if known else "; there is none here: pip install tzdata"
        raise ConfigError(
            f"unknown time zone {name!r:.60}{advice}; use a name such as Europe/Berlin"
        ) from None


def zone_name(tz: Any) -> str:
    """Return the name of a zone that was given as a name or as an object with one.

    Raises:
        ConfigError: If there is no such zone, or the object has no name.
    """
    name = tz if isinstance(tz, str) else getattr(tz, "key", None) or getattr(tz, "zone", None)
    if name is None and isinstance(tz, tzinfo) and tz.utcoffset(None) == EPOCH.utcoffset():
        name = "UTC"
    if name is None:
        raise ConfigError(f"time zone {tz!r:.60} has no name; use one such as Europe/Berlin")
    load_zone(name)
    return str(name)


def offset_ms(moment_ms: int, zone: tzinfo) -> int:
    """Return how far the zone's clocks are ahead of UTC at a moment, in ms."""
    offset = local(moment_ms, zone).utcoffset()
    return 0 if offset is None else round(offset.total_seconds() * 1000)


def change_between(low_ms: int, high_ms: int, zone: tzinfo) -> int:
    """Return the moment of the change of offset in (low, high]; there must be exactly one."""
    before = offset_ms(low_ms, zone)
    while high_ms - low_ms > 1:
        middle = (low_ms + high_ms) // 2
        if offset_ms(middle, zone) == before:
            low_ms = middle
        else:
            high_ms = middle
    return high_ms


def wall_ms(wall: datetime) -> int:
    """Return a naive datetime as ms, as if it were UTC."""
    return round((wall.replace(tzinfo=EPOCH.tzinfo, fold=0) - EPOCH).total_seconds() * 1000)


@dataclass(frozen=True, slots=True)
class Wall:
    """What a wall-clock time means in a zone.

    Attributes:
        first_ms: Its moment, or the earlier of two; for a time that is skipped, the moment of the
            change, when the clocks show the first time after the gap.
        second_ms: The later of two moments; else the same.
        skipped: Whether the clocks never show it.
    """

    first_ms: int
    second_ms: int
    skipped: bool


def read_wall(wall: datetime, zone: tzinfo) -> Wall:
    """Return which moments show a naive wall-clock time in a zone."""
    own_ms = wall_ms(wall)
    offsets = [wall.replace(tzinfo=zone, fold=fold).utcoffset() for fold in (0, 1)]
    one, two = (own_ms - round(o.total_seconds() * 1000) if o else own_ms for o in offsets)
    if one == two:
        return Wall(one, two, skipped=False)
    if one < two:
        return Wall(one, two, skipped=False)
    # In a gap the offset from before it gives the later moment.
    change_ms = change_between(two - 1, one, zone)
    return Wall(change_ms, change_ms, skipped=True)


def changes(from_ms: int, days: int, zone: tzinfo) -> list[tuple[int, int]]:
    """Return the changes of a zone's clocks in the days after a moment.

    Args:
        from_ms: Where to begin, as epoch ms.
        days: How far to look.
        zone: Whose clocks.

    Returns:
        Pairs (moment as epoch ms, by how many ms the clocks jump; negative for back).
    """
    found = []
    for start_ms in range(from_ms, from_ms + days * DAY_MS, DAY_MS):
        jump = offset_ms(start_ms + DAY_MS, zone) - offset_ms(start_ms, zone)
        if jump:
            found.append((change_between(start_ms, start_ms + DAY_MS, zone), jump))
    return found
