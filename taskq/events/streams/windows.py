"""Counts and run times by task and tumbling window, over all partitions of the log.

Quix Streams' own windows are not used. They know one clock for each partition of the topic that
they read. For a count by task that is a topic of records from all partitions of the log: how far
one partition is read ahead of another then decides what is late, and reading the same log again
gives other numbers. And an event that comes less than the grace after its window was closed by
partition is put into that window again, which is never given out: it is neither counted nor called
late. `tests/integration/test_streams_engine.py` shows both. Here lateness is decided in the log's
own partition, and what is counted is only ever added to a line.
"""

from collections.abc import Iterable
from typing import Any, Literal

from taskq.errors import ConfigError
from taskq.events.streams.frames import Row, by_partition, clock_us, remember, stamped
from taskq.events.windows import COUNTED, Line


def mark_late(frame: Any, size_s: float, lateness_s: float = 5.0) -> Any:
    """Return a frame whose rows say which window they fall into, and whether it was over.

    A window is over in a partition when a row there has a time of the window's end plus the
    lateness, or more. Rows get `window_us`, where their window begins, and `late`.

    Args:
        frame: Of a `LifecycleStream`.
        size_s: Length of a window, in seconds.
        lateness_s: How much later than the newest of its partition an event may come, in seconds.

    Raises:
        ConfigError: If a span is out of range.
    """
    if size_s <= 0 or lateness_s < 0:
        raise ConfigError(
            f"windows of {size_s:g} s, lateness of {lateness_s:g} s: use more than 0 and at least 0"
        )
    size_us, lateness_us = max(1, round(size_s * 1e6)), round(lateness_s * 1e6)
    clock = f"clock:{size_us}:{lateness_us}"

    def mark(row: Row, key: Any, state: Any) -> Iterable[tuple[Any, Row]]:
        now_us, _ = clock_us(state, clock, row)
        start_us = row["time_us"] // size_us * size_us
        late = start_us + size_us + lateness_us <= now_us
        return [(key, {**row, "window_us": start_us, "late": late})]

    return by_partition(frame, mark)


def window_lines(
    frame: Any,
    size_s: float,
    lateness_s: float = 5.0,
    *,
    late: Literal["drop", "count"] = "drop",
    keep: int = 1440,
) -> Any:
    """Return a frame of lines: for each event, its task's line of its window as it is now.

    A line has the fields of `taskq.events.windows.Line.summary`, and `late`, how many events came
    after the window was over in their partition. Of the lines of one task and `start_ms` the last
    one holds: write them under `line_key` to a compacted topic, or over each other. They equal what
    a batch over the same log counts, whoever read its partitions and in whatever order.

    Args:
        frame: Of a `LifecycleStream`, filtered as you like.
        size_s: Length of a window, in seconds.
        lateness_s: See `mark_late`.
        late: `drop` leaves late events out, `count` adds them to their line; both tell how many.
        keep: How many windows of a task are kept, to be added to; the first one goes for a new one.

    Raises:
        ConfigError: If a span is out of range, or the policy unknown.
    """
    if late not in ("drop", "count"):
        raise ConfigError(f"late={late!r} is no policy; use 'drop' or 'count'")
    if keep * size_s <= size_s + lateness_s:
        raise ConfigError(f"keep={keep} windows of {size_s:g} s: that is less than the lateness")
    size_us = max(1, round(size_s * 1e6))
    counted = frame.filter(lambda row: row["type"] in COUNTED and bool(row.get("task")))
    parts = stamped(mark_late(counted, size_s, lateness_s).apply(_part))

    def add(part: Row, state: Any) -> Row:
        name = f"line:{part['window_us']}"
        before = state.get(name)
        if before is None:
            remember(state, "lines", name, keep)
        line = Line.from_state(part["window_us"], size_us, part["task"], before or {})
        line.counts["late"] += part["late"]
        if not part["late"] or late == "count":
            line.add(part["type"], part["runtime_us"])
        state.set(name, line.to_state())
        return {**line.summary(), "late": line.counts["late"]}

    # Part of the names of its topics, so that a frame can have several.
    name = f"task-{size_s:g}s-{lateness_s:g}s-{late}"
    return parts.group_by("task", name=name).apply(add, stateful=True)


def _part(row: Row) -> Row:
    """What a line needs of a row: this goes through Kafka once more, to the task's partition."""
    runtime_us = row.get("runtime_us")
    return {
        "task": row["task"],
        "type": row["type"],
        "runtime_us": runtime_us if isinstance(runtime_us, int) else 0,
        "window_us": row["window_us"],
        "late": row["late"],
    }


def line_key(line: Row) -> str:
    """Return the key of a line's record: its task and where its window begins."""
    return f"{line['task']}@{line['start_ms']}"
