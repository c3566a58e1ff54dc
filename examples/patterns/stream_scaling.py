"""Three members share twelve partitions of a stream; one joins, one leaves: nothing lost or double.

python examples/patterns/stream_scaling.py     (TASKQ_KAFKA_BOOTSTRAP_SERVERS names Kafka)
"""

import itertools
import json
import subprocess
import sys
import time
from collections import Counter
from typing import Any

from _stream_log import StreamLog, read_results

from taskq.events import Event
from taskq.events.kafka.client import make
from taskq.events.streams import LifecycleStream

PARTITIONS = 12
BATCH = 240


def work(topic: str, member: str) -> None:
    """Be a member of the group until SIGTERM: count each task's events, in its own state."""
    stream = LifecycleStream(json.loads(sys.stdin.read()), f"{topic}-group", topic, member=member)

    def count(row: dict[str, Any], state: Any) -> dict[str, Any]:
        number = state.get("count", 0) + 1
        state.set("count", number)
        return {"task_id": row["task_id"], "number": number, "member": member}

    counted = stream.frame.apply(count, stateful=True)
    stream.write(counted, f"{topic}-counts", lambda row: str(row["task_id"]))
    stream.run()


class Group:
    """The members, as processes."""

    def __init__(self, log: StreamLog) -> None:
        self._log = log
        self._members: dict[str, subprocess.Popen[bytes]] = {}

    def join(self, name: str) -> None:
        """Start a member."""
        words = [sys.executable, *sys.orig_argv[1:-1], __file__, self._log.topic, name]
        process = subprocess.Popen(words, stdin=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(json.dumps(self._log.properties).encode())
        process.stdin.close()
        self._members[name] = process

    def leave(self, name: str) -> None:
        """End a member as an operator does."""
        process = self._members.pop(name)
        process.terminate()
        assert process.wait(60) == 0, f"member {name} ended badly"

    def wait_until_shared(self) -> None:
        """Wait until the members have equal parts of the log."""
        name = f"{self._log.topic}-group"
        admin = make("AdminClient", self._log.properties)
        while True:
            assert all(p.poll() is None for p in self._members.values()), "a member is gone"
            found = admin.describe_consumer_groups([name])[name].result(60).members
            parts = [
                sum(place.topic == self._log.topic for place in member.assignment.topic_partitions)
                for member in found
            ]
            if parts == [PARTITIONS // len(self._members)] * len(self._members):
                print(f"{len(parts)} members have {parts[0]} partitions each")
                return
            time.sleep(0.1)

    def end(self) -> None:
        """Kill whoever is left."""
        for process in self._members.values():
            process.kill()
            process.wait()


def main() -> None:
    log = StreamLog(PARTITIONS)
    group = Group(log)
    numbers = itertools.count(1)

    def write() -> None:
        batch = [
            Event("/taskq/app/n/1", next(numbers), "task.sent", 1, {"task_id": f"id-{n}"})
            for n in range(BATCH)
        ]
        log.write(batch)

    try:
        for name in ("a", "b", "c"):
            group.join(name)
            # Into the group that is about to change, and into the one that has.
            write()
            group.wait_until_shared()
        write()
        group.leave("a")
        write()
        stored = read_results(log.properties, f"{log.topic}-counts", 5 * BATCH)
        for name in ("b", "c"):
            group.leave(name)
    finally:
        group.end()

    # A state that stayed behind would count from 1 again, a transaction that ran twice to 6.
    seen = Counter((row["task_id"], row["number"]) for row in stored)
    assert seen == Counter((f"id-{n}", k) for n in range(BATCH) for k in range(1, 6))
    print(f"{len(stored)} events counted once, by {Counter(row['member'] for row in stored)}")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        work(sys.argv[1], sys.argv[2])
    else:
        main()
