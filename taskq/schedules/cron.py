"""Crontab schedules: wall-clock times in a zone, each once, whatever the clocks do.

The rule is that of Debian's cron. An expression whose minute or hour begins with `*` is an
interval: it runs through the hour that is repeated in autumn, both times, and leaves out the one
that is skipped in spring. Any other names fixed local times: each fires once in the night that has
it twice, the first time, and once in the night that has it not, at the moment of the change.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Any, Final

from taskq.errors import ConfigError
from taskq.schedules.base import Schedule, local
from taskq.schedules.fields import Fields, is_hashed, parse_fields
from taskq.schedules.zones import change_between, load_zone, read_wall, zone_name

_NAMED: Final = frozenset(
    {"@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"}
)
_LONGEST: Final = 1000

_zone = lru_cache(maxsize=1024)(load_zone)


@dataclass(frozen=True, slots=True)
class Crontab(Schedule):
    """A crontab expression in a time zone; made by `crontab`.

    Attributes:
        expression: As it was written.
        tz: Name of the zone.
        hash_id: What `H` is computed from; the schedule's name when it is empty.
    """

    expression: str
    tz: str = "UTC"
    hash_id: str = ""

    def __str__(self) -> str:
        return f"crontab({self.expression!r}, tz={self.tz!r})"

    @property
    def fields(self) -> Fields:
        """What a wall-clock time must match."""
        return parse_fields(self.expression, self.hash_id)

    def zone(self) -> tzinfo:
        """Return the zone."""
        return _zone(self.tz)

    def bound(self, name: str) -> "Crontab":
        """Return it with `H` computed from a name, where it has no other; see `Schedule`."""
        if self.hash_id or not is_hashed(self.expression):
            return self
        return replace(self, hash_id=name)

    def to_wire(self) -> dict[str, Any]:
        """Return plain data; see `Schedule`."""
        wire = {"crontab": self.expression, "tz": self.tz}
        return {**wire, "hash_id": self.hash_id} if self.hash_id else wire

    def next_ms(self, after_ms: int) -> int | None:
        """Return the first due moment later than another; see `Schedule`."""
        fields, zone = self.fields, self.zone()
        try:
            now = local(after_ms, zone)
            if fields.wild:
                return _next_of_interval(fields, zone, after_ms, now)
            return _next_of_fixed(fields, zone, after_ms, now)
        except OverflowError:
            return None


def _next_of_fixed(fields: Fields, zone: tzinfo, after_ms: int, now: datetime) -> int | None:
    wall: datetime | None = now.replace(tzinfo=None, fold=0)
    while wall is not None:
        wall = fields.next_wall(wall)
        if wall is not None:
            # Not later: its hour is being repeated, or others in the same gap have fired for it.
            due_ms = read_wall(wall, zone).first_ms
            if due_ms > after_ms:
                return due_ms
    return None


def _next_of_interval(fields: Fields, zone: tzinfo, after_ms: int, now: datetime) -> int | None:
    wall = now.replace(tzinfo=None, fold=0)
    here = read_wall(wall, zone)
    turn: int | None = None
    if not here.skipped and here.second_ms > here.first_ms and now.fold == 0:
        # The clocks will go back over this very time: what comes next may come before it.
        turn = change_between(after_ms, here.second_ms, zone)
    due = fields.next_wall(wall)
    if turn is not None and (due is None or read_wall(due, zone).first_ms >= turn):
        back = local(turn, zone).replace(tzinfo=None, fold=0)
        due = fields.next_wall(_just_before(back))
        return None if due is None else read_wall(due, zone).second_ms
    while due is not None:
        found = read_wall(due, zone)
        if not found.skipped:
            return found.first_ms if found.first_ms > after_ms else found.second_ms
        # On with the first time after the gap.
        behind = local(found.first_ms, zone).replace(tzinfo=None, fold=0)
        due = fields.next_wall(_just_before(behind))
    return None


def _just_before(wall: datetime) -> datetime:
    # Truncated to the second by `next_wall`, which then begins with this very second.
    return wall - timedelta(milliseconds=1)


def crontab(expression: str, tz: "str | tzinfo" = "UTC", *, hash_id: str = "") -> Crontab:
    """Return a schedule of wall-clock times: `crontab("30 2 * * mon-fri", tz="Europe/Berlin")`.

    Five fields: minute, hour, day of month, month, day of week (Sunday is 0 or 7); a sixth holds
    seconds. Names, ranges, steps, `L`, `#`, `@daily` and its like work; `H` stands for a number
    computed from the schedule's name, so that many schedules spread over the hour. When both day
    fields are restricted, one of them is enough, unless one begins with `*`, as in crontab(5).

    Args:
        expression: The fields.
        tz: Name of a zone of the IANA database, or a `ZoneInfo`.
        hash_id: What `H` is computed from; by default the schedule's name.

    Raises:
        ConfigError: If the expression is malformed, no date matches it, or the zone is unknown.
    """
    if not isinstance(expression, str) or len(expression) > _LONGEST:
        raise ConfigError(f"crontab takes text such as '30 2 * * mon-fri', not {expression!r:.60}")
    text = " ".join(expression.split())
    if text.startswith("@") and text.lower() not in _NAMED:
        raise ConfigError(f"crontab {text!r} is unknown; known: {', '.join(sorted(_NAMED))}")
    if not isinstance(hash_id, str):
        raise ConfigError(f"hash_id is {hash_id!r:.60}; use text")
    made = Crontab(text, zone_name(tz), hash_id)
    parse_fields(text, hash_id)
    return made
