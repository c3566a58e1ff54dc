"""Which topic an event goes to, under which key; and making those topics."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from taskq.errors import ConfigError
from taskq.events.kafka.client import KafkaError, make, masked, module_error
from taskq.events.schema import Event

log = logging.getLogger("taskq.bridge")

DEAD: Final = ".dead"
_TIMEOUT_S: Final = 30.0
_DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class Topics:
    """Names of topics and the key of task events.

    Attributes:
        tasks: Of events about tasks.
        workers: Of all others.
        key: `task` keeps the events of a task in order; `root` those of a whole workflow, which
            may crowd one partition.
    """

    tasks: str = "taskq.task-events"
    workers: str = "taskq.worker-events"
    key: Literal["task", "root"] = "task"

    def route(self, event: Event) -> tuple[str, str]:
        """Return (topic, key) of an event."""
        if event.type.startswith("task."):
            return self.tasks, event.root_id if self.key == "root" else event.task_id
        return self.workers, event.subject

    @property
    def every(self) -> tuple[str, ...]:
        """All names, dead-letter topics included."""
        return self.tasks, self.workers, self.tasks + DEAD, self.workers + DEAD


def describe(properties: Mapping[str, Any], timeout_s: float) -> dict[str, int]:
    """Return the topics that exist, with their numbers of partitions.

    Raises:
        KafkaError: If Kafka does not answer in time.
        ConfigError: If the client refuses its properties.
    """
    admin = make("AdminClient", properties)
    try:
        found = admin.list_topics(timeout=timeout_s).topics
    except module_error() as error:
        raise KafkaError(f"Kafka does not answer: {masked(error, properties)}") from None
    return {name: len(topic.partitions) for name, topic in found.items()}


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
    from confluent_kafka import admin

    # Its stubs do not export the name.
    new_topic: Any = vars(admin)["NewTopic"]
    wanted = [
        new_topic(
            name,
            num_partitions=partitions if name == topics.tasks else max(1, partitions // 4),
            replication_factor=replication,
            config={"retention.ms": str((7 if name.startswith(topics.tasks) else 2) * _DAY_MS)},
        )
        for name in topics.every
        if name not in existing
    ]
    if not wanted:
        return []
    made = []
    # Kept in a variable: collected, the client would end what it was asked for.
    client = make("AdminClient", properties)
    for name, future in client.create_topics(wanted).items():
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
