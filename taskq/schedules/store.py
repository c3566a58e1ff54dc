"""What every store of schedules promises: definitions, what has fired, and who is the leader.

The lease is a matter of time; correctness does not rest on it. A tick is claimed under the leader's
token before it is sent, and settled after the broker has confirmed it; a tick that was claimed and
not settled is the next leader's to look after. `tests/contract/` holds the suite for all stores.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Final, Literal, NamedTuple, cast

from taskq.errors import ConfigError

_DRIVERS: Final = {
    "redis": ("taskq.schedules.redis_store", "RedisSchedules"),
    "rediss": ("taskq.schedules.redis_store", "RedisSchedules"),
    "unix": ("taskq.schedules.redis_store", "RedisSchedules"),
    "sqlite": ("taskq.schedules.sqlite_store", "SqliteSchedules"),
    "memory": ("taskq.schedules.sqlite_store", "SqliteSchedules"),
}

MOST_MS: Final = 253_402_300_799_999
"""The end of the year 9999, and of the calendar: a later moment in a store is a hand's mistake."""

Status = Literal["fresh", "open", "done"]
"""Of a claim: nobody had it; it was claimed but never settled; it was settled."""


class Row(NamedTuple):
    """What is stored of one schedule.

    Attributes:
        name: Its name.
        text: Its definition, see `Entry.to_text`; empty when it was removed.
        paused: Why it is paused, as JSON; empty when it is not.
        cursor_ms: Every tick up to here was dealt with, as epoch ms.
        queued_ms: The tick that waits for the run before it to end; 0 for none.
        fired: Ticks that were sent.
        skipped: Ticks that were left out because of an overlap.
        missed: Ticks that were too old.
        last_id: Task id of the last tick that was sent.
    """

    name: str
    text: str
    paused: str = ""
    cursor_ms: int = 0
    queued_ms: int = 0
    fired: int = 0
    skipped: int = 0
    missed: int = 0
    last_id: str = ""


class Claim(NamedTuple):
    """A tick that is about to be sent.

    Attributes:
        name: Its schedule.
        due_ms: When it is due, as epoch ms.
        task_id: See `taskq.schedules.entry.tick_id`.
    """

    name: str
    due_ms: int
    task_id: str


class Mark(NamedTuple):
    """What became of ticks of one schedule.

    Attributes:
        name: The schedule.
        due_ms: The cursor moves up to here, never back.
        fired: Task id of the tick if it was sent; its claim ends. Counted once.
        skipped: Ticks to be counted as such.
        missed: Ticks to be counted as such.
        queued: Whether this tick waits from now on.
        settled: Task id of a claim that ends without having been sent.
    """

    name: str
    due_ms: int
    fired: str = ""
    skipped: int = 0
    missed: int = 0
    queued: bool = False
    settled: str = ""


class Beat(NamedTuple):
    """The answer to a scheduler's sign of life.

    Attributes:
        token: The lease's, when it is the caller's; else 0.
        holder: Who holds the lease; empty for nobody.
        now_ms: The store's clock, as epoch ms.
        version: Goes up with every change of a definition or a pause.
        epoch: Identifies the store's content; empty when there is none: it is new, or was emptied.
        done_ms: What the leaders said of how far they are, as epoch ms; 0 for nothing yet.
    """

    token: int
    holder: str
    now_ms: int
    version: int
    epoch: str
    done_ms: int = 0


class Declared(NamedTuple):
    """What a deploy changed.

    Attributes:
        added: Names.
        changed: Names.
        removed: Names.
    """

    added: list[str]
    changed: list[str]
    removed: list[str]


class ScheduleStore(ABC):
    """Keeps the schedules of one app; blocking, thread-safe.

    Every method raises `ResultsUnavailable` when the store cannot be reached in time, and
    `ConfigError` when it refuses.

    Attributes:
        url: The URL with its password masked.
    """

    url: str

    @abstractmethod
    def beat(self, holder: str, token: int, ttl_ms: int, *, take: bool, done_ms: int = 0) -> Beat:
        """Renew the lease, or take it when it is free; one round trip.

        Args:
            holder: Unique name of this scheduler.
            token: The token of the last beat, 0 when it was not the leader.
            ttl_ms: How long the lease lasts without another beat.
            take: Whether to take the lease when it is free, and to begin a new epoch if need be.
            done_ms: From the leader: every tick up to here was dealt with, of all schedules. The
                others remember it for the day on which the store is emptied and the leader gone.
        """

    @abstractmethod
    def release(self, holder: str, token: int) -> None:
        """Give the lease back, if it is this one's."""

    @abstractmethod
    def changed(self, since: int) -> tuple[int, list[Row]]:
        """Return the version, and the rows that changed after another version.

        Rows of removed schedules have an empty text. Version 0 asks for all that there are.
        """

    @abstractmethod
    def rows(self, names: Sequence[str]) -> list[Row | None]:
        """Return rows by name; None for one that is not there."""

    @abstractmethod
    def declare(self, texts: Mapping[str, str], now_ms: int) -> Declared:
        """Make the declared schedules exactly these; dynamic ones stay.

        A dynamic one of the same name becomes a declared one. What has fired is kept.

        Args:
            texts: Name to definition.
            now_ms: New and rescheduled ones are due after this moment.
        """

    @abstractmethod
    def put(self, name: str, text: str, now_ms: int, *, replace: bool) -> bool:
        """Store a dynamic schedule, and return False where one of that name is there.

        Args:
            name: Its name.
            text: Its definition.
            now_ms: It is due after this moment, when it is new or rescheduled.
            replace: Whether one that is there is replaced, a declared one too.
        """

    @abstractmethod
    def remove(self, name: str) -> bool:
        """Remove a schedule, and return whether it was there."""

    @abstractmethod
    def pause(self, name: str, note: str, now_ms: int) -> bool:
        """Pause a schedule, or resume it with an empty note; return whether it is there.

        Args:
            name: Its name.
            note: Why, as JSON.
            now_ms: After resuming it is due after this moment.
        """

    @abstractmethod
    def restore(self, rows: Sequence[Row], declared: Sequence[str]) -> None:
        """Write back what an emptied store has lost; what is there stays, cursors never go back.

        Args:
            rows: What is known.
            declared: Names of those that were declared.
        """

    @abstractmethod
    def claim(self, holder: str, token: int, claims: Sequence[Claim]) -> list[Status] | None:
        """Claim ticks in one step, and return None when the lease is another's by now."""

    @abstractmethod
    def settle(self, marks: Sequence[Mark]) -> None:
        """Record what became of ticks; safe to repeat, and from one who is no longer the leader."""

    @abstractmethod
    def close(self) -> None:
        """Close connections; may be called twice."""


def settled(row: Row, mark: Mark, ended: bool) -> Row:
    """Return a row after what became of a tick; the scripts of Redis do the same.

    Args:
        row: The row before.
        mark: What became of it.
        ended: Whether its claim was still open.
    """
    fresh = mark.due_ms > row.cursor_ms
    waited = mark.due_ms == row.queued_ms
    if mark.fired:
        if ended or fresh:
            row = row._replace(fired=row.fired + 1, last_id=mark.fired)
        if waited:
            row = row._replace(queued_ms=0)
    if fresh:
        return row._replace(
            cursor_ms=mark.due_ms,
            skipped=row.skipped + mark.skipped,
            missed=row.missed + mark.missed,
            queued_ms=mark.due_ms if mark.queued else row.queued_ms,
        )
    if waited and mark.skipped:
        return row._replace(skipped=row.skipped + mark.skipped, queued_ms=0)
    return row


def open_schedules(url: str, app: str, timeout_s: float) -> ScheduleStore:
    """Return the store of schedules at the URL of a results store; it connects at first use.

    Args:
        url: `redis://`, `rediss://`, `unix://`, `sqlite:///path` or `memory://`.
        app: Name of the app whose schedules these are.
        timeout_s: How long an operation may take, in seconds.

    Raises:
        ConfigError: If the URL is not usable.
    """
    scheme = url.partition(":")[0]
    if scheme not in _DRIVERS:
        raise ConfigError(f"schedules cannot be kept at {scheme}://; use redis:// or sqlite:///")
    module, name = _DRIVERS[scheme]
    driver = cast(Callable[[str, str, float], ScheduleStore], getattr(import_module(module), name))
    return driver(url, app, timeout_s)
