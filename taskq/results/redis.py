"""Results on Redis: one key per result, finality decided by one script per batch."""

import os
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import redis
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoPermissionError,
    NoScriptError,
    ResponseError,
)

from taskq import clock, outcome
from taskq.errors import ConfigError, ResultsUnavailable, TaskqError
from taskq.results import redis_scripts
from taskq.results.base import (
    MAX_NEWS,
    Record,
    ResultStore,
    Write,
    encode_record,
    is_terminal,
    state_of,
)
from taskq.results.redis_scripts import Script
from taskq.results.redis_url import parse_url
from taskq.results.redis_watch import RedisWatcher

_CHUNK: Final = 500
# Well below the 512 MiB and 1 GiB at which Redis ends a connection.
_CHUNK_BYTES: Final = 8 * 1024 * 1024
_REFUSED: Final = (AuthenticationError, AuthorizationError, NoPermissionError)

_Request = tuple[Any, ...]
_stores: "weakref.WeakSet[RedisResults]" = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for store in list(_stores):
        store._renew()


os.register_at_fork(after_in_child=_after_fork_in_child)


class _BrokenOff(TaskqError):
    """A connection failed in use; worth one try on a new one, unlike one that cannot be made."""

    def __init__(self, cause: redis.ConnectionError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class RedisResults(ResultStore):
    """Results in Redis >= 6 or Valkey.

    A record lives at `<prefix>:result:<id>`; its end is announced on the channel of that name. A
    connection that broke while it was idle is replaced without an error; a server that is away is
    an error at once, and the next call tries again. Waiters ride out a restart.

    An ACL user needs `~<prefix>:* &<prefix>:* +@all -@admin -@dangerous`, or less: GET, MGET, SET,
    INCRBY, TTL, EXPIRE, PEXPIREAT, UNLINK, HGETALL, HSET, HDEL, ZADD, ZREM, ZREVRANGE,
    ZRANGEBYSCORE, TIME, EVAL, EVALSHA, PUBLISH, SUBSCRIBE, UNSUBSCRIBE, PING, SELECT; for limits
    also DEL, HGET, PEXPIRE, SCAN, ZCARD and ZRANGE.
    """

    def __init__(self, url: str, timeout_s: float = 5.0) -> None:
        """Read the URL; nothing is connected yet.

        Args:
            url: See `taskq.results.redis_url.parse_url`.
            timeout_s: Longest wait for a connection or an answer, unless the URL says otherwise.

        Raises:
            ConfigError: If the URL is malformed or has an unknown option.
        """
        self._address = parse_url(url, timeout_s)
        self.url = self._address.masked
        self._result_prefix = f"{self._address.prefix}:result:"
        self._starts_prefix = f"{self._address.prefix}:starts:"
        self._notes_prefix = f"{self._address.prefix}:notes:"
        self._rules_keys = [f"{self._address.prefix}:cancels{part}" for part in ("", ":ends")]
        self._open()
        _stores.add(self)

    def _open(self) -> None:
        self._pool = self._address.open_pool()
        self._watcher = RedisWatcher(self._address.open_connection, self.fetch, self._result_prefix)

    def _renew(self) -> None:
        """Leave the parent's connections and threads to the parent."""
        self._watcher.abandon()
        self._open()

    def mark_pending(self, task_ids: Sequence[str], ttl_s: int) -> None:
        """Write PENDING for ids that have no record; see `ResultStore`."""
        record = encode_record(Record(outcome.PENDING, at_ms=clock.now_ms()))
        parts = [(keys, [record, ttl_s]) for keys in _slices(self._keys(task_ids))]
        self._run(redis_scripts.MARK, lambda again: parts)

    def store(self, writes: Sequence[Write]) -> list[bool]:
        """Store records and announce final ones; see `ResultStore`."""
        chunks = list(_chunks(writes))

        def parts(again: bool) -> list[tuple[list[str], list[Any]]]:
            return [self._store_part(chunk, again) for chunk in chunks]

        return [flag == 49 for reply in self._run(redis_scripts.STORE, parts) for flag in reply]

    def _store_part(self, writes: Sequence[Write], again: bool) -> tuple[list[str], list[Any]]:
        prefix = self._result_prefix
        keys = [prefix + write.task_id for write in writes]
        arguments: list[Any] = ["1" if again else "0"]
        for write in writes:
            arguments += (write.record, write.ttl_s)
        return keys, arguments

    def fetch(self, task_ids: Sequence[str]) -> list[bytes | None]:
        """Return each id's record, or None; see `ResultStore`."""
        requests = [("MGET", *keys) for keys in _slices(self._keys(task_ids))]
        return [record for reply in self._call(lambda again: requests) for record in reply]

    def fetch_news(
        self, task_ids: Sequence[str], after: int
    ) -> tuple[list[bytes | None], list[tuple[int, bytes]]]:
        """Return records and new cancel rules in one round trip; see `ResultStore`."""
        news = self._news(after)
        requests = [("MGET", *keys) for keys in _slices(self._keys(task_ids))]
        *replies, rules = self._call(lambda again: [*requests, news])
        records = [record for reply in replies for record in reply]
        return records, _rules(rules)

    def _news(self, after: int) -> _Request:
        return "ZRANGEBYSCORE", self._rules_keys[0], f"({after}", "+inf", "LIMIT", 0, MAX_NEWS

    def add_rule(self, rule: bytes, ends_ms: int) -> None:
        """Keep a cancel rule; see `ResultStore`."""
        part: tuple[list[str], list[Any]] = (self._rules_keys, [rule, ends_ms, clock.now_ms()])
        self._run(redis_scripts.RULE, lambda again: [part])

    def cancel(self, task_ids: Sequence[str], record: bytes, ttl_s: int) -> list[str | None]:
        """Cancel tasks that have not ended; see `ResultStore`."""
        parts: list[tuple[list[str], list[Any]]] = [
            (keys, [record, ttl_s]) for keys in _slices(self._keys(task_ids))
        ]
        replies = self._run(redis_scripts.CANCEL, lambda again: parts)
        return [state_of(letter) for reply in replies for letter in reply]

    def forget(self, task_ids: Sequence[str]) -> None:
        """Delete records; see `ResultStore`."""
        requests = [("UNLINK", *keys) for keys in _slices(self._keys(task_ids))]
        self._call(lambda again: requests)

    def count_starts(self, task_ids: Sequence[str], ttl_s: int, by: int = 1) -> list[int]:
        """Count starts of each id; see `ResultStore`."""
        keys = [self._starts_prefix + task_id for task_id in task_ids]
        parts: list[tuple[list[str], list[Any]]] = [(part, [ttl_s, by]) for part in _slices(keys)]
        replies = self._run(redis_scripts.COUNT, lambda again: parts)
        return [int(count) for reply in replies for count in reply]

    def notes(self, kind: str) -> dict[str, bytes]:
        """Return the notes of a kind; see `ResultStore`. They are the fields of one hash."""
        (found,) = self._call(lambda again: [("HGETALL", self._notes_prefix + kind)])
        # RESP2 answers with names and values in turn, RESP3 with a map.
        pairs = found.items() if isinstance(found, dict) else zip(*[iter(found)] * 2, strict=True)
        return {bytes(name).decode(errors="replace"): bytes(value) for name, value in pairs}

    def put_note(self, kind: str, name: str, value: bytes | None) -> bool:
        """Set or remove a note; see `ResultStore`."""
        key = self._notes_prefix + kind
        if value is None:
            (removed,) = self._call(lambda again: [("HDEL", key, name)])
            return bool(removed)
        (added,) = self._call(lambda again: [("HSET", key, name, value)])
        return not added

    def watch(self, task_id: str, callback: Callable[[bytes], None]) -> Callable[[], None]:
        """Call back once with the terminal record; see `ResultStore`.

        A record that is final already is handed over before this returns.
        """
        record = self.fetch([task_id])[0]
        if record is not None and is_terminal(record):
            callback(record)
            return _nothing
        return self._watcher.watch(task_id, callback)

    def ping(self) -> float:
        """Return the round trip in seconds; see `ResultStore`."""
        started = time.perf_counter()
        self._call(lambda again: [("PING",)])
        return time.perf_counter() - started

    def close(self) -> None:
        """Close connections and the listener; see `ResultStore`."""
        self._watcher.close()
        self._pool.disconnect()

    @property
    def prefix(self) -> str:
        """What every key begins with, before a colon."""
        return self._address.prefix

    def result_keys(self, task_ids: Sequence[str]) -> list[str]:
        """Return the keys of records, for scripts that look at them."""
        return self._keys(task_ids)

    def run_script(self, script: Script, parts: Sequence[tuple[list[str], list[Any]]]) -> list[Any]:
        """Run a script once per part (keys, arguments), all in one round trip.

        A connection that breaks is replaced and the whole sent again, so a part may run twice.

        Raises:
            ResultsUnavailable: If Redis cannot be reached.
            ConfigError: If it refuses.
        """
        return self._run(script, lambda again: list(parts))

    def scan(self, pattern: str) -> list[str]:
        """Return the keys that match a pattern of Redis; for looking, not for every day.

        Args:
            pattern: What follows `prefix` and a colon.
        """
        found: set[bytes] = set()
        cursor: Any = b"0"
        while True:
            match = f"{self.prefix}:{pattern}"
            request: _Request = ("SCAN", cursor, "MATCH", match, "COUNT", 1000)
            ((cursor, keys),) = self._call(_always(request))
            found.update(keys)
            if int(cursor) == 0:
                return sorted(key.decode("utf-8", "replace") for key in found)

    def server_time(self) -> tuple[int, int]:
        """Return the server's clock: (epoch seconds, microseconds)."""
        ((seconds, micros),) = self._call(lambda again: [("TIME",)])
        return int(seconds), int(micros)

    def read(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the values of keys; None where there is none."""
        requests = [("MGET", *part) for part in _slices(list(keys))]
        return [value for reply in self._call(lambda again: requests) for value in reply]

    def _keys(self, task_ids: Sequence[str]) -> list[str]:
        return [self._result_prefix + task_id for task_id in task_ids]

    def run_with_news(
        self, script: Script, parts: Sequence[tuple[list[str], list[Any]]], after: int
    ) -> tuple[list[Any], list[tuple[int, bytes]]]:
        """Run a script as `run_script` does, and fetch cancel rules in the same round trip.

        Args:
            script: The script.
            parts: Its (keys, arguments).
            after: See `fetch_news`.
        """
        *replies, rules = self._run(script, lambda again: list(parts), [self._news(after)])
        return replies, _rules(rules)

    def _run(
        self,
        script: Script,
        parts: Callable[[bool], list[tuple[list[str], list[Any]]]],
        more: Sequence[_Request] = (),
    ) -> list[Any]:
        """Run a script once per part, and `more` requests, all in one round trip."""
        try:
            return self._call(lambda again: [*(script.cached(*p) for p in parts(again)), *more])
        except NoScriptError:
            # Redis forgets scripts when it restarts. Parts that ran before it did may run twice.
            return self._call(lambda again: [*(script.whole(*p) for p in parts(True)), *more])

    def _call(self, requests: Callable[[bool], Sequence[_Request]]) -> list[Any]:
        """Send requests together and return their replies.

        Args:
            requests: Makes them; its argument says whether they may have been carried out already.
        """
        try:
            try:
                return self._exchange(requests(False))
            except _BrokenOff:
                # The server may have been restarted since this connection was last used.
                return self._exchange(requests(True))
        except NoScriptError:
            raise
        except _BrokenOff as error:
            raise self._named(error.cause) from error.cause
        except redis.RedisError as error:
            raise self._named(error) from error

    def _exchange(self, requests: Sequence[_Request]) -> list[Any]:
        if not requests:
            return []
        pool: Any = self._pool
        connection = pool.get_connection()
        try:
            connection.send_packed_command(connection.pack_commands(requests))
            replies = [_reply(connection) for _ in requests]
        except redis.ConnectionError as error:
            connection.disconnect()
            raise _BrokenOff(error) from error
        except BaseException:
            # Also a time limit that is raised in the middle: the next user of this connection
            # would read our replies.
            connection.disconnect()
            raise
        finally:
            pool.release(connection)
        for reply in replies:
            if isinstance(reply, ResponseError):
                raise reply
        return replies

    def _named(self, error: redis.RedisError) -> TaskqError:
        text = str(error).rstrip(".")
        if isinstance(error, NoPermissionError):
            return ConfigError(f"{self.url} does not allow what taskq needs: {text}")
        if isinstance(error, _REFUSED):
            return ConfigError(f"{self.url} refused user or password: {text}")
        if isinstance(error, ResponseError) and "DB index" in text:
            return ConfigError(f"{self.url} has no such database: {text}")
        return ResultsUnavailable(f"cannot use {self.url}: {text}; is Redis running there?")


def _reply(connection: Any) -> Any:
    """Return a reply; a refusal is returned too, as the replies after it must still be read."""
    try:
        return connection.read_response()
    except ResponseError as error:
        return error


def _rules(found: Sequence[bytes]) -> list[tuple[int, bytes]]:
    return [(int(rule[:16]), rule[16:]) for rule in found]


def _always(request: _Request) -> Callable[[bool], Sequence[_Request]]:
    return lambda again: [request]


def _nothing() -> None:
    """End a watch that has ended."""


def _slices(keys: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(keys), _CHUNK):
        yield keys[start : start + _CHUNK]


def _chunks(writes: Sequence[Write]) -> Iterator[Sequence[Write]]:
    start = size_bytes = 0
    for end, write in enumerate(writes):
        if end - start == _CHUNK or (end > start and size_bytes > _CHUNK_BYTES):
            yield writes[start:end]
            start, size_bytes = end, 0
        size_bytes += len(write.record)
    if start < len(writes):
        yield writes[start:]
