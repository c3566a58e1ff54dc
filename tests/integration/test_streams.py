"""Streams on a real Kafka: equal to a batch over the log, whoever is killed, joins or leaves."""

import itertools
import json
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import stream_member as member
from kafka_helpers import Stored, TopicReader, make_topics, read_topic
from kafka_server import GivenKafka, KafkaServer
from processes import wait_for
from stream_batch import Expected, lines_of_log, make_log, runs_of_log

from taskq.errors import ConfigError
from taskq.events import Event, to_cloudevent

pytest.importorskip("quixstreams")

from taskq.events.kafka import Producer

Kafka = KafkaServer | GivenKafka
ROOT = Path(__file__).parents[2]
LONG_S = 240.0
pytestmark = pytest.mark.timeout(500)


class Group:
    """A log, and the processes that work on it."""

    def __init__(self, bootstrap: str, partitions: int, directory: Path) -> None:
        self.bootstrap = bootstrap
        self.topic = f"t-{uuid.uuid4().hex[:10]}"
        self._directory = directory
        self._numbers = itertools.count()
        self.members: list[subprocess.Popen[bytes]] = []
        self._producer = Producer({"bootstrap.servers": bootstrap})
        outputs = [f"{self.topic}-{name}" for name in ("lines", "counted", "runs")]
        make_topics(bootstrap, partitions, self.topic, *outputs)
        self.reader = TopicReader(bootstrap, *outputs)

    def write(self, events: Iterable[Event | bytes]) -> None:
        for item in events:
            if isinstance(item, bytes):
                self._producer.send(self.topic, item, key="garbage")
            else:
                value = json.dumps(to_cloudevent(item)).encode()
                self._producer.send(self.topic, value, key=item.task_id)
        self._producer.flush()

    def start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        """Start a member; its output goes to a file."""
        output = self._directory / f"{next(self._numbers)}.out"
        script = Path(__file__).with_name("stream_member.py")
        argv = [self.bootstrap, self.topic, f"g-{self.topic}", name, *words]
        with output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", str(script), *argv],
                cwd=self._directory,
                env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        process.args = output
        self.members.append(process)
        return process

    def output(self, process: subprocess.Popen[bytes]) -> str:
        path: Any = process.args
        return str(path.read_text())

    def wait_until_reading(self, process: subprocess.Popen[bytes]) -> None:
        def is_reading() -> bool:
            assert process.poll() is None, self.output(process)
            return "reading" in self.output(process)

        wait_for(is_reading, LONG_S, "a member that reads")

    def wait_until_shared(self, members: int) -> None:
        """Wait until so many members have their equal parts of the log."""
        from confluent_kafka.admin import AdminClient

        admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
        name = f"g-{self.topic}"

        def is_shared() -> bool:
            for process in self.members:
                assert process.poll() is None, self.output(process)
            found = admin.describe_consumer_groups([name])[name].result(60).members
            parts = [
                sum(place.topic == self.topic for place in member.assignment.topic_partitions)
                for member in found
            ]
            return parts == [12 // members] * members

        wait_for(is_shared, LONG_S, f"{members} members that share")

    def end(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        """Let a member leave; returns what it says."""
        process.send_signal(signal.SIGTERM)
        assert process.wait(LONG_S) == 0, self.output(process)
        found: dict[str, Any] = json.loads(self.output(process).splitlines()[-1])
        return found

    def log(self) -> list[Stored]:
        return read_topic(self.bootstrap, self.topic)

    def results(self, name: str) -> list[Stored]:
        return read_topic(self.bootstrap, f"{self.topic}-{name}")

    def wait_until_drained(self) -> None:
        """Wait until all runs are told, and all events are in the lines."""

        def is_drained() -> bool:
            for process in self.members:
                assert process.poll() in (None, 0, -signal.SIGKILL), self.output(process)
            self.reader.read()
            found = {name.rpartition("-")[2]: items for name, items in self.reader.found.items()}
            return (
                len({run.value for run in found["runs"]}) >= len(self.pairs) + len(self.alone)
                and total_of(found["lines"]) >= total_of_lines(self.lines)
                and total_of(found["counted"]) >= total_of_lines(self.counted)
            )

        wait_for(is_drained, LONG_S, "the end of the log")

    def expect(self) -> None:
        """Compute what must come out, from the log as it is now."""
        log = self.log()
        self.pairs, self.alone = runs_of_log(log, member.TTL_S)
        self.lines = lines_of_log(log, member.WINDOW_S, member.LATENESS_S, drop=True)
        self.counted = lines_of_log(log, member.COUNT_WINDOW_S, member.LATENESS_S, drop=False)


def latest(stored: Iterable[Stored]) -> dict[str, Any]:
    """Return the last record of each key."""
    return {item.key: item.json for item in stored}


def total_of(stored: Iterable[Stored]) -> int:
    words = ("started", "succeeded", "failed", "late")
    return sum(line[word] for line in latest(stored).values() for word in words)


def total_of_lines(lines: Mapping[str, Expected]) -> int:
    return sum(sum(line.counts.values()) + line.late for line in lines.values())


@pytest.fixture
def new_group(shared_kafka: Kafka, tmp_path: Path) -> Iterator[Callable[[int], Group]]:
    """Makes a log with so many partitions."""
    groups: list[Group] = []

    def make(partitions: int) -> Group:
        groups.append(Group(shared_kafka.bootstrap, partitions, tmp_path))
        return groups[-1]

    yield make
    for group in groups:
        group.reader.close()
        for process in group.members:
            process.kill()
            process.wait()


def assert_equal_to_batch(group: Group) -> None:
    """Windows and runs are what a batch over the log comes to; each run is there once."""
    for name, expected in (("lines", group.lines), ("counted", group.counted)):
        lines = latest(group.results(name))
        assert lines.keys() == expected.keys()
        for key, exact in expected.items():
            line = lines[key]
            assert {word: line[word] for word in ("started", "succeeded", "failed")} == {
                word: exact.counts[word] for word in ("started", "succeeded", "failed")
            }, key
            assert line["late"] == exact.late, key
            for share in (50, 95, 99) if exact.runtimes_s else ():
                assert line[f"p{share}_s"] == pytest.approx(
                    exact.percentile(share / 100), rel=0.02
                ), key
    runs = [item.json for item in group.results("runs")]
    matched = Counter(
        (run["task_id"], run["started_us"], run["ended_us"]) for run in runs if run["duration_us"]
    )
    assert set(matched) == group.pairs
    assert set(matched.values()) == {1}, [pair for pair, n in matched.items() if n > 1][:5]
    unmatched = Counter(run["task_id"] for run in runs if run["duration_us"] is None)
    assert set(unmatched) == group.alone
    assert not unmatched or set(unmatched.values()) == {1}
    assert all(
        run["ended_us"] - run["started_us"] == run["duration_us"]
        for run in runs
        if run["duration_us"]
    )


def test_windows_and_runs_equal_a_batch_over_the_same_log(
    new_group: Callable[[int], Group],
) -> None:
    """With late, repeated and mixed events, garbage, and types of a later version."""
    group = new_group(4)
    log: list[Event | bytes] = [*make_log(2000, 3)]
    log[500:500] = [b"garbage", b"{}", b"\xff\xfe"]
    log.insert(
        900, Event("/taskq/app/new/1", 1, "task.dreamt", 1, {"task_id": "id-9", "task": "x"})
    )
    group.write(log)
    group.expect()
    assert sum(line.late for line in group.lines.values()) > 50
    assert len(group.alone) > 20

    process = group.start("one")
    group.wait_until_drained()
    told = group.end(process)

    assert_equal_to_batch(group)
    assert told["unreadable"] == 3
    assert told["duplicates"] > 50


def test_a_member_that_is_killed_leaves_nothing_twice_and_loses_nothing(
    new_group: Callable[[int], Group],
) -> None:
    """What it had not committed does not exist for readers of committed records."""
    group = new_group(4)
    log = make_log(2000, 5)
    step = len(log) // 4
    group.write(log[:step])
    for number in range(3):
        process = group.start("one")
        group.wait_until_reading(process)
        # Into the running process, so that it dies with work in its hands.
        group.write(log[step * (number + 1) : step * (number + 2)])
        process.kill()
        process.wait()
    group.write(log[step * 4 :])
    group.expect()

    process = group.start("one")
    group.wait_until_drained()
    group.end(process)

    assert_equal_to_batch(group)


def test_members_share_the_partitions_when_they_join_and_leave(
    new_group: Callable[[int], Group],
) -> None:
    """Three members, twelve partitions: whoever has a partition has its state, too."""
    group = new_group(12)
    log = make_log(2000, 7, sources=12)
    step = len(log) // 4
    first = group.start("a")
    group.write(log[:step])
    group.wait_until_shared(1)
    others = [group.start("b")]
    group.write(log[step : step * 2])
    group.wait_until_shared(2)
    others.append(group.start("c"))
    group.wait_until_shared(3)
    group.write(log[step * 2 : step * 3])
    group.wait_until_reading(others[1])
    left = group.end(first)
    group.write(log[step * 3 :])
    group.expect()
    group.wait_until_drained()
    told = [left, *(group.end(process) for process in others)]

    assert_equal_to_batch(group)
    assert all(facts["partitions"] for facts in told)
    later = {n for facts in told[1:] for n in facts["partitions"]}
    assert later == set(range(12)), "what the first one had went to the others"


def test_a_log_that_is_missing_is_named(shared_kafka: Kafka) -> None:
    """The engine would make it, with one partition."""
    from taskq.events.streams import LifecycleStream

    with pytest.raises(ConfigError, match="--create-topics"):
        LifecycleStream({"bootstrap.servers": shared_kafka.bootstrap}, "g", "no-such-log")
