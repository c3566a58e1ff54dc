"""Kafka at the edge of an app: records that become tasks, and messages that the bridge carries.

Neither talks to Kafka here: `taskq bridge from-kafka` and `taskq bridge kafka` do.
"""

import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from taskq.brokers.base import Broker
from taskq.errors import BrokerUnavailable, ConfigError, DecodeError, EncodeError
from taskq.topics import check_key

if TYPE_CHECKING:
    from taskq.config import Settings
    from taskq.events.bus import Recorder

_LONGEST: Final = 249


def read_json(value: bytes) -> Any:
    """Return a record's value, which is JSON; None for a tombstone.

    Raises:
        DecodeError: If it is none.
    """
    if not value:
        return None
    try:
        return json.loads(value)
    except ValueError as error:
        raise DecodeError(f"not JSON: {error}") from error


@dataclass(frozen=True, slots=True)
class Trigger:
    """A topic whose records become tasks.

    Attributes:
        topic: The topic.
        group: Its consumer group.
        task: Name of the task.
        decode: Makes the task's argument of a record's value.
    """

    topic: str
    group: str
    task: str
    decode: Callable[[bytes], Any] = read_json


class KafkaMethods:
    """What `TaskQ` inherits for Kafka."""

    if TYPE_CHECKING:
        name: str
        settings: Settings
        task: Any

        @property
        def broker(self) -> Broker:
            """See `TaskQ`."""

    @property
    def triggers(self) -> tuple[Trigger, ...]:
        """The topics whose records become tasks."""
        found: dict[tuple[str, str], Trigger] = self.__dict__.get("_triggers", {})
        return tuple(found.values())

    def on_kafka(
        self,
        topic: str,
        *,
        group: str = "",
        name: str = "",
        decode: Callable[[bytes], Any] = read_json,
        **options: Any,
    ) -> Callable[[Callable[..., Any]], Any]:
        """Declare a function that runs as a task for each record of a Kafka topic.

        `taskq bridge from-kafka` sends the tasks and commits an offset after the broker confirmed
        the task: at least once. Where there is a results store, a record whose task succeeded does
        not run again; `idempotency_key=` says what a record is, when not its place in the topic.
        `self.request.headers` (with `bind=True`) tells `kafka-topic`, `kafka-partition`,
        `kafka-offset`, `kafka-key` and `kafka-headers`.

        Args:
            topic: The topic.
            group: Consumer group; the app's name by default. Each group gets every record.
            name: Of the task; the function's by default.
            decode: Makes the task's argument of the record's bytes; JSON by default. What it
                raises for puts the record into `<topic>.dead`.
            **options: See `TaskQ.task`.

        Raises:
            ConfigError: If topic and group have a task already, or the function takes no argument.
        """
        if not isinstance(topic, str) or not 0 < len(topic) <= _LONGEST:
            raise ConfigError(f"topic is {topic!r:.80}; use the name of a Kafka topic")
        place = (topic, group or self.name)
        found: dict[tuple[str, str], Trigger] = self.__dict__.setdefault("_triggers", {})
        if place in found:
            raise ConfigError(
                f"topic {topic} triggers {found[place].task} for group {place[1]} already; use "
                "another group= for a second task"
            )

        def declare(function: Callable[..., Any]) -> Any:
            task = self.task(**({"name": name} if name else {}), **options)(function)
            try:
                task.check_arguments((None,), {})
            except TypeError as error:
                raise ConfigError(f"{task.name} is called with a record's value: {error}") from None
            found[place] = Trigger(topic, place[1], task.name, decode)
            return task

        return declare

    def _publish_away(
        self, to: str, key: str, payload: Any, headers: Mapping[str, Any] | None, record_key: str
    ) -> str:
        """Publish a message for the bridge; see `Messaging.publish`."""
        system, _, topic = to.partition(":")
        if system != "kafka" or len(topic) > _LONGEST:
            raise ConfigError(f"to is {to!r:.80}; use 'kafka', or 'kafka:' and a topic")
        data = {"key": check_key(key), "payload": payload, "headers": dict(headers or {})}
        try:
            # The bridge writes JSON: what has no form there must be seen by who sends it.
            json.dumps(data, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise EncodeError(f"a message to Kafka is JSON: {error}") from error
        data["topic"], data["record_key"] = topic, record_key or key
        return self._carried(data)

    def _carried(self, data: dict[str, Any]) -> str:
        lock: threading.Lock = self.__dict__.setdefault("_kafka_lock", threading.Lock())
        # One after the other: a later one that came first would make this one a duplicate.
        with lock:
            recorder = self._message_source()
            # Imported with the recorder: an app that publishes nothing away pays for nothing.
            from taskq.events.schema import MESSAGE

            recorder.tell(MESSAGE, data)
            item = recorder.take()
            if item is None:
                raise ConfigError("nothing to publish")
            error = self.broker.publish([item], self.settings.publish_timeout_s)[0]
            if error is not None:
                recorder.lost(item)
                raise error
            return item.message.id

    def _message_source(self) -> "Recorder":
        """Return the source of this process's messages, after the bridge's queue was made."""
        from taskq.events.bus import Recorder
        from taskq.events.schema import KAFKA_READER

        key = (os.getpid(), id(self.broker))
        known: tuple[tuple[int, int], Recorder] | None = self.__dict__.get("_kafka_source")
        if known is not None and known[0] == key:
            return known[1]
        feed = None
        try:
            # Without its queue, what is published before the first bridge starts would be lost.
            feed = self.broker.events(KAFKA_READER, 1)
        except BrokerUnavailable:
            # Publishing reports it, within its own time.
            return Recorder(self.name)
        finally:
            if feed is not None:
                feed.close()
        recorder = Recorder(self.name)
        self.__dict__["_kafka_source"] = (key, recorder)
        return recorder
