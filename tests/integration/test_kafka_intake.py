"""Records of Kafka become tasks: at least once, each run once, garbage put aside."""

import contextlib
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

import jsonschema
import pytest
from kafka_helpers import committed, make_topic, read_topic
from kafka_server import GivenKafka, KafkaServer
from processes import free_port, wait_for

from taskq import ConfigError, PublishError, TaskQ
from taskq.errors import EncodeError
from taskq.events.schema import load_schema
from taskq.testing import running_worker

pytest.importorskip("confluent_kafka")

from taskq.events.kafka import Producer
from taskq.intake import IntakeService

Kafka = KafkaServer | GivenKafka
ROOT = Path(__file__).parents[2]
LIMIT_S = 90

APP = """
import os
from taskq import TaskQ

app = TaskQ("shop", broker=os.environ["BROKER"], results="{results}")

@app.on_kafka("{topic}", group="{group}", name="take", bind=True)
def take(self, order):
    place = self.request.headers["kafka-offset"]
    with open("{effects}", "a") as effects:
        effects.write(f"{{order['id']}} {{place}}\\n")
"""


@pytest.fixture
def given(shared_kafka: Kafka) -> dict[str, Any]:
    """Properties of clients."""
    return {"bootstrap.servers": shared_kafka.bootstrap}


@pytest.fixture
def group() -> str:
    """A group of this test alone."""
    return f"g-{uuid.uuid4().hex[:8]}"


def put(given: dict[str, Any], topic: str, items: list[tuple[str, bytes]], **headers: str) -> None:
    with Producer(given) as producer:
        for key, value in items:
            producer.send(topic, value, key=key, headers=headers)


def depth(app: TaskQ) -> int:
    found = app.broker.depths(["default"])["default"]
    assert found is not None
    return found.ready


@contextlib.contextmanager
def serving(app: TaskQ, given: dict[str, Any], *groups: str) -> Iterator[IntakeService]:
    """Run the service on a thread; what it raises is raised at the end."""
    service = IntakeService(app, given, groups, 0)
    failure: list[BaseException] = []

    def run() -> None:
        try:
            service.run()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield service
    finally:
        service.stop()
        thread.join(60)
    assert not failure, failure


def test_each_record_becomes_one_task(given: dict[str, Any], group: str) -> None:
    """Two groups get all; a task knows where its record was; garbage is put aside."""
    topic = make_topic(given, 2)
    app = TaskQ(group, broker=f"memory://{group}", results="memory://")
    got: list[Any] = []

    @app.on_kafka(topic, bind=True, name="note")
    def note(self: Any, order: dict[str, int]) -> None:
        headers = self.request.headers
        got.append((order["id"], headers["kafka-key"], headers["kafka-headers"], headers))

    @app.on_kafka(topic, group=f"{group}-2", name="count", decode=len)
    def count(size: int) -> None:
        got.append(size)

    put(given, topic, [(f"k{n}", json.dumps({"id": n}).encode()) for n in range(20)], own="1")
    put(given, topic, [("bad", b"\xc1no json")])
    with running_worker(app), serving(app, given) as service:
        wait_for(lambda: len(got) >= 41, LIMIT_S, "41 tasks")
        wait_for(lambda: service.readiness() == "", LIMIT_S, "readiness")
        wait_for(lambda: sum(committed(given, group, topic).values()) == 21, LIMIT_S, "commits")
        text = service.metrics()
    app.close()

    orders = [item for item in got if isinstance(item, tuple)]
    assert sorted(item[0] for item in orders) == list(range(20))
    assert all(item[1] == f"k{item[0]}" and item[2] == {"own": "1"} for item in orders)
    places = {(item[3]["kafka-partition"], item[3]["kafka-offset"]) for item in orders}
    assert len(places) == 20
    assert sum(isinstance(item, int) for item in got) == 21
    (letter,) = read_topic(given["bootstrap.servers"], f"{topic}.dead")
    assert letter.value == b"\xc1no json"
    assert "JSON" in letter.headers["taskq-error"]
    assert letter.headers["taskq-group"] == group
    assert "taskq_intake_sent_total 41" in text


def test_a_record_that_comes_again_does_not_run_again(given: dict[str, Any], group: str) -> None:
    """The crash between the broker's confirm and the commit, by offsets that are set back."""
    import confluent_kafka as ck

    topic = make_topic(given, 1)
    app = TaskQ(group, broker=f"memory://{group}", results="memory://")
    got: list[int] = []

    @app.on_kafka(topic, name="note")
    def note(order: int) -> None:
        got.append(order)

    put(given, topic, [("k", str(n).encode()) for n in range(10)])
    with running_worker(app):
        with serving(app, given):
            wait_for(lambda: committed(given, group, topic) == {0: 10}, LIMIT_S, "the commit")
        wait_for(lambda: len(got) >= 10, LIMIT_S, "ten tasks")
        back = ck.Consumer({**given, "group.id": group})
        back.commit(offsets=[ck.TopicPartition(topic, 0, 3)], asynchronous=False)
        back.close()
        put(given, topic, [("k", b"10")])
        with serving(app, given) as service:
            wait_for(lambda: committed(given, group, topic) == {0: 11}, LIMIT_S, "the commit")
            assert "taskq_intake_sent_total 8" in service.metrics()
        wait_for(lambda: 10 in got, LIMIT_S, "the new record")
        wait_for(lambda: depth(app) == 0, LIMIT_S, "an empty queue")
    app.close()

    assert got == list(range(11))


def test_a_broker_that_is_away_is_waited_for(
    given: dict[str, Any], group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is committed meanwhile; what was confirmed of a batch is not sent again."""
    topic = make_topic(given, 1)
    app = TaskQ(group, broker=f"memory://{group}", results="memory://")

    @app.on_kafka(topic, name="note")
    def note(order: int) -> None:
        """Runs nowhere in this test."""

    put(given, topic, [("k", str(n).encode()) for n in range(10)])
    away = threading.Event()
    send = app.send
    sent: list[str] = []

    def halting(calls: Any) -> Any:
        ids = [call.options["task_id"] for call in calls]
        if not away.is_set():
            send(calls[:4])
            sent.extend(ids[:4])
            away.set()
            error = PublishError(ids[4], "unavailable", "gone")
            error.failed_ids = ids[4:]
            raise error
        if len(sent) == 4 and len(tries) < 2:
            tries.append(1)
            raise PublishError(ids[0], "unavailable", "gone")
        sent.extend(ids)
        return send(calls)

    tries: list[int] = []
    monkeypatch.setattr(app, "send", halting)
    with serving(app, given) as service:
        wait_for(away.is_set, LIMIT_S, "the outage")
        wait_for(lambda: committed(given, group, topic) == {0: 4}, LIMIT_S, "the confirmed ones")
        wait_for(lambda: "gone" in service.readiness(), LIMIT_S, "the word of it")
        wait_for(lambda: committed(given, group, topic) == {0: 10}, LIMIT_S, "all")
        wait_for(lambda: service.readiness() == "", LIMIT_S, "readiness")
    assert depth(app) == 10
    app.close()


def test_the_command_killed_in_the_middle_loses_nothing(
    given: dict[str, Any], group: str, rabbitmq_url: str, redis_url: str, tmp_path: Path
) -> None:
    """SIGKILL between Kafka and RabbitMQ, then again from the commit; one effect for each."""
    topic = make_topic(given, 3)
    effects = tmp_path / "effects"
    effects.touch()
    text = APP.format(results=redis_url, topic=topic, group=group, effects=effects)
    (tmp_path / "shop.py").write_text(text)
    count = 1500
    put(given, topic, [(f"k{n % 50}", json.dumps({"id": n}).encode()) for n in range(count)])
    port = free_port()
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "BROKER": rabbitmq_url}
    words = ["bridge", "from-kafka", "-A", "shop:app", "--health-port", str(port)]
    words += ["--bootstrap", given["bootstrap.servers"], "-X", "session.timeout.ms=6000"]

    def start(*more: str) -> "subprocess.Popen[bytes]":
        with (tmp_path / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "taskq", *more],
                cwd=tmp_path,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def ids() -> list[int]:
        return [int(line.split()[0]) for line in effects.read_text().splitlines()]

    worker = start("worker", "-A", "shop:app", "-c", "2", "-P", "thread")
    intake = start(*words)
    try:
        wait_for(lambda: len(ids()) > 10, LIMIT_S, "the first tasks")
        intake.send_signal(signal.SIGKILL)
        intake.wait()
        intake = start(*words)
        wait_for(lambda: len(set(ids())) == count, LIMIT_S, "all tasks")
        wait_for(lambda: sum(committed(given, group, topic).values()) == count, LIMIT_S, "commits")
        intake.send_signal(signal.SIGTERM)
        assert intake.wait(60) == 0, (tmp_path / "log").read_text()
        with TaskQ("shop", broker=rabbitmq_url, results=redis_url) as app:
            wait_for(lambda: depth(app) == 0, LIMIT_S, "an empty queue")
        worker.send_signal(signal.SIGTERM)
        worker.wait(60)
    finally:
        for process in (worker, intake):
            process.kill()
            process.wait()

    assert len(ids()) == count, "a record ran twice"


def test_declarations_that_cannot_work_are_refused(group: str) -> None:
    """At the decorator, or at the start of the command; not at the first record."""
    app = TaskQ("shop", broker=f"memory://{group}", results="memory://")
    with pytest.raises(ConfigError, match=r"no @app\.on_kafka function"):
        IntakeService(app, {}, (), 0)

    @app.on_kafka("orders", name="a")
    def one(order: Any) -> None:
        """Takes the record's value."""

    with pytest.raises(ConfigError, match="triggers a for group shop already"):
        app.on_kafka("orders")
    with pytest.raises(ConfigError, match="called with a record's value"):

        @app.on_kafka("others", name="b")
        def none() -> None:
            """Takes nothing."""

    with pytest.raises(ConfigError, match="name of a Kafka topic"):
        app.on_kafka("")
    with pytest.raises(ConfigError, match="group nope; groups of the app: shop"):
        IntakeService(app, {}, ("nope",), 0)
    app.close()


def test_a_missing_topic_ends_the_command_with_words(
    given: dict[str, Any], group: str, tmp_path: Path
) -> None:
    """78: somebody has to do something; no traceback."""
    text = APP.format(results="off", topic=f"no-{group}", group=group, effects="x")
    (tmp_path / "shop.py").write_text(text)
    words = ["bridge", "from-kafka", "-A", "shop:app", "--bootstrap", given["bootstrap.servers"]]

    done = subprocess.run(
        [sys.executable, "-m", "taskq", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "BROKER": "memory://"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )

    assert done.returncode == 78, done.stderr
    assert f"Kafka has no topic no-{group}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_message_to_kafka_is_kept_until_a_bridge_comes(
    given: dict[str, Any], group: str, any_broker_url: str
) -> None:
    """Published before there ever was a bridge; in order for each key, once in effect."""
    from taskq.events.kafka import replay
    from taskq.events.kafka.bridge import Bridge
    from taskq.events.kafka.topics import DEAD, Topics, create

    app = TaskQ("shop", broker=any_broker_url, results="off", events="off")
    topics = Topics(f"t-{group}", f"w-{group}", messages=f"m-{group}")
    orders = make_topic(given, 3)
    create(given, topics, 1, 1)
    for number in range(5):
        app.publish("orders.created", {"id": number}, to=f"kafka:{orders}", record_key=f"o{number}")
    app.publish("hello", "all", headers={"lang": "en"}, to="kafka")
    app.publish("lost", 1, to="kafka:a topic that cannot be")
    with pytest.raises(EncodeError, match="JSON"):
        app.publish("x", {1, 2}, to="kafka")
    with pytest.raises(ConfigError, match="'kafka:' and a topic"):
        app.publish("x", 1, to="rabbit")

    feed = app.broker.events("kafka")
    bridge = Bridge(feed, {**given, "linger.ms": 1}, topics)
    wait_for(lambda: bridge.turn() is None and bridge.produced >= 7, LIMIT_S, "seven messages")
    feed.close()
    app.close()

    found = read_topic(given["bootstrap.servers"], orders)
    assert sorted((item.key, item.json["data"]["payload"]["id"]) for item in found) == [
        (f"o{n}", n) for n in range(5)
    ]
    check = jsonschema.Draft202012Validator(load_schema())
    for item in found:
        check.validate(item.json)
    (hello,) = replay(given, topics.messages)
    assert (hello.type, hello.subject) == ("message.published", "hello")
    assert (hello.data["payload"], hello.data["headers"]) == ("all", {"lang": "en"})
    (letter,) = read_topic(given["bootstrap.servers"], topics.messages + DEAD)
    assert letter.headers["taskq-topic"] == "a topic that cannot be"


@pytest.fixture(params=["memory", "rabbitmq"])
def any_broker_url(request: pytest.FixtureRequest, group: str) -> str:
    """Each kind of broker."""
    if request.param == "memory":
        return f"memory://{group}"
    url: str = request.getfixturevalue("rabbitmq_url")
    return url
