"""The bridge and Kafka killed in the middle: nothing lost, every duplicate recognisable.

From RabbitMQ and from the embedded file. `SOAK=1` runs the long form: 200,000 events, seven kills
of the bridge, two of Kafka, one of the RabbitMQ between them.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka_helpers import Stored, count_records, deduplicated, publish_runs, read_topic
from kafka_server import KafkaServer
from processes import wait_for
from servers import RabbitServer

from taskq.brokers import open_broker
from taskq.brokers.base import Broker, BrokerOptions
from taskq.events.bus import Recorder

KafkaException = pytest.importorskip("confluent_kafka").KafkaException
ROOT = Path(__file__).parents[2]
SOAK = bool(os.environ.get("SOAK"))
BATCHES, NAMES = (2001, 20) if SOAK else (180, 20)
KILLS = (0.15, 0.3, 0.5, 0.65, 0.8) if SOAK else (0.4,)
KAFKA_KILLS = (0.4, 0.75) if SOAK else (0.7,)
TASKS = "taskq.task-events"


class BridgeProcess:
    """`taskq bridge kafka`, to be killed and started again."""

    def __init__(self, broker_url: str, kafka: KafkaServer, directory: Path) -> None:
        self._env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "TASKQ_BROKER": broker_url,
            "TASKQ_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap,
        }
        self._directory = directory
        self._starts = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def carrying(self) -> bool:
        """Whether the last one that was started found Kafka and reads events."""
        return self.output.count("carrying events from") >= self._starts

    @property
    def output(self) -> str:
        """All that it and its predecessors wrote."""
        return (self._directory / "bridge.log").read_text()

    def start(self) -> None:
        self._starts += 1
        words = ["bridge", "kafka", "--create-topics", "--partitions", "3", "--replication", "1"]
        with (self._directory / "bridge.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "taskq", *words],
                cwd=self._directory,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def end(self, number: int) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        try:
            return process.wait(60)
        finally:
            process.kill()
            process.wait()


Place = tuple[RabbitServer | None, str]


@pytest.fixture(params=["rabbitmq", "sqlite"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """The run's RabbitMQ with a vhost, or one to be killed in the long form; or a file."""
    if request.param == "sqlite":
        return None, f"sqlite:///{tmp_path}/work.db"
    if SOAK:
        server = request.getfixturevalue("private_rabbitmq")
        return server, server.url
    return request.getfixturevalue("shared_rabbitmq"), request.getfixturevalue("rabbitmq_url")


@pytest.fixture
def bridge(place: Place, private_kafka: KafkaServer, tmp_path: Path) -> Iterator[BridgeProcess]:
    made = BridgeProcess(place[1], private_kafka, tmp_path)
    yield made
    made.end(signal.SIGKILL)


class Sources:
    """Three sources that publish in turn, and how far they are."""

    def __init__(self, broker: Broker) -> None:
        self.recorders = [Recorder("shop", worker=f"w{n}") for n in range(3)]
        self.failure: BaseException | None = None
        self._broker = broker
        self._done = 0
        self._thread = threading.Thread(target=self._run)

    @property
    def share(self) -> float:
        """How much was published, 0 to 1."""
        if self.failure is not None:
            raise self.failure
        return self._done / BATCHES

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        try:
            for number in range(BATCHES):
                names = [f"task-{number % 7}-{n}" for n in range(NAMES)]
                publish_runs(self._broker, self.recorders[number % 3], names)
                self._done += 1
                if number % 20 == 19:
                    # Bursts, so that a kill finds much on its way, spread over the faults.
                    threading.Event().wait(0.4)
        except BaseException as error:
            self.failure = error

    def join(self) -> None:
        self._thread.join()
        assert self.share == 1

    def wanted(self) -> set[tuple[str, int]]:
        """Return source and sequence of all that was published."""
        numbers = range(1, BATCHES // 3 * NAMES * 5 + 1)
        return {(recorder.source, number) for recorder in self.recorders for number in numbers}


def inflict(
    sources: Sources, bridge: BridgeProcess, kafka: KafkaServer, rabbitmq: RabbitServer | None
) -> None:
    """Kill what is to be killed while the sources publish, and start it again."""
    faults: list[tuple[float, Any]] = [(at, bridge) for at in KILLS]
    faults += [(at, kafka) for at in KAFKA_KILLS]
    faults += [(0.9, rabbitmq)] if SOAK and rabbitmq is not None else []
    for at, victim in sorted(faults, key=lambda fault: fault[0]):
        wait_for(lambda at=at: sources.share >= at, 900, f"{at:.0%} of the events")
        wait_for(lambda: bridge.carrying, 120, f"a bridge at work: {bridge.output}")
        if victim is bridge:
            bridge.end(signal.SIGKILL)
        else:
            victim.kill()
        if victim is kafka:
            # What the bridge read meanwhile is nowhere but in its memory, and in the broker.
            wait_for(lambda at=at: sources.share >= at + 0.05, 900, "events during the outage")
            bridge.end(signal.SIGKILL)
            bridge.start()
        victim.start()


@pytest.mark.timeout(3600 if SOAK else 400)
def test_kills_lose_nothing_and_double_nothing(
    place: Place, private_kafka: KafkaServer, bridge: BridgeProcess
) -> None:
    """The claim of the bridge: exactly once in effect, without anybody's hand."""
    server, url = place
    broker = open_broker(url, BrokerOptions())
    broker.events("kafka").close()
    sources = Sources(broker)
    bridge.start()
    sources.start()

    inflict(sources, bridge, private_kafka, server)
    sources.join()
    wanted = sources.wanted()
    stored: list[Stored] = []

    def carried() -> bool:
        # A broker that has just started leads no partition yet.
        with contextlib.suppress(KafkaException):
            if count_records(private_kafka.bootstrap, TASKS) < len(wanted):
                return False
            stored[:] = read_topic(private_kafka.bootstrap, TASKS)
        return len({(i.event.source, i.event.sequence) for i in stored}) >= len(wanted)

    with contextlib.suppress(TimeoutError):
        wait_for(carried, 1200 if SOAK else 120, "all events in the topic")
    if not stored:
        # Too few: which ones, and what the bridge said, is what the failure should show.
        stored += read_topic(private_kafka.bootstrap, TASKS)
    code = bridge.end(signal.SIGTERM)
    broker.close()

    events = deduplicated(stored)
    found = {(event.source, event.sequence) for event in events}
    print(f"{len(events)} events, {len(stored) - len(events)} duplicates dropped")
    assert found == wanted, f"{len(wanted - found)} lost or dropped: {bridge.output}"
    assert len(events) == len(found), "a duplicate passed the watermark"
    assert code == 0, bridge.output
    last: dict[tuple[str, str], int] = {}
    for event in events:
        mark = (event.source, event.task_id)
        assert event.sequence > last.get(mark, 0), "the order of a task was lost"
        last[mark] = event.sequence
