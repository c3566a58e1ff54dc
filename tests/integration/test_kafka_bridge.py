"""The bridge against a real Kafka: what arrives, under which key, and what does not fit."""

import contextlib
import itertools
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgpack
import pytest
from kafka_helpers import Stored, publish_runs, read_topic
from kafka_server import GivenKafka, KafkaServer, MockKafka
from processes import wait_for

from taskq.brokers import open_broker
from taskq.brokers.base import Broker, BrokerOptions, Outgoing
from taskq.errors import ConfigError
from taskq.events.bus import Recorder
from taskq.events.kafka.bridge import Bridge
from taskq.events.kafka.service import BridgeSettings, Service
from taskq.events.kafka.topics import DEAD, Topics, create
from taskq.events.schema import EXCHANGE, MULTI, load_schema
from taskq.message import Message

pytest.importorskip("confluent_kafka")
Kafka = KafkaServer | GivenKafka | MockKafka
_names = itertools.count()


@pytest.fixture
def broker() -> Iterator[Broker]:
    """An empty embedded broker."""
    made = open_broker(f"memory://bridge{next(_names)}", BrokerOptions())
    yield made
    made.close()


@pytest.fixture
def topics() -> Topics:
    """Topics of this test alone."""
    name = uuid.uuid4().hex[:10]
    return Topics(f"t-{name}", f"w-{name}", messages=f"m-{name}")


def properties(kafka: Kafka, **more: Any) -> dict[str, Any]:
    return {"bootstrap.servers": kafka.bootstrap, "linger.ms": 1, **more}


@contextlib.contextmanager
def running(
    broker: Broker, kafka: Kafka, topics: Topics, **more: Any
) -> Iterator[Callable[[Callable[[Bridge], bool]], Bridge]]:
    """Run a bridge; yields what waits until a condition on it holds."""
    feed = broker.events("kafka")
    bridge = Bridge(feed, properties(kafka, **more), topics)
    stop = threading.Event()
    failure: list[BaseException] = []

    def run() -> None:
        try:
            bridge.run(stop.is_set, 30)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def until(condition: Callable[[Bridge], bool]) -> Bridge:
        wait_for(lambda: bool(failure) or condition(bridge), 90, "the bridge")
        if failure:
            raise failure[0]
        return bridge

    try:
        yield until
    finally:
        stop.set()
        thread.join(60)
        feed.close()
        assert not thread.is_alive()


def publish(broker: Broker, body: bytes) -> None:
    message = Message(EXCHANGE, "x", body)
    assert broker.publish([Outgoing(EXCHANGE, message, topic=MULTI)], 30) == [None]


def test_events_arrive_as_cloudevents_under_their_key(
    broker: Broker, any_kafka: Kafka, topics: Topics
) -> None:
    """Value, key and headers are what other consumers build on."""
    recorder = Recorder("shop", worker="w1")
    recorder.tell("worker.online", {"queues": ["q"], "slots": 1, "pool": "solo", "pid": 7})
    publish_runs(broker, recorder, ["a", "b"])

    with running(broker, any_kafka, topics) as until:
        until(lambda bridge: bridge.produced >= 11 and not bridge.in_flight)
    tasks = read_topic(any_kafka.bootstrap, topics.tasks)
    (worker,) = read_topic(any_kafka.bootstrap, topics.workers)

    check = jsonschema.Draft202012Validator(load_schema())
    for item in [*tasks, worker]:
        check.validate(item.json)
        assert item.headers == {
            "content-type": "application/cloudevents+json; charset=UTF-8",
            "ce_id": item.json["id"],
            "ce_source": recorder.source,
            "ce_type": item.json["type"],
        }
    assert (worker.key, worker.event.type) == ("w1", "worker.online")
    for name in ("a", "b"):
        assert [i.event.type for i in tasks if i.key == name] == [
            "task.sent",
            "task.started",
            "task.retried",
            "task.started",
            "task.succeeded",
        ]
        assert len({i.partition for i in tasks if i.key == name}) == 1
    assert sorted(i.event.sequence for i in [*tasks, worker]) == list(range(1, 12))


def test_keys_lie_where_java_puts_them(broker: Broker, shared_kafka: Kafka, topics: Topics) -> None:
    """Otherwise joins with topics of Java programs find nothing."""
    create(properties(shared_kafka), topics, 12, 1)
    names = [f"task-{n}" for n in range(12)]
    publish_runs(broker, Recorder("shop"), names)

    with running(broker, shared_kafka, topics) as until:
        until(lambda bridge: bridge.produced >= 60 and not bridge.in_flight)
    stored = read_topic(shared_kafka.bootstrap, topics.tasks)

    found = {item.key: item.partition for item in stored}
    assert found == {name: (murmur2(name.encode()) & 0x7FFFFFFF) % 12 for name in names}
    assert len(set(found.values())) > 4


def murmur2(data: bytes) -> int:
    """Java's `Utils.murmur2`, written down from its definition."""
    mixed = (0x9747B28C ^ len(data)) & 0xFFFFFFFF
    whole = len(data) // 4 * 4
    for at in range(0, whole, 4):
        part = int.from_bytes(data[at : at + 4], "little") * 0x5BD1E995 & 0xFFFFFFFF
        part = (part ^ part >> 24) * 0x5BD1E995 & 0xFFFFFFFF
        mixed = (mixed * 0x5BD1E995 & 0xFFFFFFFF) ^ part
    if rest := data[whole:]:
        mixed = (mixed ^ int.from_bytes(rest, "little")) * 0x5BD1E995 & 0xFFFFFFFF
    mixed = (mixed ^ mixed >> 13) * 0x5BD1E995 & 0xFFFFFFFF
    return mixed ^ mixed >> 15


def test_what_is_no_event_goes_to_the_dead_letter_topic(
    broker: Broker, any_kafka: Kafka, topics: Topics
) -> None:
    """Garbage, a later version, an event that is too large: the others go on, in place."""
    recorder = Recorder("shop")
    garbage = b"\xc1garbage"
    later = msgpack.packb([9, "source", 1, {}, []])
    publish(broker, garbage)
    publish(broker, later)
    recorder.add([("task.sent", 1, 0, "big", "t", "q", 0, "", "", 0, {"args": "x" * 60_000})])
    publish_runs(broker, recorder, ["small"])

    with running(broker, any_kafka, topics, **{"message.max.bytes": 20_000}) as until:
        until(lambda bridge: bridge.produced >= 8 and not bridge.in_flight)
    dead = read_topic(any_kafka.bootstrap, topics.tasks + DEAD)
    live = read_topic(any_kafka.bootstrap, topics.tasks)

    assert [item.key for item in live] == ["small"] * 5
    reasons = {item.headers["taskq-error"] for item in dead}
    assert {item.value for item in dead} >= {garbage, later}
    assert len(dead) == 3
    assert any("version 9" in reason for reason in reasons)
    assert any("larger than" in reason for reason in reasons)
    big = next(item for item in dead if item.key == "big")
    assert b'"task_id":"big"' in big.value
    left = broker.events("kafka")
    assert left.get(0.2) == []
    left.close()


def test_nothing_is_let_go_of_before_kafka_has_it(broker: Broker, topics: Topics) -> None:
    """Kafka is away from the start: events wait in the broker, for the next bridge."""
    publish_runs(broker, Recorder("shop"), ["a"])
    feed = broker.events("kafka")
    bridge = Bridge(feed, {"bootstrap.servers": "127.0.0.1:9", "log_level": 0}, topics)
    wait_for(lambda: bridge.turn() is None and bridge.in_flight == 5, 30, "the first turns")

    bridge.run(lambda: True, 0.5)
    feed.close()

    again = broker.events("kafka")
    assert len(again.get(5)) == 1
    again.close()


def test_missing_topics_and_rights_are_said_in_words(
    broker: Broker, shared_kafka: Kafka, topics: Topics
) -> None:
    """The process ends with what to do; nothing was acknowledged."""
    service = Service(broker, BridgeSettings(properties(shared_kafka), topics))

    with pytest.raises(ConfigError, match="--create-topics"):
        service.run()


def test_topics_are_made_once(broker: Broker, shared_kafka: Kafka, topics: Topics) -> None:
    """A second start finds them and leaves them as they are, also with fewer partitions."""
    given = properties(shared_kafka)

    assert set(create(given, topics, 3, 1)) == set(topics.every)
    assert create(given, topics, 12, 1) == []


def test_secrets_stay_out_of_messages(broker: Broker, topics: Topics) -> None:
    """The client repeats values that it refuses."""
    given = {"bootstrap.servers": "127.0.0.1:9", "sasl.password": "hunter2"}

    with pytest.raises(ConfigError, match="No such configuration property") as refused:
        Bridge(broker.events(), {**given, "no.such.hunter2": "1"}, topics)

    assert "hunter2" not in str(refused.value)
    with pytest.raises(ConfigError, match="--bootstrap"):
        Bridge(broker.events(), {}, topics)


def test_real_tasks_reach_kafka_through_the_embedded_file(
    tmp_path: Path, any_kafka: Kafka, topics: Topics
) -> None:
    """From a worker to the topic with the same code as from RabbitMQ."""
    from taskq import TaskQ
    from taskq.testing import running_worker

    url = f"sqlite:///{tmp_path}/work.db"
    app = TaskQ("shop", broker=url, results=url, events="durable")

    @app.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    with running_worker(app):
        ids = [add.delay(n, n).id for n in range(3)]
        for task_id in ids:
            app.result(task_id).get(timeout=60)
    seen: list[Stored] = []

    def all_there() -> bool:
        with contextlib.suppress(KeyError):
            seen[:] = read_topic(any_kafka.bootstrap, topics.tasks)
        return len(seen) >= 12

    with running(app.broker, any_kafka, topics) as until:
        until(lambda bridge: bridge.produced >= 14 and not bridge.in_flight)
        wait_for(all_there, 60, "twelve events in the topic")
    app.close()

    by_task = {
        task_id: [item.json["type"] for item in seen if item.key == task_id] for task_id in ids
    }
    life = [f"io.taskq.task.{word}" for word in ("sent", "received", "started", "succeeded")]
    assert by_task == dict.fromkeys(ids, life)
    assert json.loads(seen[0].value)["specversion"] == "1.0"


def test_a_worker_that_falls_silent_is_told_in_the_topic(
    broker: Broker, any_kafka: Kafka, topics: Topics
) -> None:
    """Once, by the bridge itself; its own event needs no acknowledgement at the broker."""
    recorder = Recorder("shop", worker="w1")
    recorder.tell("worker.heartbeat", {"interval_s": 0.05})
    item = recorder.take()
    assert item is not None
    publish(broker, item.message.body)

    with running(broker, any_kafka, topics) as until:
        until(lambda bridge: bridge.produced >= 2 and not bridge.in_flight)
    stored = read_topic(any_kafka.bootstrap, topics.workers)

    assert [i.event.type for i in stored] == ["worker.heartbeat", "worker.lost"]
    assert [i.key for i in stored] == ["w1", "w1"]
    assert stored[1].event.data["lost_source"] == recorder.source
    with contextlib.closing(broker.events("kafka")) as feed:
        assert feed.get(1.0) == []
