"""Retry topics and circuit breakers of consumers, against a real Kafka."""

import itertools
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kafka_helpers import committed, fill, make_topic, numbered, read_topic
from kafka_server import GivenKafka, KafkaServer
from processes import wait_for

from taskq import CircuitBreaker
from taskq.errors import ConfigError
from taskq.events import Event

pytest.importorskip("confluent_kafka")

from taskq.events.kafka import EventConsumer, Record, RecordConsumer, RetryTopics, current_record
from taskq.events.kafka.topics import describe

Kafka = KafkaServer | GivenKafka
LIMIT_S = 90


@pytest.fixture
def given(shared_kafka: Kafka) -> dict[str, Any]:
    """Properties of clients."""
    return {"bootstrap.servers": shared_kafka.bootstrap}


@pytest.fixture
def group() -> str:
    """A group of this test alone."""
    return f"g-{uuid.uuid4().hex[:8]}"


class Running:
    """A consumer on a thread of its own."""

    def __init__(self, consumer: RecordConsumer, handler: Callable[[Any], Any]) -> None:
        self.consumer = consumer
        self.failure: BaseException | None = None
        self._handler = handler
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.consumer.run(self._handler)
        except BaseException as error:
            self.failure = error

    def until(self, condition: Callable[[], bool], what: str) -> None:
        wait_for(lambda: self.failure is not None or condition(), LIMIT_S, what)
        assert self.failure is None, self.failure

    def end(self) -> None:
        self.consumer.stop()
        self._thread.join(60)
        assert not self._thread.is_alive()
        self.consumer.close()


@pytest.fixture
def run() -> Iterator[Callable[..., Running]]:
    """Starts consumers; they are ended with the test."""
    made: list[Running] = []

    def start(consumer: RecordConsumer, handler: Callable[[Any], Any]) -> Running:
        made.append(Running(consumer, handler))
        return made[-1]

    yield start
    for running in made:
        running.end()


def test_what_fails_waits_its_delays_and_blocks_nothing(
    given: dict[str, Any], group: str, run: Callable[..., Running]
) -> None:
    """One partition: the poison in front does not hold up what is behind it."""
    topic = make_topic(given, 1)
    delays_s = (3.0, 1.0)
    fill(given, topic, numbered(20, keys=1))
    calls: list[tuple[int, int, float]] = []

    def handler(event: Event) -> None:
        calls.append((event.sequence, current_record().attempts, time.monotonic()))
        if event.sequence == 1:
            raise OSError("the shop is closed")

    retries = RetryTopics(delays_s)
    consumer = EventConsumer(given, group, [topic], retries=retries)
    run(consumer, handler).until(lambda: consumer.dead == 1, "the dead letter")

    poison = [(attempts, at_s) for number, attempts, at_s in calls if number == 1]
    assert [attempts for attempts, _ in poison] == [0, 1, 2]
    waits = [later[1] - earlier[1] for earlier, later in itertools.pairwise(poison)]
    assert all(wait >= delay for wait, delay in zip(waits, delays_s, strict=True)), waits
    second = poison[1][1]
    behind = [at_s for number, _, at_s in calls if number > 1]
    assert len(behind) == 19
    assert max(behind) < second, "what was behind it waited for its first retry"
    (letter,) = read_topic(given["bootstrap.servers"], f"{topic}.dead")
    assert letter.event.sequence == 1
    assert letter.headers["taskq-attempts"] == "3"
    assert letter.headers["taskq-error"] == "OSError: the shop is closed"
    assert letter.headers["taskq-topic"] == topic
    assert (letter.headers["taskq-partition"], letter.headers["taskq-offset"]) == ("0", "0")
    assert letter.headers["taskq-group"] == group
    assert (consumer.retried, consumer.handled) == (2, 19)
    assert committed(given, group, topic) == {0: 20}


def test_a_retry_that_succeeds_ends_there(
    given: dict[str, Any], group: str, run: Callable[..., Running]
) -> None:
    """Any records, not events alone; their key, value and headers are what they were."""
    topic = make_topic(given)
    from taskq.events.kafka import Producer

    with Producer(given) as producer:
        producer.send(topic, b"\xff\x00", key="k\udcff", headers={"own": "1"})
    seen: list[Record] = []

    def handler(record: Record) -> None:
        seen.append(record)
        if record.attempts < 2:
            raise OSError("away")

    consumer = RecordConsumer(given, group, [topic], retries=RetryTopics((0.1, 0.1)))
    run(consumer, handler).until(lambda: consumer.handled == 1, "the third attempt")

    first, _, third = seen
    assert third.attempts == 2
    assert (first.topic, first.partition, first.offset) == (
        third.topic,
        third.partition,
        third.offset,
    )
    assert (third.key, third.value, third.headers["own"]) == ("k\udcff", b"\xff\x00", "1")
    assert consumer.dead == 0


def test_what_no_retry_cures_is_buried_at_once(
    given: dict[str, Any], group: str, run: Callable[..., Running]
) -> None:
    """Garbage keeps its bytes, a bad order its value; both say where they were."""
    topic = make_topic(given, 1)
    fill(given, topic, [b"\xc1garbage", *numbered(3, keys=1)])

    def handler(event: Event) -> None:
        if event.sequence == 2:
            raise ValueError("negative")

    retries = RetryTopics((60,), dead_on=(ValueError,))
    consumer = EventConsumer(given, group, [topic], retries=retries)
    run(consumer, handler).until(lambda: consumer.dead == 2, "two dead letters")

    letters = read_topic(given["bootstrap.servers"], f"{topic}.dead")
    assert [item.headers["taskq-offset"] for item in letters] == ["0", "2"]
    assert letters[0].value == b"\xc1garbage"
    assert "not a CloudEvent" in letters[0].headers["taskq-error"]
    assert letters[1].headers["taskq-error"] == "ValueError: negative"
    assert (consumer.unreadable, consumer.handled, consumer.retried) == (1, 2, 0)
    assert committed(given, group, topic) == {0: 4}, "the position is behind the garbage"


def test_retry_topics_are_made_or_missed(given: dict[str, Any], group: str) -> None:
    """As many partitions as the topic has; where they may not be made, the start says so."""
    topic = make_topic(given)
    strict = EventConsumer(given, group, [topic], retries=RetryTopics((1,), create=False))
    with pytest.raises(ConfigError, match=r"no topic .*\.retry\.1, and create=False"):
        strict.run(print)
    strict.close()

    consumer = EventConsumer(given, group, [topic], retries=RetryTopics((1, 2)))
    consumer.run(print, until=lambda: describe(given, 30).get(f"{topic}.{group}.retry.2") == 3)
    consumer.close()
    lost = EventConsumer(given, group, ["no-such-topic-here"], retries=RetryTopics())
    with pytest.raises(ConfigError, match="no topic no-such-topic-here"):
        lost.run(print)
    lost.close()
    for delays in [(-1,), (float("nan"),), ("5",), (1e9,)]:
        with pytest.raises(ConfigError, match="RetryTopics"):
            RetryTopics(delays)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no name for Kafka"):
        EventConsumer(given, "a group", [topic], retries=RetryTopics((1,)))


def test_a_circuit_breaker_pauses_and_keeps_the_membership(
    given: dict[str, Any], group: str, run: Callable[..., Running]
) -> None:
    """Open for longer than the group waits for a member: no rebalance, no event lost."""
    topic = make_topic(given)
    fill(given, topic, numbered(12))
    service = threading.Event()
    calls: list[int] = []

    def handler(event: Event) -> None:
        calls.append(event.sequence)
        if not service.is_set():
            raise OSError("the service is away")

    # Without asking Kafka for `max.poll.interval.ms` a member is thrown out.
    short = {**given, "session.timeout.ms": 10_000, "max.poll.interval.ms": 10_000}
    breaker = CircuitBreaker(failures=3, window_s=60, reset_s=11, on=OSError)
    consumer = EventConsumer(short, group, [topic], circuit_breaker=breaker)
    gained: list[int] = []
    reader = consumer._reader
    before = reader.got
    reader.got = lambda client, parts: (gained.append(len(parts)), before(client, parts))[1]
    running = run(consumer, handler)

    running.until(lambda: consumer.circuit == "open", "the breaker to open")
    assert len(calls) == 3
    # From now on it would work; for eleven seconds nothing is tried.
    service.set()
    assert committed(given, group, topic) == {}
    running.until(lambda: consumer.handled == 12, "all events")

    assert consumer.circuit == "closed"
    assert sorted(set(calls)) == list(range(1, 13))
    assert gained == [3], "partitions were assigned once: no rebalance"
    assert sum(committed(given, group, topic).values()) == 12


def test_failures_that_do_not_count_end_the_run(given: dict[str, Any], group: str) -> None:
    """A breaker is for a service that is away, not for events that are wrong."""
    topic = make_topic(given, 1)
    fill(given, topic, numbered(5, keys=1))

    def handler(event: Event) -> None:
        if event.sequence == 3:
            raise ValueError("wrong")

    breaker = CircuitBreaker(failures=2, on=OSError)
    consumer = EventConsumer(given, group, [topic], circuit_breaker=breaker)
    with pytest.raises(ValueError, match="wrong"):
        consumer.run(handler)
    consumer.close()

    assert consumer.circuit == "closed"
    assert committed(given, group, topic) == {0: 2}


def test_an_open_breaker_spends_no_attempts(
    given: dict[str, Any], group: str, run: Callable[..., Running]
) -> None:
    """With retry topics: three events pay for the outage, the others wait in Kafka."""
    topic = make_topic(given)
    fill(given, topic, numbered(30))
    service = threading.Event()
    lock = threading.Lock()
    attempts: dict[int, int] = {}

    def handler(event: Event) -> None:
        if not service.is_set():
            raise OSError("the service is away")
        with lock:
            attempts[event.sequence] = current_record().attempts

    consumer = EventConsumer(
        given,
        group,
        [topic],
        circuit_breaker=CircuitBreaker(failures=3, window_s=60, reset_s=2),
        retries=RetryTopics((0.5, 0.5, 0.5)),
    )
    running = run(consumer, handler)
    running.until(lambda: consumer.circuit == "open", "the breaker to open")
    service.set()
    running.until(lambda: len(attempts) == 30, "all events")

    assert consumer._breaker is not None
    paid = 3 + consumer._breaker.opened - 1
    assert sum(attempts.values()) == paid, "three, and one for each probe that failed"
    assert consumer.dead == 0
