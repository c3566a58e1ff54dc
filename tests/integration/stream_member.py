"""A member of a group of streams, as a process: windows and runs of a log, to be killed.

    python stream_member.py BOOTSTRAP TOPIC GROUP MEMBER [at-least-once]

It prints "reading" once it has handled a row; a line of JSON when it ends.
"""

import json
import sys
from typing import Any

from taskq.events.streams import LifecycleStream, Row, join_runs, window_lines
from taskq.events.streams.windows import line_key

WINDOW_S = 10
COUNT_WINDOW_S = 30
LATENESS_S = 3
TTL_S = 20
FAST: dict[str, Any] = {"session.timeout.ms": 6000, "heartbeat.interval.ms": 500, "log_level": 0}


def main(bootstrap: str, topic: str, group: str, member: str, guarantee: str = "") -> None:
    stream = LifecycleStream(
        {"bootstrap.servers": bootstrap, **FAST},
        group,
        topic,
        member=member,
        exactly_once=guarantee != "at-least-once",
        commit_interval_s=0.5,
    )
    partitions: set[int] = set()

    def note(row: Row) -> Row:
        from quixstreams import message_context

        if not partitions:
            print("reading", flush=True)
        partitions.add(message_context().partition)
        return row

    frame = stream.frame.apply(note)
    lines = window_lines(frame, WINDOW_S, LATENESS_S)
    stream.write(lines, f"{topic}-lines", line_key, cleanup="compact")
    counted = window_lines(frame, COUNT_WINDOW_S, LATENESS_S, late="count")
    stream.write(counted, f"{topic}-counted", line_key, cleanup="compact")
    stream.write(join_runs(frame, TTL_S), f"{topic}-runs", lambda run: str(run["task_id"]))
    stream.run()
    print(
        json.dumps(
            {
                "partitions": sorted(partitions),
                "duplicates": stream.duplicates,
                "unreadable": stream.unreadable,
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
