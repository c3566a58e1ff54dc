"""Kafka away at the start and killed in the middle: producer, consumer and tasks from a topic."""

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from kafka_helpers import make_topic, read_topic
from kafka_server import KafkaServer
from processes import wait_for

from taskq import TaskQ

pytest.importorskip("confluent_kafka")

from taskq.events.kafka import Producer, Record, RecordConsumer
from taskq.intake import IntakeService
from taskq.testing import running_worker

LIMIT_S = 150
KEYS, HALF = 5, 200


class Guarded:
    """A function on a thread; what it raises is told when it is joined."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.failure: BaseException | None = None
        self._function = function
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._function()
        except BaseException as error:
            self.failure = error

    def join(self) -> None:
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()
        assert self.failure is None, self.failure


class Scene:
    """Tasks from a topic, a plain consumer of it, and whoever writes to it."""

    def __init__(self, kafka: KafkaServer) -> None:
        self.given = {"bootstrap.servers": kafka.bootstrap}
        self.topic = make_topic(self.given, 3)
        self.halfway = threading.Event()
        self.ran: list[int] = []
        self.seen: dict[str, list[int]] = {}
        self.app = TaskQ("outage", broker="memory://outage", results="memory://")
        self.app.on_kafka(self.topic, group="tasks", name="take")(self.take)
        self.service = IntakeService(self.app, self.given, (), 0)
        self.consumer = RecordConsumer(self.given, "notes", [self.topic])

    def take(self, number: int) -> None:
        self.ran.append(number)

    def note(self, record: Record) -> None:
        self.seen.setdefault(record.key, []).append(json.loads(record.value))

    def send(self, first: int) -> None:
        with Producer(self.given) as producer:
            for number in range(first, first + HALF):
                producer.send(self.topic, str(number).encode(), key=f"k{number % KEYS}")
                if number == first + HALF // 2:
                    self.halfway.set()
            producer.flush(LIMIT_S)

    def counted(self) -> int:
        return sum(len(set(numbers)) for numbers in list(self.seen.values()))

    def end(self, *running: Guarded) -> None:
        self.service.stop()
        self.consumer.stop()
        for one in running:
            one.join()
        self.consumer.close()


def inflict(kafka: KafkaServer, scene: Scene) -> None:
    """Start Kafka under those who wait for it, kill it under those who write, start it again."""
    first = Guarded(lambda: scene.send(0))
    wait_for(lambda: scene.consumer.trouble != "", LIMIT_S, "the consumer to say what it lacks")
    wait_for(lambda: scene.service.readiness() != "", LIMIT_S, "the service to say it")
    kafka.start()
    first.join()
    wait_for(lambda: len(set(scene.ran)) >= HALF, LIMIT_S, "the first half as tasks")
    kafka.kill()
    scene.halfway.clear()
    second = Guarded(lambda: scene.send(HALF))
    wait_for(scene.halfway.is_set, LIMIT_S, "records sent to a Kafka that is away")
    kafka.start()
    second.join()
    wait_for(lambda: len(set(scene.ran)) >= 2 * HALF, LIMIT_S, "all tasks")
    wait_for(lambda: scene.counted() >= 2 * HALF, LIMIT_S, "all records")
    wait_for(lambda: scene.service.readiness() == "", LIMIT_S, "the service to be well")


@pytest.mark.timeout(600)
def test_an_outage_loses_and_doubles_nothing(private_kafka: KafkaServer) -> None:
    """Everybody waits, says so, and goes on by itself; order per key is kept."""
    scene = Scene(private_kafka)
    private_kafka.kill()
    with running_worker(scene.app):
        intake = Guarded(scene.service.run)
        reader = Guarded(lambda: scene.consumer.run(scene.note))
        try:
            inflict(private_kafka, scene)
        finally:
            scene.end(intake, reader)
    scene.app.close()

    stored = read_topic(private_kafka.bootstrap, scene.topic)
    assert len(stored) == 2 * HALF, "the idempotent producer wrote something twice"
    for key in range(KEYS):
        wanted = list(range(key, 2 * HALF, KEYS))
        assert [json.loads(i.value) for i in stored if i.key == f"k{key}"] == wanted
        assert list(dict.fromkeys(scene.seen[f"k{key}"])) == wanted
    assert sorted(scene.ran) == list(range(2 * HALF)), "a record ran twice"
