"""`taskq bridge kafka` as a process: Kafka awaited, topics checked, signals, health, exit codes."""

import contextlib
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from taskq.brokers.base import Broker
from taskq.errors import ConfigError
from taskq.events.kafka.bridge import Bridge
from taskq.events.kafka.client import KafkaError
from taskq.events.kafka.process import (
    EX_OK,
    EX_TEMPFAIL,
    health_port,
    metrics_text,
    stopped_by_signals,
)
from taskq.events.kafka.topics import Topics, create, describe, smallest_limit
from taskq.events.schema import KAFKA_READER

log = logging.getLogger("taskq.bridge")

_ASK_S: Final = 5.0
_RETRY_S: Final = 1.0
_BATCH_BYTES: Final = 1_000_000
"""The client's own limit."""
_FRAME_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class BridgeSettings:
    """What the process needs to know.

    Attributes:
        properties: Of librdkafka.
        topics: Names and keys.
        create_topics: Whether missing topics are made.
        partitions: Of the topic of task events.
        replication: Copies of each partition; -1 leaves it to the broker.
        health_port: Port of /livez, /readyz and /metrics; 0 for none.
        prefetch: Batches that may be on their way here.
    """

    properties: Mapping[str, Any]
    topics: Topics = field(default_factory=Topics)
    create_topics: bool = False
    partitions: int = 12
    replication: int = -1
    health_port: int = 0
    prefetch: int = 100


class Service:
    """Runs a bridge until a signal, or until it cannot go on."""

    def __init__(self, broker: Broker, settings: BridgeSettings) -> None:
        self._broker = broker
        self._settings = settings
        self._stop = threading.Event()
        self._bridge: Bridge | None = None
        self._why = "starting"
        self._feed_active = False

    def stop(self) -> None:
        """End in order, soon; from any thread."""
        self._stop.set()

    def run(self) -> int:
        """Carry events and return the exit code.

        Raises:
            ConfigError: If a property, a topic or a permission is missing.
        """
        settings = self._settings
        with (
            stopped_by_signals(self.stop, log),
            health_port(settings.health_port, self.readiness, self.metrics),
        ):
            try:
                self._await_kafka()
                if not self._stop.is_set():
                    self._carry()
            except KafkaError as error:
                log.error("%s; start again to go on, nothing is lost", error)
                return EX_TEMPFAIL
        return EX_OK

    def readiness(self) -> str:
        """Return why events are not being carried; empty when they are, or when standing by."""
        bridge = self._bridge
        if bridge is None:
            return self._why
        if bridge.stalled:
            return f"Kafka has not answered for long, {bridge.in_flight} events wait"
        return bridge.trouble

    def metrics(self) -> str:
        """Return counters in Prometheus' text format."""
        bridge = self._bridge
        values = {
            "produced_total": bridge.produced if bridge else 0,
            "dead_total": bridge.dead if bridge else 0,
            "gap_events_total": bridge.watermark.gaps if bridge else 0,
            "repeated_events_total": bridge.watermark.duplicates if bridge else 0,
            "in_flight": bridge.in_flight if bridge else 0,
            "ready": 0 if self.readiness() else 1,
        }
        return metrics_text("taskq_bridge", values)

    def _await_kafka(self) -> None:
        """Wait until Kafka answers, and see that the topics are there."""
        settings = self._settings
        while not self._stop.is_set():
            try:
                known = describe(settings.properties, _ASK_S)
                break
            except KafkaError as error:
                if self._why == "starting":
                    log.warning("waiting for Kafka error=%s", error)
                self._why = str(error)
                self._stop.wait(_RETRY_S)
        else:
            return
        topics = settings.topics
        missing = [name for name in topics.every if name not in known]
        if missing and settings.create_topics:
            made = create(settings.properties, topics, settings.partitions, settings.replication)
            log.info("made topics %s", ", ".join(made))
        elif missing:
            raise ConfigError(
                f"Kafka has no topic {', '.join(missing)}; make them: "
                "taskq bridge kafka --create-topics"
            )
        have = known.get(topics.tasks, settings.partitions)
        if settings.create_topics and have != settings.partitions:
            log.warning(
                "topic %s has %d partitions, not %d: left as it is, since adding some would "
                "move keys",
                topics.tasks,
                have,
                settings.partitions,
            )

    def _fitted(self) -> Mapping[str, Any]:
        """Return properties with which no batch is larger than a topic allows.

        Kafka refuses batches whole: one event that is too large would take others with it.
        """
        settings = self._settings
        limit = smallest_limit(settings.properties, settings.topics.every)
        if not limit or limit >= _BATCH_BYTES:
            return settings.properties
        log.info("topics allow batches of %d bytes", limit)
        fitted = max(1000, limit - _FRAME_BYTES)
        return {"message.max.bytes": fitted, "batch.size": fitted, **settings.properties}

    def _carry(self) -> None:
        settings = self._settings
        feed = self._broker.events(KAFKA_READER, settings.prefetch)
        with contextlib.closing(feed):
            bridge = Bridge(feed, self._fitted(), settings.topics)
            log.info("carrying events from %s to Kafka", self._broker.url)
            self._bridge = bridge
            try:
                bridge.run(self._stop.is_set)
            finally:
                log.info("carried %d events, %d to dead letters", bridge.produced, bridge.dead)
