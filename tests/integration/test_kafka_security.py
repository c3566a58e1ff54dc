"""A Kafka with TLS, passwords and rights: what gets in, what is refused with which words."""

import itertools
import logging
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka_helpers import publish_runs, read_topic
from kafka_secure import SecureKafka
from processes import wait_for
from servers import ServerMissing

from taskq.brokers import open_broker
from taskq.brokers.base import Broker, BrokerOptions
from taskq.errors import ConfigError
from taskq.events.bus import Recorder

pytest.importorskip("confluent_kafka")

from taskq.events.kafka import EventConsumer, KafkaError, Producer
from taskq.events.kafka.service import BridgeSettings, Service
from taskq.events.kafka.topics import Topics, create, describe

ROOT = Path(__file__).parents[2]
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "OAUTHBEARER")
LIMIT_S = 90
_names = itertools.count()


@pytest.fixture(scope="module")
def secure(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A node with users and rights, for the tests of this module."""
    try:
        server = SecureKafka(tmp_path_factory.mktemp("secure-kafka"))
    except (ServerMissing, FileNotFoundError) as missing:
        pytest.skip(str(missing))
    try:
        server.start()
        server.allow("carrier", "READ", "WRITE", "DESCRIBE", "CREATE")
        server.allow("guest", "DESCRIBE")
        yield server
    finally:
        server.destroy()


@pytest.fixture
def topics(secure: SecureKafka) -> Topics:
    """Topics of this test, which the carrier may use."""
    name = f"ok-{uuid.uuid4().hex[:8]}"
    made = Topics(f"{name}-t", f"{name}-w", messages=f"{name}-m")
    create({"bootstrap.servers": secure.bootstrap}, made, 1, 1)
    return made


@pytest.fixture
def broker() -> Iterator[Broker]:
    """An embedded broker with five events."""
    made = open_broker(f"memory://secure{next(_names)}", BrokerOptions())
    publish_runs(made, Recorder("shop"), ["a"])
    yield made
    made.close()


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_who_has_a_name_gets_in(
    mechanism: str,
    secure: SecureKafka,
    topics: Topics,
    broker: Broker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Bridge and consumer, over TLS; the password is in no line of the log."""
    caplog.set_level(logging.DEBUG)
    given = secure.properties(mechanism)
    service = Service(broker, BridgeSettings(given, topics))
    thread = threading.Thread(target=service.run)
    thread.start()
    got: list[Any] = []
    consumer = EventConsumer(given, topics.tasks, [topics.tasks], dead_letters=True)
    try:
        consumer.run(got.append, until=lambda: len(got) >= 5)
    finally:
        consumer.close()
        service.stop()
        thread.join(60)

    assert [event.sequence for event in got] == [1, 2, 3, 4, 5]
    assert secure.secret not in caplog.text


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
def test_a_wrong_password_is_said_without_showing_it(
    mechanism: str, secure: SecureKafka, topics: Topics, broker: Broker
) -> None:
    """At once, and not as a Kafka that is away."""
    given = secure.properties(mechanism, **{"sasl.password": "wrong-horse-0815"})

    with pytest.raises(ConfigError, match="refuses the credentials") as refused:
        Service(broker, BridgeSettings(given, topics)).run()

    assert "wrong-horse" not in str(refused.value)
    feed = broker.events("kafka")
    assert len(feed.get(5)) == 1, "the events are there for the next bridge"
    feed.close()


def test_a_certificate_that_nobody_vouches_for_is_refused(secure: SecureKafka) -> None:
    """TLS that took any certificate would be no better than none."""
    given = secure.properties("PLAIN")
    del given["ssl.ca.location"]

    with pytest.raises(ConfigError, match="by TLS"):
        describe(given, 30)


def test_the_command_reads_secrets_from_files_and_ends_with_78(
    secure: SecureKafka, topics: Topics, tmp_path: Path
) -> None:
    """What an operator sees: one line, no password, no traceback; also at level debug."""
    (tmp_path / "password").write_text("wrong-horse-0815\n")
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TASKQ_BROKER": f"sqlite:///{tmp_path}/taskq.db",
        "TASKQ_KAFKA_SASL_PASSWORD_FILE": str(tmp_path / "password"),
    }
    for name, value in secure.properties("PLAIN").items():
        if name != "sasl.password":
            env[f"TASKQ_KAFKA_{name.upper().replace('.', '_')}"] = value
    words = ["bridge", "kafka", "--task-topic", topics.tasks, "--worker-topic", topics.workers]
    words += ["--message-topic", topics.messages, "-l", "debug"]

    done = subprocess.run(
        [sys.executable, "-m", "taskq", *words],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )

    assert done.returncode == 78, done.stderr
    assert "Kafka refuses the credentials" in done.stderr
    assert "wrong-horse" not in done.stdout + done.stderr


def test_who_may_not_write_is_told_and_nothing_is_lost(
    secure: SecureKafka, topics: Topics, broker: Broker
) -> None:
    """The events wait in the broker for somebody who may."""
    given = secure.properties("PLAIN", "guest")

    with pytest.raises(ConfigError, match="does not let this user write"):
        Service(broker, BridgeSettings(given, topics)).run()
    with pytest.raises(ConfigError, match="refused to make topic"):
        create(given, Topics(f"{topics.tasks}-x", f"{topics.tasks}-y"), 1, 1)

    feed = broker.events("kafka")
    assert len(feed.get(5)) == 1
    feed.close()
    assert read_topic(secure.bootstrap, topics.tasks) == []


@pytest.mark.parametrize("group", ["ok-", "other-"])
def test_who_may_not_read_is_told(group: str, secure: SecureKafka, topics: Topics) -> None:
    """Neither the topic nor the group: a consumer that waits forever would say nothing."""
    user = "guest" if group == "ok-" else "carrier"
    given = secure.properties("PLAIN", user)
    consumer = EventConsumer(given, f"{group}{topics.tasks}", [topics.tasks])

    with pytest.raises(ConfigError, match="does not let this user read"):
        consumer.run(print)
    consumer.close()


def test_a_kafka_without_transactions_says_so(secure: SecureKafka, topics: Topics) -> None:
    """Soon, and with the reason; what needs none works."""
    given = {"bootstrap.servers": secure.bootstrap}

    with pytest.raises(KafkaError, match="gives no transactions"):
        Producer(given, transactional_id="ok-1", timeout_s=3)
    with Producer(given) as producer:
        producer.send(topics.tasks, b"x")
    wait_for(lambda: len(read_topic(secure.bootstrap, topics.tasks)) == 1, LIMIT_S, "the record")
