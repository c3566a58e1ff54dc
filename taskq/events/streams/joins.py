"""Runs: the start of each attempt joined with its end, in one log.

Quix Streams joins two topics. Both sides lie in one here, which it refuses ("originating from the
same topic is not yet supported"), and its joins say nothing of what never finds a partner. This
join keeps what waits in the state of the partition, where both events of a run lie.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final

from taskq.errors import ConfigError
from taskq.events.streams.frames import Row, by_partition, clock_us

ENDS: Final = frozenset(
    f"task.{word}"
    for word in (
        "succeeded",
        "failed",
        "retried",
        "requeued",
        "deferred",
        "parked",
        "cancelled",
        "ignored",
    )
)
"""What a run that started can come to."""
HOUR_S: Final = 3600.0
_EXPIRED_AT_ONCE: Final = 1000
"""What has waited too long is told in parts, so that a jump of time does not stop the stream."""


def join_runs(frame: Any, ttl_s: float = HOUR_S) -> Any:
    """Return a frame of runs: each start with its end, and what found no partner in time.

    A row has `task_id`, `task`, `attempt`, `source` (the worker), `started_us`, `ended_us`,
    `duration_us` and `ended` (such as `task.succeeded`). Without a partner, after `ttl_s` of the
    partition's time, the fields of the other side are None: a start without an end is a worker that
    died, or a run that is longer than that; an end without a start, one that was not in the log.

    Args:
        frame: Of a `LifecycleStream`; its key must be the record's.
        ttl_s: How long one side waits for the other, in seconds.

    Raises:
        ConfigError: If `ttl_s` is not above 0.
    """
    if ttl_s <= 0:
        raise ConfigError(f"ttl_s is {ttl_s:g}; it must be above 0")
    ttl_us = round(ttl_s * 1e6)

    def join(row: Row, key: Any, state: Any) -> Iterable[tuple[Any, Row]]:
        _, now_us = clock_us(state, f"runs:{ttl_us}:clock", row)
        waiting = _Waiting(state, f"runs:{ttl_us}", ttl_us)
        # First, so that what is over is over, whatever comes now.
        yield from waiting.expired(now_us)
        if row["type"] == "task.started" or row["type"] in ENDS:
            yield from waiting.take(row, now_us)

    return by_partition(frame, join)


class _Waiting:
    """The sides that wait, in the state of a partition, and a queue of when each gives up.

    The time of a partition only grows, so what came first gives up first.
    """

    def __init__(self, state: Any, name: str, ttl_us: int) -> None:
        self._state = state
        self._name = name
        self._ttl_us = ttl_us

    def take(self, row: Row, now_us: int) -> Iterator[tuple[Any, Row]]:
        state = self._state
        place = f"{self._name}:{row['task_id']}:{row['attempt']}:{row['source']}"
        side = _side(row)
        other = state.get(place)
        if other is None:
            # A task that ends before it starts, such as a cancelled one, has no run.
            if side["ended"] is None or row.get("runtime_us"):
                self._wait(place, side, now_us)
        elif (other["ended"] is None) == (side["ended"] is None):
            # The same worker tells the same side again: the first one's partner will not come.
            yield _key(other), _without_place(other)
            self._wait(place, side, now_us)
        else:
            start, end = (other, side) if other["ended"] is None else (side, other)
            duration_us = end["ended_us"] - start["started_us"]
            run = {**end, "started_us": start["started_us"], "duration_us": duration_us}
            state.delete(place)
            yield _key(run), run

    def _wait(self, place: str, side: Row, now_us: int) -> None:
        state, tail = self._state, int(self._state.get(f"{self._name}:tail", 0))
        state.set(place, {**side, "place": tail})
        state.set(f"{self._name}:at:{tail}", [place, now_us + self._ttl_us])
        state.set(f"{self._name}:tail", tail + 1)

    def expired(self, now_us: int) -> Iterator[tuple[Any, Row]]:
        state = self._state
        head = begin = int(state.get(f"{self._name}:head", 0))
        tail = int(state.get(f"{self._name}:tail", 0))
        while head < min(tail, begin + _EXPIRED_AT_ONCE):
            place, until_us = state.get(f"{self._name}:at:{head}")
            if until_us > now_us:
                break
            side = state.get(place)
            # Another run of this name may wait by now, under a later number.
            if side is not None and side["place"] == head:
                state.delete(place)
                yield _key(side), _without_place(side)
            state.delete(f"{self._name}:at:{head}")
            head += 1
        if head != begin:
            state.set(f"{self._name}:head", head)


def _without_place(side: Row) -> Row:
    return {name: value for name, value in side.items() if name != "place"}


def _key(run: Row) -> bytes:
    return str(run["task_id"]).encode()


def _side(row: Row) -> Row:
    started = row["type"] == "task.started"
    return {
        "task_id": row["task_id"],
        "task": row.get("task"),
        "attempt": row["attempt"],
        "source": row["source"],
        "started_us": row["time_us"] if started else None,
        "ended_us": None if started else row["time_us"],
        "duration_us": None,
        "ended": None if started else row["type"],
    }
