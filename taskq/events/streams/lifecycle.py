"""The lifecycle log as a streaming frame: decoded, without duplicates, in event time."""

import contextlib
import importlib
import logging
import shutil
import signal
import tempfile
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from taskq.errors import ConfigError, DecodeError
from taskq.events.kafka.client import KafkaError, load_client, masked
from taskq.events.kafka.topics import Topics, describe
from taskq.events.schema import Event, read_cloudevent
from taskq.events.streams.frames import Row, by_partition, remember, stamped

log = logging.getLogger("taskq.events")

MAX_AHEAD_S: Final = 60.0
"""An event of a later time than this beyond its record's does not move the clock."""
MAX_SOURCES: Final = 100_000
"""Sources that a partition remembers; beyond it those that came first are forgotten."""
_TIMEOUT_S: Final = 30.0
_TRANSACTION_MS: Final = 15_000


def load_engine() -> Any:
    """Return the module `quixstreams`.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        # One of its dependencies warns, whatever the filters, of what its user cannot mend.
        with warnings.catch_warnings(record=True):
            return importlib.import_module("quixstreams")
    except ImportError as error:
        raise ConfigError("streams need quixstreams: pip install 'taskq-mq[streams]'") from error


def to_row(event: Event, recorded_us: int) -> Row:
    """Return an event as a frame carries it: its data, and what names and times it.

    Args:
        event: The event.
        recorded_us: When Kafka got it, as epoch microseconds.
    """
    return {
        **event.data,
        "type": event.type,
        "source": event.source,
        "sequence": event.sequence,
        "time_us": event.time_us,
        # A worker whose clock is a day ahead must not make the events of all others late.
        "clock_us": min(event.time_us, recorded_us + round(MAX_AHEAD_S * 1e6)),
    }


class LifecycleStream:
    """The lifecycle log, read by a member of a group, with Quix Streams behind it.

    Members of one group share the partitions, and take over what another one leaves or loses, with
    its state. With `exactly_once`, what they write, their state and their place in the log are
    committed in one transaction of Kafka: a member that is killed leaves no trace of what it had
    not committed, for readers of committed records.

    Attributes:
        application: Quix Streams' own `Application`.
        frame: A `StreamingDataFrame` of rows, see `to_row`. Its key is the record's, as bytes: the
            task's id. Its timestamps are the events' time.
        unreadable: Records that this member skipped because they were no events.
        duplicates: Events that this member dropped because they had come before.
    """

    def __init__(
        self,
        properties: Mapping[str, Any],
        group: str,
        topic: str = Topics().tasks,
        *,
        exactly_once: bool = True,
        member: str = "",
        state_directory: str | Path | None = None,
        commit_interval_s: float = 1.0,
    ) -> None:
        """Connect and look at the topic; nothing is read before `run`.

        Args:
            properties: Of librdkafka; at least `bootstrap.servers`.
            group: Name of the consumer group; its state topics have it in their names.
            topic: The log.
            exactly_once: Whether to use transactions; without them, each event counts at least
                once, and what was not committed counts twice after a crash.
            member: Name of this process among the group, such as its host's, which must be its
                alone. A process that starts again under its name ends the transaction that it left
                at once; else the broker does, after 15 s.
            state_directory: Where state lies, of this process alone. None: in a directory that
                goes with `run`, and is restored from Kafka.
            commit_interval_s: How often to commit, in seconds; with `exactly_once` nothing is seen
                before.

        Raises:
            ConfigError: If quixstreams is not installed, the topic is missing or a property is
                refused.
            KafkaError: If Kafka does not answer.
        """
        engine = load_engine()
        self.unreadable = 0
        self.duplicates = 0
        self._properties = dict(properties)
        self._errors = (load_client().KafkaException, *_engine_errors())
        if topic not in describe(self._properties, _TIMEOUT_S):
            raise ConfigError(
                f"Kafka has no topic {topic}; make it: taskq bridge kafka --create-topics"
            )
        own = {name: v for name, v in properties.items() if name != "bootstrap.servers"}
        producer = dict(own)
        if exactly_once:
            producer.setdefault("transaction.timeout.ms", _TRANSACTION_MS)
            if member:
                producer["transactional.id"] = f"{group}-{member}"
        self._remove: Callable[[], object] = lambda: None
        if state_directory is None:
            state_directory = tempfile.mkdtemp(prefix="taskq-streams-")
            # Also for a stream that is never run.
            self._remove = weakref.finalize(self, shutil.rmtree, state_directory, True)
        with self._translated():
            self.application = engine.Application(
                self._properties["bootstrap.servers"],
                consumer_group=group,
                auto_offset_reset="earliest",
                commit_interval=commit_interval_s,
                consumer_extra_config=own,
                producer_extra_config=producer,
                consumer_poll_timeout=0.2,
                state_dir=state_directory,
                loglevel=None,
                processing_guarantee="exactly-once" if exactly_once else "at-least-once",
            )
            source = self.application.topic(topic, value_deserializer="bytes")
            self.frame = self._events(self.application.dataframe(source))

    def write(
        self, frame: Any, topic: str, key: Callable[[Row], str], *, cleanup: str = "delete"
    ) -> None:
        """Write the rows of a frame to a topic, as JSON; it is made when it is missing.

        The records' timestamps are when they are written.

        Args:
            frame: Of this stream.
            topic: Where to, with as many partitions as the log when it is made.
            key: Gives the key of a row's record.
            cleanup: `cleanup.policy` of a topic that is made: `compact` keeps the last record of
                each key for ever, `delete` all for 7 days.
        """
        with self._translated():
            log_topic = self.frame.topics[0].broker_config
            config = importlib.import_module("quixstreams.models").TopicConfig(
                num_partitions=log_topic.num_partitions,
                replication_factor=log_topic.replication_factor,
                extra_config={"cleanup.policy": cleanup},
            )
            target = self.application.topic(topic, key_serializer="str", config=config)
            stamped(frame).to_topic(target, key=key)

    def run(self, *, idle_s: float = 0.0) -> None:
        """Process until `stop`, SIGTERM or SIGINT; commits what was done when it ends.

        Args:
            idle_s: Also end when nothing came for so long, in seconds; 0 means never.

        Raises:
            ConfigError: When it is not called in the main thread.
            KafkaError: If Kafka refuses or is gone for good.
        """
        if threading.current_thread() is not threading.main_thread():
            raise ConfigError("run() takes signals, so it must be called in the main thread")
        # The engine leaves its own handlers behind.
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with self._translated():
                self.application.run(timeout=idle_s, collect=False)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._remove()

    def stop(self) -> None:
        """End `run` after the row in hand; from any thread or signal handler."""
        self.application.stop()

    def _events(self, frame: Any) -> Any:
        rows = frame.apply(self._decode, metadata=True).filter(lambda row: row is not None)
        rows = rows.set_timestamp(lambda row, *_: row["clock_us"] // 1000)
        return by_partition(rows, self._fresh)

    def _decode(self, body: bytes | None, key: Any, timestamp_ms: int, headers: Any) -> Row | None:
        try:
            return to_row(read_cloudevent(body or b""), timestamp_ms * 1000)
        except DecodeError as error:
            self.unreadable += 1
            log.warning("skipping a record that is no event error=%s", error)
            return None

    def _fresh(self, row: Row, key: Any, state: Any) -> Iterable[tuple[Any, Row]]:
        """Pass what lies above its source's mark; a mark goes with the partition's state."""
        name = f"seen:{row['source']}"
        last = state.get(name)
        if last is not None and row["sequence"] <= last:
            self.duplicates += 1
            return []
        if last is None:
            remember(state, "source", name, MAX_SOURCES)
        state.set(name, row["sequence"])
        return [(key, row)]

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            text = masked(error, self._properties)
            raise KafkaError(f"streams: {type(error).__name__} {text}") from error


def _engine_errors() -> tuple[type[Exception], ...]:
    found = importlib.import_module("quixstreams.exceptions").QuixException
    return (found,)
