"""One scheduled job: what is sent when, and its policies; its text form in the store."""

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, Literal, get_args

from taskq import clock, codecs
from taskq.config import nearest
from taskq.errors import ConfigError, DecodeError
from taskq.schedules.base import Schedule, only, to_ms
from taskq.schedules.wire import moment_from_text, schedule_from_wire

CatchUp = Literal["skip", "last", "all"]
Overlap = Literal["allow", "skip", "queue_one", "cancel_running"]
Source = Literal["code", "file", "dynamic"]

MAX_AGE_S: Final = 60.0
_CATCH_UPS: Final = get_args(CatchUp)
_OVERLAPS: Final = get_args(Overlap)
_SOURCES: Final = get_args(Source)
_LONGEST_AGE_S: Final = 366 * 86400.0
_LONGEST_NAME: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A scheduled job; made by `app.schedules.add` and `@app.task(schedule=...)`.

    Attributes:
        name: Unique within the app.
        task: Registered name of the task.
        schedule: When it is due.
        args: Positional arguments.
        kwargs: Keyword arguments.
        options: What `apply_async` takes besides them.
        catch_up: What becomes of ticks that no scheduler was there for: `all` are sent, only the
            `last` one, or none (`skip`).
        max_age_s: Ticks older than this, in seconds, are missed in any case.
        overlap: What becomes of a tick while the run before it has not ended: `allow` both, `skip`
            it, `queue_one` that is sent when the other ends, or `cancel_running`.
        starting_at_ms: No tick before this moment, as epoch ms; 0 for any.
        until_ms: No tick after this moment, as epoch ms; 0 for no end.
        max_runs: So many ticks are sent; 0 for any number.
        source: Where it was declared: `code`, the `file` taskq.toml, or `dynamic` at run time.
    """

    name: str
    task: str
    schedule: Schedule
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    catch_up: CatchUp = "all"
    max_age_s: float = MAX_AGE_S
    overlap: Overlap = "allow"
    starting_at_ms: int = 0
    until_ms: int = 0
    max_runs: int = 0
    source: Source = "dynamic"

    def __post_init__(self) -> None:
        check_name(self.name)
        if not isinstance(self.task, str) or not self.task:
            raise self._wrong("task", self.task, "the name of a task")
        if not isinstance(self.schedule, Schedule):
            raise self._wrong("schedule", self.schedule, "crontab(...), every(...) or once(...)")
        if not isinstance(self.args, tuple) or not isinstance(self.kwargs, Mapping):
            raise self._wrong("args and kwargs", (self.args, self.kwargs), "a list and a map")
        self._one_of("catch_up", _CATCH_UPS)
        self._one_of("overlap", _OVERLAPS)
        self._one_of("source", _SOURCES)
        age = self.max_age_s
        if not isinstance(age, int | float) or isinstance(age, bool) or not 0 < age <= 366 * 86400:
            raise self._wrong("max_age_s", age, "seconds above 0, up to 366 days")
        if not isinstance(self.max_runs, int) or isinstance(self.max_runs, bool):
            raise self._wrong("max_runs", self.max_runs, "a whole number")
        if self.max_runs < 0:
            raise self._wrong("max_runs", self.max_runs, "0 for any number, or more")
        if self.until_ms and self.until_ms <= self.starting_at_ms:
            raise self._wrong("until", clock.to_iso(self.until_ms), "a moment after starting_at")

    def _wrong(self, what: str, value: Any, wanted: str) -> ConfigError:
        return ConfigError(f"schedule {self.name!r}: {what} is {value!r:.80}; use {wanted}")

    def _one_of(self, name: str, known: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in known:
            raise self._wrong(name, value, " or ".join(known) + nearest(str(value), known))

    def bound(self) -> "Entry":
        """Return it with `H` and jitter computed from its name."""
        schedule = self.schedule.bound(self.name)
        return self if schedule is self.schedule else replace(self, schedule=schedule)

    def next_ms(self, after_ms: int) -> int | None:
        """Return the first due moment later than another, within the limits of time, or None."""
        due_ms = self.schedule.next_ms(max(after_ms, self.starting_at_ms - 1))
        return None if due_ms is None or (self.until_ms and due_ms > self.until_ms) else due_ms

    def to_text(self) -> str:
        """Return the text that stores keep: a line of JSON for the schedule, one for the rest.

        The store compares the first line: where it changes, what was due by the old schedule is
        not made up for by the new one.

        Raises:
            EncodeError: If an argument has no form in JSON.
        """
        rest: dict[str, Any] = {"task": self.task}
        for name in _PLAIN:
            value = getattr(self, name)
            if value != _DEFAULTS[name]:
                rest[name] = dict(value) if isinstance(value, Mapping) else value
        for name in ("starting_at", "until"):
            if moment_ms := getattr(self, f"{name}_ms"):
                rest[name] = clock.to_iso(moment_ms)
        when = json.dumps(self.schedule.to_wire())
        return f"{when}\n{codecs.dumps(rest, codecs.JSON).decode()}"

    @classmethod
    def from_text(cls, name: str, text: str) -> "Entry":
        """Read what `to_text` wrote, or what a hand made of it.

        Args:
            name: The entry's name.
            text: Its text.

        Raises:
            ConfigError: If it cannot be read; the message says what is wrong.
        """
        try:
            first, _, second = text.partition("\n")
            when, rest = json.loads(first), codecs.loads(second.encode(), codecs.JSON)
        except (ValueError, DecodeError, RecursionError) as error:
            raise ConfigError(
                f"the stored schedule {name!r} is not readable ({error}); "
                "mend it, or remove it and add it again"
            ) from None
        if not isinstance(rest, dict):
            raise ConfigError(f"the stored schedule {name!r} is not readable: no map")
        only(rest, "task", "starting_at", "until", *_PLAIN)
        values = {key: rest[key] for key in _PLAIN if key in rest}
        if isinstance(values.get("args"), list):
            values["args"] = tuple(values["args"])
        for key in ("starting_at", "until"):
            if key in rest:
                values[f"{key}_ms"] = to_ms(moment_from_text(key, rest[key]))
        return cls(
            name=name, task=rest.get("task", ""), schedule=schedule_from_wire(when), **values
        )


_PLAIN: Final = (
    "args",
    "kwargs",
    "options",
    "catch_up",
    "max_age_s",
    "overlap",
    "max_runs",
    "source",
)
_DEFAULTS: Final[Mapping[str, Any]] = {
    "args": (),
    "kwargs": {},
    "options": {},
    "catch_up": "all",
    "max_age_s": MAX_AGE_S,
    "overlap": "allow",
    "max_runs": 0,
    "source": None,
}


def check_name(name: Any) -> str:
    """Return the name of a schedule, checked.

    Raises:
        ConfigError: Unless it is printable text of 1 to 200 bytes.
    """
    good = isinstance(name, str) and name.isprintable() and name.strip() == name
    if not good or not 0 < len(name.encode(errors="replace")) <= _LONGEST_NAME:
        raise ConfigError(f"schedule name {name!r:.80} is not printable text of 1 to 200 bytes")
    return str(name)


def limit_ms(value: datetime | None) -> int:
    """Return `starting_at` or `until` as epoch ms, 0 for None.

    Raises:
        ConfigError: If it is not an aware datetime.
    """
    return 0 if value is None else to_ms(value)


def tick_id(app: str, name: str, due_ms: int) -> str:
    """Return the task id of a tick: the same in every process, and another for every tick.

    Args:
        app: Name of the app.
        name: Name of the schedule.
        due_ms: When it is due, as epoch ms.
    """
    digest = hashlib.sha256(f"{app}\0{name}\0{due_ms}".encode()).digest()
    return str(uuid.UUID(bytes=digest[:16], version=5))
