"""Members of a group: one is killed in the middle, one handler takes long, one pauses."""

import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka_helpers import committed, fill, make_topic, numbered
from kafka_server import GivenKafka, KafkaServer
from processes import wait_for

from taskq.events import Event, Watermark

pytest.importorskip("confluent_kafka")

from taskq.events.kafka import EventConsumer, Producer

Kafka = KafkaServer | GivenKafka
ROOT = Path(__file__).parents[2]
LIMIT_S = 90

MEMBER = """
import json, os, sys, time
from taskq.events.kafka import EventConsumer, current_record

bootstrap, group, topic, pace_s = sys.argv[1:]

def handler(event):
    # The effect: a line that survives a kill, as a row in a database would.
    place = current_record().partition
    line = json.dumps([place, event.source, event.sequence, event.task_id, os.getpid()])
    os.write(1, line.encode() + b"\\n")
    time.sleep(float(pace_s))

properties = {"bootstrap.servers": bootstrap, "session.timeout.ms": 6000}
EventConsumer(properties, group, [topic], concurrency=3).run(handler)
"""


@pytest.fixture
def given(shared_kafka: Kafka) -> dict[str, Any]:
    """Properties of clients."""
    return {"bootstrap.servers": shared_kafka.bootstrap}


@pytest.fixture
def group() -> str:
    """A group of this test alone."""
    return f"g-{uuid.uuid4().hex[:8]}"


class Members:
    """Processes of one group; what their handlers did is in one file, in order."""

    def __init__(self, given: dict[str, Any], group: str, topic: str, path: Path) -> None:
        self._words = [given["bootstrap.servers"], group, topic]
        self._path = path
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, pace_s: float) -> subprocess.Popen[bytes]:
        with self._path.open("ab") as effects:
            process = subprocess.Popen(
                [sys.executable, "-c", MEMBER, *self._words, str(pace_s)],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=effects,
            )
        self.processes.append(process)
        return process

    def effects(self) -> list[Any]:
        return [json.loads(line) for line in self._path.read_text().splitlines()]

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def members(given: dict[str, Any], group: str, tmp_path: Path) -> Iterator[Members]:
    topic = make_topic(given)
    made = Members(given, group, topic, tmp_path / "effects")
    # What the bridge sends twice after a kill is in the topic twice.
    batch = numbered(300, keys=20)
    fill(given, topic, [*batch[:200], *batch[150:]])
    yield made
    made.end()


def test_a_member_that_is_killed_in_a_batch_loses_nothing(members: Members) -> None:
    """The next one gets what was not committed; a watermark beside the effects drops the rest."""
    first = members.start(0.05)
    wait_for(lambda: len(members.effects()) >= 20, LIMIT_S, "the middle of a batch")
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = members.effects()
    members.start(0)
    wanted = set(range(1, 301))
    wait_for(lambda: {e[2] for e in members.effects()} >= wanted, LIMIT_S, "all events")

    effects = members.effects()
    marks: dict[int, Watermark] = {}
    last: dict[str, int] = {}
    once: list[int] = []
    again = 0
    seen: set[int] = set()
    for place, source, sequence, key, _ in effects:
        again += sequence in seen
        seen.add(sequence)
        # Handlers of different keys run side by side: a mark for each key, in each partition.
        mark = marks.setdefault(place, Watermark())
        if mark.new(f"{source} {key}", sequence, contiguous=False):
            assert sequence > last.get(key, 0), "the order of a key was lost"
            last[key] = sequence
            once.append(sequence)
    assert len(before) < 300
    assert again > 0, "what was handled but not committed came again"
    assert sorted(once) == sorted(wanted)


def test_commits_never_pass_an_event_that_is_not_finished(
    given: dict[str, Any], group: str
) -> None:
    """One of ten threads takes longer than Kafka allows between two polls; it stays a member."""
    topic = make_topic(given, 1)
    fill(given, topic, numbered(100, keys=10))
    release = threading.Event()
    done: list[int] = []

    def handler(event: Event) -> None:
        if event.sequence == 91:
            assert release.wait(2 * LIMIT_S)
        done.append(event.sequence)

    short = {**given, "session.timeout.ms": 10_000, "max.poll.interval.ms": 10_000}
    consumer = EventConsumer(short, group, [topic], concurrency=10)
    assigned: list[int] = []
    before = consumer._reader.got
    consumer._reader.got = lambda client, parts: (assigned.append(1), before(client, parts))[1]
    thread = threading.Thread(target=consumer.run, args=(handler,))
    thread.start()
    try:
        # What is behind it may come with a later batch, which waits for it.
        before_it = set(range(1, 91))
        wait_for(lambda: before_it <= set(done), LIMIT_S, "what is in front of it")
        held = threading.Event()
        held.wait(11)
        reached = committed(given, group, topic).get(0, 0)
        release.set()
        wait_for(lambda: len(set(done)) == 100, LIMIT_S, "all events")
        wait_for(lambda: committed(given, group, topic) == {0: 100}, LIMIT_S, "the last commit")
    finally:
        release.set()
        consumer.stop()
        thread.join(60)
        consumer.close()

    assert reached <= 90, "a commit passed the event in hand"
    assert len(done) == 100, "none was handled twice"
    assert assigned == [1], "it was thrown out of the group"


def test_a_paused_member_takes_nothing_and_goes_on(given: dict[str, Any], group: str) -> None:
    """Also of partitions that it gets while it is paused."""
    topic = make_topic(given)
    fill(given, topic, numbered(30))
    consumer = EventConsumer(given, group, [topic])
    got: list[int] = []
    turns: list[int] = []

    def handler(event: Event) -> None:
        got.append(event.sequence)

    def turned(count: int) -> Any:
        turns.clear()
        return lambda: turns.append(1) or len(turns) > count

    consumer.pause()
    consumer.run(handler, until=turned(30))
    assert got == []
    consumer.resume()
    consumer.run(handler, until=lambda: len(got) >= 30)
    consumer.pause()
    fill(given, topic, numbered(10, first=31))
    consumer.run(handler, until=turned(20))
    assert sorted(got) == list(range(1, 31))
    consumer.resume()
    consumer.run(handler, until=lambda: len(got) >= 40)
    consumer.close()

    assert sorted(got) == list(range(1, 41))


def test_versions_that_are_not_known_are_taken_and_counted(
    given: dict[str, Any], group: str
) -> None:
    """A later taskq may tell more; what it says in known fields is still true."""
    topic = make_topic(given, 1)
    source = "/taskq/a/n/1"
    items = []
    for number, (kind, version) in enumerate([("task.sent", 1), ("task.dreamt", 1), ("x.y", 2)], 1):
        items.append(
            json.dumps(
                {
                    "specversion": "1.0",
                    "source": source,
                    "sequence": f"{number:016x}",
                    "type": f"io.taskq.{kind}",
                    "time": "2026-11-01T00:00:00.5+00:00",
                    "dataschema": f"urn:taskq:events:v{version}:{kind}",
                    "later": {"field": 1},
                    "data": {"task_id": "k"},
                }
            ).encode()
        )
    with Producer(given) as producer:
        for item in items:
            producer.send(topic, item, key="k")
    got: list[Event] = []
    consumer = EventConsumer(given, group, [topic])
    consumer.run(got.append, until=lambda: len(got) >= 3)
    consumer.close()

    assert [event.type for event in got] == ["task.sent", "task.dreamt", "x.y"]
    assert (consumer.unknown, consumer.unreadable) == (1, 0)
    assert got[0].time_us % 1_000_000 == 500_000


def test_clocks_that_differ_decide_nothing(given: dict[str, Any], group: str) -> None:
    """Order and duplicates go by source and sequence; times are only told."""
    topic = make_topic(given, 1)
    ahead, behind = "/taskq/a/ahead/1", "/taskq/a/behind/1"
    what = []
    for n in range(1, 11):
        # One clock runs an hour fast, the other backwards.
        what.append(Event(ahead, n, "task.started", 3_600_000_000 + n, {"task_id": "k"}))
        what.append(Event(behind, n, "task.succeeded", 1_000_000 - n, {"task_id": "k"}))
    fill(given, topic, [*what, *what[6:]])
    got: list[Event] = []
    consumer = EventConsumer(given, group, [topic])
    consumer.run(got.append, until=lambda: len(got) + consumer.duplicates >= 34)
    consumer.close()

    assert [(event.source, event.sequence) for event in got] == [
        (source, n) for n in range(1, 11) for source in (ahead, behind)
    ]
    assert consumer.duplicates == 14
