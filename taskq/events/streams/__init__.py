"""Stream processing on the lifecycle log in Kafka, with Quix Streams as the engine.

Needs quixstreams: `pip install 'taskq-mq[streams]'`. `lifecycle` gives the log as a frame,
`windows` counts by task and window, `joins` finds the runs that started and ended.
"""

from taskq.events.streams.frames import Row, by_partition
from taskq.events.streams.joins import join_runs
from taskq.events.streams.lifecycle import LifecycleStream, to_row
from taskq.events.streams.windows import line_key, mark_late, window_lines

__all__ = [
    "LifecycleStream",
    "Row",
    "by_partition",
    "join_runs",
    "line_key",
    "mark_late",
    "to_row",
    "window_lines",
]
