"""Which topic an event goes to, under which key; and making those topics."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from taskq.errors import ConfigError
from taskq.events.kafka.client import KafkaError, make, masked, module_error
from taskq.events.schema import MESSAGE, Event

log = logging.getLogger("taskq.bridge")

DEAD: Final = ".dead"
_TIMEOUT_S: Final = 30.0
_TRY_S: Final = 1.0
_LIMIT_S: Final = 5.0
_DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class Topics:
    """Names of topics and the key of task events.

    Attributes:
        tasks: Of events about tasks.
        workers: Of workers, schedules and queues.
        messages: Of what `app.publish(..., to="kafka")` sends without naming a topic.
        key: `task` keeps the events of a task in order; `root` those of a whole workflow, which
            may crowd one partition.
    """

    tasks: str = "taskq.task-events"
    workers: str = "taskq.worker-events"
    key: Literal["task", "root"] = "task"
    messages: str = "taskq.messages"

    def route(self, event: Event) -> tuple[str, str]:
        """Return (topic, key) of an event."""
        if event.type.startswith("task."):
            return self.tasks, event.root_id if self.key == "root" else event.task_id
        if event.type == MESSAGE:
            return str(event.data.get("topic") or self.messages), str(
                event.data.get("record_key") or event.subject
            )
        return self.workers, event.subject

    @property
    def every(self) -> tuple[str, ...]:
        """All names, dead-letter topics included."""
        own = (self.tasks, self.workers, self.messages)
        return *own, *(name + DEAD for name in own)

    def dead(self, topic: str) -> str:
        """Return the dead-letter topic; of a topic that a message names, it is the messages'."""
        return (topic if topic in self.every else self.messages) + DEAD


def describe(properties: Mapping[str, Any], timeout_s: float) -> dict[str, int]:
    """Return the topics that exist, with their numbers of partitions.

    Raises:
        KafkaError: If Kafka does not answer in time.
        ConfigError: If the client refuses its properties, or Kafka the credentials or certificate.
    """
    said: list[Any] = []
    admin = make("AdminClient", {**properties, "error_cb": said.append})
    try:
        # Credentials that are refused show after the first try; a timeout would hide them.
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                found = admin.list_topics(timeout=min(timeout_s, _TRY_S)).topics
                break
            except module_error() as error:
                admin.poll(0)
                _refuse_credentials(said, properties)
                if time.monotonic() >= deadline:
                    raise KafkaError(
                        f"Kafka does not answer: {_reason(said, error, properties)}"
                    ) from None
    except module_error() as error:
        raise KafkaError(f"Kafka does not answer: {masked(error, properties)}") from None
    return {name: len(topic.partitions) for name, topic in found.items()}


def smallest_limit(properties: Mapping[str, Any], names: Sequence[str]) -> int:
    """Return how many bytes a batch may have in each of some topics; 0 when Kafka does not tell.

    Args:
        properties: Of librdkafka.
        names: The topics.
    """
    from confluent_kafka import admin

    # Its stubs do not export the names.
    resource: Any = vars(admin)["ConfigResource"]
    kind: Any = vars(admin)["ResourceType"].TOPIC
    client = make("AdminClient", properties)
    asked = client.describe_configs(
        [resource(kind, name) for name in names], request_timeout=_LIMIT_S
    )
    limits = []
    for future in asked.values():
        try:
            limits.append(int(future.result(_LIMIT_S)["max.message.bytes"].value))
        # Without the right to read them, or from a Kafka that tells none, the default stands.
        except (module_error(), TimeoutError, KeyError, ValueError, TypeError):
            return 0
    return min(limits, default=0)


def _reason(said: Sequence[Any], error: Exception, properties: Mapping[str, Any]) -> str:
    """Return the client's own account of why it cannot connect, or else the error."""
    told = [item.str() for item in said if item.name() != "_ALL_BROKERS_DOWN"]
    return masked(told[-1] if told else error, properties)


def _refuse_credentials(said: Sequence[Any], properties: Mapping[str, Any]) -> None:
    for error in said:
        text = masked(error.str(), properties)
        if error.name() == "_AUTHENTICATION":
            raise ConfigError(f"Kafka refuses the credentials: {text}")
        if error.name() == "_SSL":
            raise ConfigError(f"Kafka cannot be reached by TLS: {text}")


def create(
    properties: Mapping[str, Any], topics: Topics, partitions: int, replication: int
) -> list[str]:
    """Make the topics that do not exist; return their names.

    Args:
        properties: Of librdkafka.
        topics: Names.
        partitions: Of the topic of task events; the others get a quarter, at least one.
        replication: Copies of each partition; -1 leaves it to the broker.

    Raises:
        ConfigError: If Kafka refuses.
        KafkaError: If it does not answer.
    """
    existing = describe(properties, _TIMEOUT_S)
    wanted = {
        name: partitions if name == topics.tasks else max(1, partitions // 4)
        for name in topics.every
        if name not in existing
    }
    days = {name: 7 if name.startswith(topics.tasks) else 2 for name in wanted}
    return make_topics(properties, wanted, replication, days)


def make_topics(
    properties: Mapping[str, Any],
    wanted: Mapping[str, int],
    replication: int,
    days: Mapping[str, int] | None = None,
) -> list[str]:
    """Make topics; return the names of those that were not there.

    Args:
        properties: Of librdkafka.
        wanted: Number of partitions by name.
        replication: Copies of each partition; -1 leaves it to the broker.
        days: How long each keeps its records, by name; seven days otherwise.

    Raises:
        ConfigError: If Kafka refuses.
        KafkaError: If it does not answer.
    """
    if not wanted:
        return []
    from confluent_kafka import admin

    # Its stubs do not export the name.
    new_topic: Any = vars(admin)["NewTopic"]
    items = [
        new_topic(
            name,
            num_partitions=count,
            replication_factor=replication,
            config={"retention.ms": str((days or {}).get(name, 7) * _DAY_MS)},
        )
        for name, count in wanted.items()
    ]
    made = []
    # Kept in a variable: collected, the client would end what it was asked for.
    client = make("AdminClient", properties)
    for name, future in client.create_topics(items).items():
        try:
            future.result(_TIMEOUT_S)
            made.append(name)
        except TimeoutError:
            raise KafkaError(f"Kafka did not make topic {name} within {_TIMEOUT_S:g} s") from None
        except module_error() as error:
            if "TOPIC_ALREADY_EXISTS" not in str(error):
                raise ConfigError(
                    f"Kafka refused to make topic {name}: {masked(error, properties)}"
                ) from None
    return made
