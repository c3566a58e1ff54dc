"""Retry topics: what failed waits there and blocks nothing, then goes to a dead-letter topic."""

import logging
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from taskq.errors import ConfigError
from taskq.events.kafka.client import KafkaError
from taskq.events.kafka.producer import NotWritten, Producer
from taskq.events.kafka.record import (
    ATTEMPTS,
    BYTES,
    DUE_MS,
    ERROR,
    GROUP,
    OFFSET,
    PARTITION,
    TOPIC,
    Record,
    read,
)
from taskq.events.kafka.topics import DEAD, describe, make_topics

log = logging.getLogger("taskq.events")

MAX_DELAY_S: Final = 7 * 86_400
_CUT_BYTES: Final = 5000
_ASK_S: Final = 10.0
_PLAIN: Final = re.compile(r"[a-zA-Z0-9._-]{1,249}")


@dataclass(frozen=True, slots=True)
class RetryTopics:
    """When an event whose handler failed is tried again, and where it waits.

    Each group has topics of its own, `<topic>.<group>.retry.1` and so on, so that groups do not
    get each other's failures. After the last delay an event goes to `<topic>.dead`.

    Attributes:
        delays_s: Waits before the second, third, ... attempt, in seconds; none for one attempt.
        dead_on: Exception classes that no retry cures.
        partitions: Of topics that are made; 0 for as many as the topic has.
        replication: Their copies; -1 leaves it to the broker.
        create: Whether topics that are missing are made when the consumer starts.
    """

    delays_s: Sequence[float] = (5, 60, 600)
    dead_on: tuple[type[BaseException], ...] = ()
    partitions: int = 0
    replication: int = -1
    create: bool = True

    def __post_init__(self) -> None:
        for delay_s in self.delays_s:
            good = isinstance(delay_s, int | float) and not isinstance(delay_s, bool)
            if not good or not 0 <= delay_s <= MAX_DELAY_S or math.isnan(delay_s):
                raise ConfigError(f"RetryTopics: a delay is {delay_s!r:.40}; use 0 to 604800 s")
        object.__setattr__(self, "delays_s", tuple(self.delays_s))

    def names(self, topic: str, group: str) -> list[str]:
        """Return the retry topics of a topic, in order.

        Raises:
            ConfigError: If Kafka would not take such a name.
        """
        found = [f"{topic}.{group}.retry.{n}" for n in range(1, len(self.delays_s) + 1)]
        for name in found:
            if not _PLAIN.fullmatch(name):
                raise ConfigError(
                    f"retry topic {name!r:.300} is no name for Kafka: use letters, digits, `.`, "
                    "`_` and `-` in topic and group, 249 characters in all"
                )
        return found


class Failures:
    """Sends what failed to where it waits, or to the dead letters; used by one consumer.

    Attributes:
        retried: Records that were sent to retry topics.
        dead: Records that were sent to dead-letter topics.
    """

    def __init__(
        self,
        properties: Mapping[str, Any],
        group: str,
        topics: Sequence[str],
        retries: RetryTopics | None,
    ) -> None:
        self.retried = 0
        self.dead = 0
        self._properties = properties
        self._group = group
        self._topics = list(topics)
        self._retries = retries or RetryTopics(())
        self._producer: Producer | None = None
        self._levels = {
            name: level
            for topic in topics
            for level, name in enumerate(self._retries.names(topic, group))
        }

    @property
    def topics(self) -> list[str]:
        """Names of all retry topics."""
        return list(self._levels)

    def prepare(self) -> None:
        """Make the topics that are missing.

        Raises:
            KafkaError: If Kafka does not answer.
            ConfigError: If a topic is missing and may not be made.
        """
        known = describe(self._properties, _ASK_S)
        wanted: dict[str, int] = {}
        for topic in self._topics:
            if topic not in known:
                raise ConfigError(f"Kafka has no topic {topic}")
            for name in [*self._retries.names(topic, self._group), topic + DEAD]:
                if name not in known:
                    wanted[name] = self._retries.partitions or known[topic]
        if wanted and not self._retries.create:
            raise ConfigError(f"Kafka has no topic {', '.join(wanted)}, and create=False")
        made = make_topics(self._properties, wanted, self._retries.replication)
        if made:
            log.info("made topics %s", ", ".join(made))

    def wait_s(self, message: Any) -> float:
        """Return how long a record of a retry topic has to wait yet, in seconds."""
        level = self._levels.get(message.topic())
        if level is None:
            return 0.0
        due = dict(message.headers() or ()).get(DUE_MS, b"")
        left_s = int(due) / 1000 - time.time() if due.isdigit() else 0.0
        # Whoever sent it may have another clock; its own delay is never exceeded.
        return min(left_s, self._retries.delays_s[level])

    def is_retry(self, topic: str) -> bool:
        """Return whether a topic is a retry topic."""
        return topic in self._levels

    def handled(self, message: Any, error: Exception) -> None:
        """Send a record whose handler failed on its way; Kafka has it when this returns.

        Raises:
            KafkaError: If Kafka does not take it anywhere.
        """
        record = read(message)
        attempts = record.attempts + 1
        text = f"{type(error).__name__}: {error}"[:1000]
        headers = {**_origin(record, self._group), ATTEMPTS: str(attempts), ERROR: text}
        delays_s = self._retries.delays_s
        if attempts <= len(delays_s) and not isinstance(error, self._retries.dead_on):
            due_ms = round((time.time() + delays_s[attempts - 1]) * 1000)
            name = self._retries.names(record.topic, self._group)[attempts - 1]
            try:
                self._send(name, record, record.value, {**headers, DUE_MS: str(due_ms)})
                self.retried += 1
                return
            except NotWritten as refused:
                log.warning("a retry topic refuses a record topic=%s error=%s", name, refused)
        self._bury(record, headers)

    def unreadable(self, message: Any, why: str) -> None:
        """Send a record that cannot be read to the dead letters, as it is.

        Raises:
            KafkaError: If Kafka does not take it.
        """
        record = read(message)
        self._bury(record, {**_origin(record, self._group), ERROR: why[:1000]})

    def close(self) -> None:
        """End the producer."""
        if self._producer is not None:
            self._producer.close()

    def _bury(self, record: Record, headers: Mapping[str, str]) -> None:
        kept = {name: text for name, text in headers.items() if name != DUE_MS}
        log.warning(
            "a record goes to the dead-letter topic topic=%s error=%s", record.topic, kept[ERROR]
        )
        try:
            self._send(record.topic + DEAD, record, record.value, kept)
        except NotWritten:
            # Too large together with these headers: where it is whole stands in them.
            kept[BYTES] = str(len(record.value))
            try:
                self._send(record.topic + DEAD, record, record.value[:_CUT_BYTES], kept)
            except NotWritten as refused:
                raise KafkaError(f"a record cannot be put aside: {refused}") from None
        self.dead += 1

    def _send(self, topic: str, record: Record, value: bytes, headers: Mapping[str, str]) -> None:
        if self._producer is None:
            self._producer = Producer(self._properties)
        self._producer.send(topic, value, key=record.key, headers=headers)
        self._producer.flush()


def _origin(record: Record, group: str) -> dict[str, str]:
    return {
        **record.headers,
        TOPIC: record.topic,
        PARTITION: str(record.partition),
        OFFSET: str(record.offset),
        GROUP: group,
    }
