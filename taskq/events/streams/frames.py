"""State of a partition, and its clock, for functions on frames of Quix Streams.

Quix Streams keeps state for each key of a record. What is true of a whole partition (how far each
source has come, what time it is) needs a key that all records share, and the own key back behind
it. The engine's windows do the same inside, for which `StreamingDataFrame.stream` and
`Stream.add_transform` are there.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any, Final

PARTITION_KEY: Final = b"\x00taskq"
"""No task has this id, so that states of keys and of the partition do not meet."""
Row = dict[str, Any]
"""An event as a frame carries it; see `lifecycle.to_row`."""
PartitionFunction = Callable[[Row, Any, Any], Iterable[tuple[Any, Row]]]


def by_partition(frame: Any, function: PartitionFunction) -> Any:
    """Return a frame of what a function makes of each row with the state of its partition.

    Args:
        frame: A `StreamingDataFrame`.
        function: Called with (row, key, state); yields (key, row), none or several. The state is
            Quix Streams' own: changes count once the row's checkpoint is committed.
    """

    def pack(value: Row, key: Any, timestamp: int, headers: Any) -> tuple[Any, Any, int, Any]:
        return (value, key), PARTITION_KEY, timestamp, headers

    def apply(packed: Any, key: Any, timestamp: int, headers: Any, state: Any) -> Any:
        row, own_key = packed
        return list(function(row, own_key, state))

    def unpack(packed: Any, key: Any, timestamp: int, headers: Any) -> tuple[Any, Any, int, Any]:
        own_key, row = packed
        return row, own_key, timestamp, headers

    packed = _transformed(frame, pack)
    done = packed.apply(apply, stateful=True, metadata=True, expand=True)
    return _transformed(done, unpack)


def remember(state: Any, ring: str, name: str, capacity: int) -> None:
    """Give a name that is new in a state a place in a ring; whoever had it is deleted.

    Not by age: a clock that runs ahead would make all others look old. Nor by Quix Streams' own
    expiry, which goes by time as well.

    Args:
        state: Where the name's value is kept, too.
        ring: Name of the ring.
        name: Of the value.
        capacity: How many names there can be.
    """
    count = int(state.get(f"{ring}:count", 0))
    place = f"{ring}:{count % capacity}"
    former = state.get(place)
    if former is not None:
        state.delete(former)
    state.set(place, name)
    state.set(f"{ring}:count", count + 1)


def stamped(frame: Any) -> Any:
    """Return a frame whose timestamps are the present, for rows on their way to a topic.

    Kafka deletes by them: events of last week, read again, would be gone before they arrive.

    Args:
        frame: A `StreamingDataFrame`.
    """
    return frame.set_timestamp(lambda *_: time.time_ns() // 1_000_000)


def _transformed(frame: Any, function: Any) -> Any:
    stream = frame.stream.add_transform(function, expand=False)
    return frame.__dataframe_clone__(stream=stream)


def clock_us(state: Any, name: str, row: Row) -> tuple[int, int]:
    """Return the partition's time before and after a row, in epoch microseconds.

    The time is that of the newest row. It depends on the order of the partition alone, so that
    whoever reads the partition comes to the same: a member that takes it over, or a batch.

    Args:
        state: Of the partition.
        name: Of this clock.
        row: The row that has come.
    """
    before = int(state.get(name, 0))
    after = max(before, row["clock_us"])
    if after != before:
        state.set(name, after)
    return before, after
