"""What can be wrong around the bridge: each case has its outcome, and nothing is lost."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka_faulty import OUT_OF_ORDER, PRODUCE, FaultyKafka
from kafka_helpers import deduplicated, publish_runs, read_topic
from kafka_server import GivenKafka, KafkaServer
from processes import free_port, wait_for

from taskq.brokers import open_broker
from taskq.brokers.base import Broker, BrokerOptions
from taskq.events.bus import Recorder

pytest.importorskip("confluent_kafka")

from taskq.events.kafka.service import BridgeSettings, Service
from taskq.events.kafka.topics import DEAD, Topics, create, make_topics

Kafka = KafkaServer | GivenKafka
ROOT = Path(__file__).parents[2]
LIMIT_S = 90
_names = itertools.count()


@pytest.fixture
def topics() -> Topics:
    """Topics of this test alone."""
    name = uuid.uuid4().hex[:10]
    return Topics(f"t-{name}", f"w-{name}", messages=f"m-{name}")


@pytest.fixture
def given(shared_kafka: Kafka) -> dict[str, Any]:
    """Properties of clients."""
    return {"bootstrap.servers": shared_kafka.bootstrap, "linger.ms": 1}


@pytest.fixture
def broker() -> Iterator[Broker]:
    """An empty embedded broker."""
    made = open_broker(f"memory://bad{next(_names)}", BrokerOptions())
    yield made
    made.close()


class Bridging:
    """A bridge's service on a thread."""

    def __init__(self, broker: Broker, settings: BridgeSettings) -> None:
        self.service = Service(broker, settings)
        self.failure: BaseException | None = None
        self.code: int | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.code = self.service.run()
        except BaseException as error:
            self.failure = error

    def value(self, name: str) -> int:
        for line in self.service.metrics().splitlines():
            if line.startswith(f"taskq_bridge_{name} "):
                return int(line.split()[1])
        raise AssertionError(name)

    def until(self, name: str, count: int) -> None:
        wait_for(lambda: not self._thread.is_alive() or self.value(name) >= count, LIMIT_S, name)
        assert self.value(name) >= count, self.failure or self.code

    def end(self) -> None:
        self.service.stop()
        self._thread.join(60)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def bridging(broker: Broker, settings: BridgeSettings) -> Iterator[Bridging]:
    made = Bridging(broker, settings)
    try:
        yield made
    finally:
        made.end()


def test_an_event_larger_than_the_topic_allows_is_put_aside(
    broker: Broker, given: dict[str, Any], topics: Topics
) -> None:
    """The broker refuses it, not the client; the events around it stay in order."""
    from confluent_kafka import admin

    small: Any = vars(admin)["NewTopic"](
        topics.tasks, num_partitions=1, config={"max.message.bytes": "3000"}
    )
    client = admin.AdminClient({"bootstrap.servers": given["bootstrap.servers"]})
    client.create_topics([small])[topics.tasks].result(60)
    create(given, topics, 1, 1)
    recorder = Recorder("shop")
    publish_runs(broker, recorder, ["before"])
    # What cannot be compressed: the limit is on what arrives.
    text = os.urandom(20_000).hex()
    recorder.add([("task.sent", 1, 0, "big", "t", "q", 0, "", "", 0, {"args": text})])
    publish_runs(broker, recorder, ["after"])

    with bridging(broker, BridgeSettings(given, topics)) as bridge:
        bridge.until("produced_total", 11)
        assert bridge.value("dead_total") == 1

    live = read_topic(given["bootstrap.servers"], topics.tasks)
    assert [item.key for item in live] == ["before"] * 5 + ["after"] * 5
    assert [item.event.sequence for item in live] == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    (letter,) = read_topic(given["bootstrap.servers"], topics.tasks + DEAD)
    assert letter.key == "big"
    assert "larger than" in letter.headers["taskq-error"]
    assert int(letter.headers["taskq-bytes"]) > 40_000


def test_a_topic_with_fewer_partitions_is_used_as_it_is(
    broker: Broker, given: dict[str, Any], topics: Topics, caplog: pytest.LogCaptureFixture
) -> None:
    """Adding some would move keys: the bridge says so and carries on, in order."""
    make_topics(given, {topics.tasks: 1}, 1)
    publish_runs(broker, Recorder("shop"), [f"k{n}" for n in range(10)])
    settings = BridgeSettings(given, topics, create_topics=True, partitions=12, replication=1)

    with bridging(broker, settings) as bridge:
        bridge.until("produced_total", 50)

    assert f"topic {topics.tasks} has 1 partitions, not 12: left as it is" in caplog.text
    stored = read_topic(given["bootstrap.servers"], topics.tasks)
    assert {item.partition for item in stored} == {0}
    assert [item.event.sequence for item in stored] == list(range(1, 51))


@pytest.mark.parametrize("kind", ["memory", "rabbitmq"])
def test_of_two_bridges_one_stands_by_and_takes_over(
    kind: str, request: pytest.FixtureRequest, given: dict[str, Any], topics: Topics
) -> None:
    """Both are live and ready; what is carried is carried once, and in order."""
    url = f"memory://two{next(_names)}"
    if kind == "rabbitmq":
        url = request.getfixturevalue("rabbitmq_url")
    create(given, topics, 1, 1)
    settings = BridgeSettings(given, topics)
    recorder = Recorder("shop")
    names = [f"k{n}" for n in range(20)]
    with contextlib.ExitStack() as stack:
        brokers = [stack.enter_context(_opened(url)) for _ in range(3)]
        # RabbitMQ keeps events from the first bridge on.
        brokers[2].events("kafka").close()
        first = stack.enter_context(bridging(brokers[0], settings))
        publish_runs(brokers[2], recorder, names)
        first.until("produced_total", 100)
        second = stack.enter_context(bridging(brokers[1], settings))
        wait_for(lambda: second.service.readiness() == "", LIMIT_S, "the second to be ready")
        publish_runs(brokers[2], recorder, names)
        first.until("produced_total", 200)
        assert second.value("produced_total") == 0
        assert first.service.readiness() == second.service.readiness() == ""
        first.end()
        publish_runs(brokers[2], recorder, names)
        second.until("produced_total", 100)

    stored = read_topic(given["bootstrap.servers"], topics.tasks)
    assert [item.event.sequence for item in stored] == list(range(1, 301))


@contextlib.contextmanager
def _opened(url: str) -> Iterator[Broker]:
    broker = open_broker(url, BrokerOptions())
    try:
        yield broker
    finally:
        broker.close()


def probe(port: int, path: str) -> tuple[int, str]:
    """Return status and body of the health port; 0 while nobody listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


def test_a_producer_that_cannot_go_on_ends_with_75(topics: Topics, tmp_path: Path) -> None:
    """A fatal error of idempotence: whoever starts it again loses nothing."""
    try:
        kafka = FaultyKafka(topics.every)
    except OSError as error:
        pytest.skip(str(error))
    url = f"sqlite:///{tmp_path}/taskq.db"
    port = free_port()
    words = ["bridge", "kafka", "--bootstrap", kafka.bootstrap, "--health-port", str(port)]
    words += ["--task-topic", topics.tasks, "--worker-topic", topics.workers]
    words += ["--message-topic", topics.messages, "-X", "linger.ms=1"]

    def start() -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "taskq", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TASKQ_BROKER": url},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    recorder = Recorder("shop")
    with _opened(url) as broker:
        process = start()
        try:
            publish_runs(broker, recorder, ["a"])
            wait_for(lambda: "produced_total 5" in probe(port, "/metrics")[1], LIMIT_S, "5 events")
            assert probe(port, "/livez")[0] == probe(port, "/readyz")[0] == 200
            kafka.fail(PRODUCE, OUT_OF_ORDER)
            publish_runs(broker, recorder, ["b"])
            output, _ = process.communicate(timeout=LIMIT_S)
            assert process.returncode == 75, output
            assert "start again to go on, nothing is lost" in output
            assert "Traceback" not in output
            process = start()
            publish_runs(broker, recorder, ["c"])
            numbers = set(range(1, 16))

            def carried() -> bool:
                stored = read_topic(kafka.bootstrap, topics.tasks)
                return {event.sequence for event in deduplicated(stored)} == numbers

            wait_for(carried, LIMIT_S, "all events")
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=LIMIT_S)
            assert process.returncode == 0, output
        finally:
            process.kill()
            process.communicate()


def test_a_kafka_that_is_away_is_not_ready_but_live(tmp_path: Path) -> None:
    """At the start: the probe says why, and the process waits."""
    port = free_port()
    words = ["bridge", "kafka", "--bootstrap", "127.0.0.1:9", "--health-port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-m", "taskq", *words],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TASKQ_BROKER": f"sqlite:///{tmp_path}/taskq.db",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: "does not answer" in probe(port, "/readyz")[1], LIMIT_S, "the reason")
        assert probe(port, "/readyz")[0] == 503
        assert probe(port, "/livez") == (200, "ok\n")
        assert probe(port, "/else")[0] == 404
        assert "taskq_bridge_ready 0" in probe(port, "/metrics")[1]
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
        process.wait()

    assert process.returncode == 0, errors
    assert "Traceback" not in errors
