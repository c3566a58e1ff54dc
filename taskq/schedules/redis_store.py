"""Schedules in Redis, beside the results; finality by scripts, as everywhere there."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar, cast
from urllib.parse import quote

import redis

from taskq.errors import ResultsUnavailable, TaskqError
from taskq.results.redis import RedisResults
from taskq.results.redis_scripts import Script
from taskq.schedules import redis_lua
from taskq.schedules.store import (
    MOST_MS,
    Beat,
    Claim,
    Declared,
    Mark,
    Row,
    ScheduleStore,
    Status,
)

_PART: Final = 1000
_STATE: Final = re.compile(r"([0-9]{1,15}):" * 5 + "(.*)", re.DOTALL)
Item = TypeVar("Item")


class _Link(RedisResults):
    """The connections of the results store, which ride out a restart, for other commands."""

    @property
    def first_part(self) -> str:
        return self._address.prefix

    def script(self, script: Script, keys: list[str], *arguments: Any) -> Any:
        return self._run(script, lambda again: [(keys, list(arguments))])[0]

    def _named(self, error: redis.RedisError) -> TaskqError:
        if str(error).startswith("WRONGTYPE"):
            return ResultsUnavailable(
                f"a key of the schedules at {self.url} holds another kind of value than taskq put "
                f"there; look at {self.first_part}:schedules:* with TYPE, mend or delete it"
            )
        return super()._named(error)

    def commands(self, requests: Sequence[tuple[Any, ...]]) -> list[Any]:
        return self._call(lambda again: requests)


def _text(value: bytes | None) -> str:
    # A hand may have written bytes that are no text; they come back as they were.
    return "" if value is None else value.decode("utf-8", "surrogateescape")


def _bytes(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape")


class RedisSchedules(ScheduleStore):
    """Schedules at `<prefix>:schedules:<app>:*`; see `ScheduleStore`.

    Besides what the results store is allowed, an ACL user needs the commands of hashes and sets.

    Attributes:
        url: The URL with its password masked.
    """

    def __init__(self, url: str, app: str, timeout_s: float = 5.0) -> None:
        """Read the URL; nothing is connected yet.

        Args:
            url: As of the setting `results`.
            app: Name of the app.
            timeout_s: Longest wait for a connection or an answer, in seconds.

        Raises:
            ConfigError: If the URL is malformed.
        """
        self._link = _Link(url, timeout_s)
        self.url = self._link.url
        first = f"{self._link.first_part}:schedules:{quote(app)}"
        self._keys = [f"{first}:{name}" for name in redis_lua.KEYS]

    def _run(self, script: Script, *arguments: Any) -> Any:
        return self._link.script(script, self._keys, *arguments)

    def beat(self, holder: str, token: int, ttl_ms: int, *, take: bool, done_ms: int = 0) -> Beat:
        """Renew or take the lease; see `ScheduleStore`."""
        own, lease, seconds, micros, version, epoch, done = self._run(
            redis_lua.BEAT, holder, token, ttl_ms, int(take), done_ms
        )
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        holds = _text(lease).partition(" ")[2]
        return Beat(int(own), holds, now_ms, int(version), _text(epoch), int(done))

    def release(self, holder: str, token: int) -> None:
        """Give the lease back; see `ScheduleStore`."""
        self._run(redis_lua.RELEASE, holder, token)

    def changed(self, since: int) -> tuple[int, list[Row]]:
        """Return what changed; see `ScheduleStore`."""
        version, names = self._run(redis_lua.CHANGED, since)
        found: list[Row] = []
        for part in _parts([_text(name) for name in names]):
            for name, row in zip(part, self.rows(part), strict=True):
                if row is not None or since:
                    found.append(row or Row(name, ""))
        return int(version), found

    def rows(self, names: Sequence[str]) -> list[Row | None]:
        """Return rows by name; see `ScheduleStore`."""
        if not names:
            return []
        fields = [_bytes(name) for name in names]
        requests = [("HMGET", key, *fields) for key in self._keys[:3]]
        texts, states, pauses = self._link.commands(requests)
        return [
            None if text is None else _row(name, _text(text), _text(pause), _text(state))
            for name, text, state, pause in zip(names, texts, states, pauses, strict=True)
        ]

    def declare(self, texts: Mapping[str, str], now_ms: int) -> Declared:
        """Make the declared schedules exactly these; see `ScheduleStore`."""
        words = [_bytes(word) for pair in texts.items() for word in pair]
        done = [_text(word) for word in self._run(redis_lua.DECLARE, now_ms, *words)]
        names: dict[str, list[str]] = {"added": [], "changed": [], "removed": []}
        for what, name in zip(done[::2], done[1::2], strict=True):
            names[what].append(name)
        return Declared(**names)

    def put(self, name: str, text: str, now_ms: int, *, replace: bool) -> bool:
        """Store a dynamic schedule; see `ScheduleStore`."""
        return bool(self._run(redis_lua.PUT, name, text, now_ms, int(replace)))

    def remove(self, name: str) -> bool:
        """Remove a schedule; see `ScheduleStore`."""
        return bool(self._run(redis_lua.REMOVE, _bytes(name)))

    def pause(self, name: str, note: str, now_ms: int) -> bool:
        """Pause or resume a schedule; see `ScheduleStore`."""
        return bool(self._run(redis_lua.PAUSE, name, note, now_ms))

    def restore(self, rows: Sequence[Row], declared: Sequence[str]) -> None:
        """Write back what was lost; see `ScheduleStore`."""
        known = set(declared)
        for part in _parts(rows):
            words: list[Any] = []
            for row in part:
                words += (_bytes(row.name), _bytes(row.text), _bytes(row.paused))
                words += (_state(row), int(row.name in known))
            self._run(redis_lua.RESTORE, *words)

    def claim(self, holder: str, token: int, claims: Sequence[Claim]) -> list[Status] | None:
        """Claim ticks; see `ScheduleStore`."""
        found: list[Status] = []
        for part in _parts(claims):
            words = [word for name, due, id in part for word in (_bytes(name), due, id)]
            statuses = self._run(redis_lua.CLAIM, holder, token, *words)
            if statuses is None:
                return None
            found += [cast(Status, _text(status)) for status in statuses]
        return found

    def settle(self, marks: Sequence[Mark]) -> None:
        """Record what became of ticks; see `ScheduleStore`."""
        for part in _parts(marks):
            words: list[Any] = []
            for mark in part:
                words += (_bytes(mark.name), mark.due_ms, mark.fired, mark.skipped, mark.missed)
                words += (int(mark.queued), mark.settled)
            self._run(redis_lua.SETTLE, *words)

    def close(self) -> None:
        """Close connections; see `ScheduleStore`."""
        self._link.close()


def _state(row: Row) -> str:
    numbers = (row.cursor_ms, row.queued_ms, row.fired, row.skipped, row.missed)
    return ":".join((*map(str, numbers), row.last_id))


def _row(name: str, text: str, paused: str, state: str) -> Row:
    found = _STATE.fullmatch(state)
    if found is None or int(found[1]) > MOST_MS or int(found[2]) > MOST_MS:
        return Row(name, text, paused, cursor_ms=-1)
    *numbers, last_id = found.groups()
    return Row._make((name, text, paused, *map(int, numbers), last_id))


def _parts(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), _PART):
        yield items[start : start + _PART]
