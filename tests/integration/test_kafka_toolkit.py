"""Producer, consumer and replay against a real Kafka."""

import json
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from kafka_helpers import fill, numbered, read_topic
from kafka_server import GivenKafka, KafkaServer
from processes import wait_for

from taskq.errors import ConfigError
from taskq.events import Event, to_cloudevent

pytest.importorskip("confluent_kafka")

from taskq.events.kafka import EventConsumer, NotWritten, Producer, replay
from taskq.events.kafka.topics import Topics, create

Kafka = KafkaServer | GivenKafka


@pytest.fixture
def given(shared_kafka: Kafka) -> dict[str, Any]:
    """Properties of clients."""
    return {"bootstrap.servers": shared_kafka.bootstrap}


@pytest.fixture
def topic(given: dict[str, Any]) -> str:
    """A topic of three partitions, and its dead-letter topic."""
    name = f"t-{uuid.uuid4().hex[:10]}"
    create(given, Topics(name, f"{name}-w"), 3, 1)
    return name


@pytest.fixture
def consumers(given: dict[str, Any], topic: str) -> Iterator[Any]:
    """Makes members of one group."""
    made: list[EventConsumer] = []
    group = uuid.uuid4().hex

    def make(**options: Any) -> EventConsumer:
        made.append(EventConsumer(given, group, [topic], **options))
        return made[-1]

    yield make
    for consumer in made:
        consumer.stop()
        consumer.close()


def taken(consumer: EventConsumer, count: int) -> list[Event]:
    got: list[Event] = []
    deadline = time.monotonic() + 60
    consumer.run(got.append, until=lambda: len(got) >= count or time.monotonic() > deadline)
    return got


def test_an_aborted_transaction_is_never_seen(given: dict[str, Any], topic: str) -> None:
    """All or nothing for readers of committed records; a second try is seen."""
    producer = Producer(given, transactional_id=topic)
    batch = numbered(4)

    def send(what: Sequence[Event]) -> None:
        for event in what:
            value = json.dumps(to_cloudevent(event)).encode()
            producer.send(topic, value, key=event.task_id)

    def fail() -> None:
        with producer.transaction():
            send(batch[:2])
            producer.flush()
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        fail()
    with producer.transaction():
        send(batch[2:])

    assert sorted(e.sequence for e in replay(given, topic)) == [3, 4]
    with pytest.raises(ConfigError, match="transactional_id"), Producer(given).transaction():
        pass


def test_records_that_kafka_refuses_are_named_or_buried(given: dict[str, Any], topic: str) -> None:
    """A poison record must not stop the others, and must not vanish."""
    small = {**given, "message.max.bytes": 20_000}
    strict = Producer(small)
    strict.send(topic, b"x" * 50_000, key="big")
    with pytest.raises(NotWritten, match="MSG_SIZE_TOO_LARGE"):
        strict.flush()

    with Producer(small, dead_letters=True) as producer:
        producer.send(topic, b"y" * 50_000, key="big", headers={"own": "1"})

    (buried,) = read_topic(given["bootstrap.servers"], f"{topic}.dead")
    assert buried.headers["taskq-bytes"] == "50000"
    assert buried.headers["own"] == "1"
    assert buried.key == "big"


def test_an_own_partitioner_decides(given: dict[str, Any], topic: str) -> None:
    """By priority, say; everything else goes by key as Java's clients do."""
    with Producer(given, partitioner=lambda key, count: 2 if key == "urgent" else 0) as producer:
        for number in range(4):
            producer.send(topic, b"v", key="urgent" if number % 2 else "slow")

    found = read_topic(given["bootstrap.servers"], topic)
    assert {(item.key, item.partition) for item in found} == {("urgent", 2), ("slow", 0)}


def test_duplicates_and_garbage_do_not_reach_the_handler(
    given: dict[str, Any], topic: str, consumers: Any
) -> None:
    """What a bridge that was killed sends again is dropped, also by the next member."""
    batch = numbered(30)
    fill(given, topic, [*batch[:20], b"garbage", *batch[10:]])
    first = consumers()

    got = taken(first, 30)
    first.close()
    fill(given, topic, [*batch[15:], *numbered(1, first=31)])
    second = consumers()
    later = taken(second, 1)

    assert sorted(e.sequence for e in got) == list(range(1, 31))
    assert (first.unreadable, first.duplicates) == (1, 10)
    assert [e.sequence for e in later] == [31], "the watermark was committed with the offsets"


def test_a_handler_that_fails_loses_nothing(
    given: dict[str, Any], topic: str, consumers: Any
) -> None:
    """Its event and those behind it in the partition come again to the next member."""
    fill(given, topic, numbered(40))
    done: list[int] = []

    def handler(event: Event) -> None:
        if event.sequence == 17:
            raise OSError("the database is away")
        done.append(event.sequence)

    broken = consumers()
    for _ in range(2):
        # The same member begins with what failed, too.
        with pytest.raises(OSError, match="away"):
            broken.run(handler)
    broken.close()
    missing = set(range(1, 41)) - set(done)
    next_one = consumers()
    rest: list[int] = []
    wait = time.monotonic() + 60
    next_one.run(
        lambda event: rest.append(event.sequence),
        until=lambda: missing <= set(rest) or time.monotonic() > wait,
    )

    assert 17 in missing
    assert missing <= set(rest)
    assert len(rest) < 40, "what was committed does not come again"


def test_concurrent_handlers_keep_the_order_of_each_key(
    given: dict[str, Any], topic: str, consumers: Any
) -> None:
    """Ten threads; events of one key never overtake each other."""
    fill(given, topic, numbered(200, keys=10))
    seen: dict[str, list[int]] = {}
    threads: set[str] = set()
    lock = threading.Lock()

    def handler(event: Event) -> None:
        with lock:
            threads.add(threading.current_thread().name)
            seen.setdefault(event.task_id, []).append(event.sequence)

    consumer = consumers(concurrency=10)
    wait = time.monotonic() + 60
    consumer.run(handler, until=lambda: consumer.handled >= 200 or time.monotonic() > wait)

    assert sum(map(len, seen.values())) == 200
    assert all(numbers == sorted(numbers) for numbers in seen.values())
    assert len(threads) > 1


def test_two_members_share_the_partitions(
    given: dict[str, Any], topic: str, consumers: Any
) -> None:
    """One joins, one leaves: every event once."""
    got: list[int] = []
    members = [consumers(), consumers()]
    threads = [
        threading.Thread(target=member.run, args=(lambda e: got.append(e.sequence),))
        for member in members
    ]
    for thread in threads:
        thread.start()
    fill(given, topic, numbered(60))
    wait_for(lambda: len(set(got)) >= 60, 90, "sixty events")
    members[0].stop()
    threads[0].join()
    members[0].close()
    fill(given, topic, numbered(60, first=61))
    wait_for(lambda: len(set(got)) >= 120, 90, "sixty more")
    members[1].stop()
    threads[1].join()

    assert sorted(set(got)) == list(range(1, 121))


def test_replay_gives_exact_ranges(given: dict[str, Any], topic: str) -> None:
    """By the time of the event, duplicates and garbage left out, and it ends."""
    now_us = time.time_ns() // 1000
    batch = [
        Event("/taskq/a/n/1", n, "task.sent", now_us + 1_000_000 * n, {"task_id": f"k{n % 5}"})
        for n in range(1, 21)
    ]
    fill(given, topic, [*batch, b"garbage", *batch[5:]])

    def moment(n: int) -> datetime:
        return datetime.fromtimestamp((now_us + 1_000_000 * n) / 1e6, UTC)

    assert sorted(e.sequence for e in replay(given, topic)) == list(range(1, 21))
    cut = replay(given, topic, until=moment(11))
    assert sorted(e.sequence for e in cut) == list(range(1, 11))
    early = replay(given, topic, since=datetime.fromtimestamp(now_us / 1e6 - 60, UTC))
    assert len(list(early)) == 20
    assert list(replay(given, topic, since=datetime.now(UTC).replace(year=2099))) == []


def test_seek_goes_back(given: dict[str, Any], topic: str, consumers: Any) -> None:
    """What was handled is not handled again, unless that is wanted."""
    fill(given, topic, numbered(10, keys=1))
    consumer = consumers()
    got = taken(consumer, 10)
    bootstrap = given["bootstrap.servers"]
    (partition,) = {item.partition for item in read_topic(bootstrap, topic)}

    consumer.seek(topic, partition, 2)
    fill(given, topic, numbered(1, keys=1, first=11))
    more = taken(consumer, 1)
    consumer.forget()
    consumer.seek(topic, partition, 4)
    again = taken(consumer, 7)

    assert [e.sequence for e in got] == list(range(1, 11))
    assert [e.sequence for e in more] == [11]
    assert [e.sequence for e in again] == list(range(5, 12))
