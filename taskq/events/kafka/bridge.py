"""The bridge: events from the broker to Kafka, nothing lost, duplicates recognisable.

A batch is acknowledged at the broker after Kafka reported each of its events as written. A bridge
that is killed sends its last batches again, in the same order: what comes twice lies at or below
the watermark of its source in its partition. One thread does everything.
"""

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from taskq.errors import BrokerUnavailable, ConfigError, DecodeError
from taskq.events.bus import Recorder
from taskq.events.feed import EventFeed
from taskq.events.kafka.client import KafkaError, load_client, make, masked
from taskq.events.kafka.topics import DEAD, Topics
from taskq.events.schema import CONTENT_TYPE, PREFIX, Event, read_batch, to_cloudevent
from taskq.events.silence import Silence
from taskq.events.watermark import Watermark

log = logging.getLogger("taskq.bridge")

PRODUCER: Final[Mapping[str, Any]] = {
    "enable.idempotence": True,
    "acks": "all",
    "compression.type": "zstd",
    "linger.ms": 20,
    # An outage is waited for: giving up would reorder.
    "message.timeout.ms": 0,
    # Java's partitioner; librdkafka's own puts the same key elsewhere, and joins break.
    "partitioner": "murmur2_random",
    "queue.buffering.max.messages": 200_000,
    "topic.metadata.propagation.max.ms": 10_000,
}
MAX_IN_FLIGHT: Final = 20_000
"""Events that Kafka has not reported yet; beyond it nothing more is read."""
STALLED_S: Final = 30.0
"""After so long without a report, while some are due, the bridge is not ready."""
_CUT_BYTES: Final = 5000
_IDLE_S: Final = 0.05
_RETRY_S: Final = 0.5
_WARN_EVERY_S: Final = 30.0
_REFUSED: Final = ("TOPIC_AUTHORIZATION_FAILED", "CLUSTER_AUTHORIZATION_FAILED")
_MISSING: Final = ("_UNKNOWN_TOPIC", "UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_PARTITION")


def _serializer() -> Callable[[Any], bytes]:
    try:
        import orjson
    except ImportError:
        encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
        return lambda value: encode(value).encode()
    return orjson.dumps


class Batch:
    """A batch on its way: how many of its events Kafka has not reported.

    Attributes:
        receipt: What the feed takes back.
        left: Events without a report.
    """

    __slots__ = ("left", "receipt")

    def __init__(self, receipt: Any, left: int) -> None:
        self.receipt = receipt
        self.left = left


class Bridge:
    """Carries events until it is told to stop.

    Attributes:
        produced: Events that Kafka reported as written, dead ones included.
        dead: Events and batches that went to a dead-letter topic.
        in_flight: Events without a report.
        watermark: Counts events that came twice, and gaps.
        trouble: What it waits for, or empty.
    """

    def __init__(
        self, feed: EventFeed, properties: Mapping[str, Any], topics: Topics | None = None
    ) -> None:
        """Prepare; the producer begins to connect.

        Args:
            feed: A named reader of events.
            properties: Of librdkafka; they win over `PRODUCER`.
            topics: Names and keys.

        Raises:
            ConfigError: If the client is not installed, or refuses a property.
        """
        self.produced = 0
        self.dead = 0
        self.in_flight = 0
        self.watermark = Watermark()
        self._silence = Silence()
        self._recorder = Recorder("bridge")
        self.trouble = ""
        largest = int(properties.get("message.max.bytes", 1_000_000))
        self._cut_bytes = min(_CUT_BYTES, largest // 2)
        self._feed = feed
        self._dumps = _serializer()
        self._topics = topics or Topics()
        self._properties = {**PRODUCER, "error_cb": self._on_error, **properties}
        self._errors = (load_client().KafkaException, SystemError)
        self._producer = make("Producer", self._properties)
        self._batches: deque[Batch] = deque()
        self._inbox: deque[tuple[Any, bytes]] = deque()
        self._failure: Exception | None = None
        self._reported_s = time.monotonic()
        self._warned_s = -_WARN_EVERY_S
        self._gaps_told = 0

    @property
    def stalled(self) -> bool:
        """Whether Kafka has not reported for long although events are due."""
        return self.in_flight > 0 and time.monotonic() - self._reported_s > STALLED_S

    def run(self, stopped: Callable[[], bool], grace_s: float = 10.0) -> None:
        """Carry events until `stopped` says so, then wait for the reports that are due.

        Args:
            stopped: Asked in each turn.
            grace_s: How long reports may take at the end, in seconds.

        Raises:
            KafkaError: If the producer cannot go on; a new one can (exit code 75).
            ConfigError: If topics are missing or may not be written.
        """
        while not stopped():
            self.turn()
        deadline = time.monotonic() + grace_s
        while self.in_flight and time.monotonic() < deadline:
            self._poll(_IDLE_S)
            self._acknowledge()

    def turn(self) -> None:
        """Read what has come, hand it to the producer, acknowledge what Kafka reported."""
        if self.in_flight < MAX_IN_FLIGHT and not self._inbox:
            self._inbox.extend(self._read())
        carried = False
        while self._inbox and self.in_flight < MAX_IN_FLIGHT:
            self._carry(*self._inbox.popleft())
            carried = True
        # With nothing to carry it waits for a report, which ends the wait; it must not spin.
        self._poll(_IDLE_S if self.in_flight and not carried else 0)
        self._acknowledge()

    def _read(self) -> list[tuple[Any, bytes]]:
        try:
            found = self._feed.get(0.0 if self.in_flight else _IDLE_S)
            return found or self._lost_workers()
        except BrokerUnavailable as error:
            self._warn(f"waiting for the broker error={error}")
            time.sleep(_RETRY_S)
            return []

    def _lost_workers(self) -> list[tuple[Any, bytes]]:
        """Return a batch, without a receipt, of workers that were not heard of for too long."""
        if not self._feed.active:
            self._silence.forgive()
            return []
        for data in self._silence.lost():
            self._recorder.tell("worker.lost", data)
        item = self._recorder.take()
        return [] if item is None else [(None, item.message.body)]

    def _carry(self, receipt: Any, body: bytes) -> None:
        try:
            events = read_batch(body)
        except DecodeError as error:
            batch = self._begin(receipt, 1)
            log.warning("a batch cannot be read, it goes to the dead-letter topic error=%s", error)
            self._bury(batch, self._topics.tasks, "", body, str(error))
            return
        self._silence.seen(events)
        batch = self._begin(receipt, len(events))
        for event in events:
            self.watermark.new(event.source, event.sequence)
            self._produce_event(batch, event)
        if self.watermark.gaps > self._gaps_told:
            self._warn(f"events are missing gap={self.watermark.gaps - self._gaps_told}")
            self._gaps_told = self.watermark.gaps

    def _begin(self, receipt: Any, count: int) -> Batch:
        if not self.in_flight:
            self._reported_s = time.monotonic()
        batch = Batch(receipt, count)
        self._batches.append(batch)
        self.in_flight += count
        return batch

    def _produce_event(self, batch: Batch, event: Event) -> None:
        topic, key = self._topics.route(event)
        try:
            value = self._dumps(to_cloudevent(event, key))
        except (TypeError, ValueError) as error:
            self._bury(batch, topic, key, repr(event).encode("utf-8", "replace"), str(error))
            return
        headers = [
            ("content-type", CONTENT_TYPE),
            ("ce_id", event.id),
            ("ce_source", event.source),
            ("ce_type", PREFIX + event.type),
        ]

        def report(error: Any, _: Any) -> None:
            if error is None:
                self._written(batch)
            else:
                self._not_written(batch, error, topic, key, value)

        self._produce(topic, key, value, headers, report, batch)

    def _produce(
        self,
        topic: str,
        key: str,
        value: bytes,
        headers: list[tuple[str, str]],
        report: Callable[[Any, Any], None],
        batch: Batch,
    ) -> None:
        while True:
            try:
                self._producer.produce(
                    topic, value, key.encode() or None, headers=headers, on_delivery=report
                )
                return
            except BufferError:
                self._poll(_IDLE_S)
            except self._errors as error:
                if "MSG_SIZE_TOO_LARGE" not in str(error) or topic.endswith(DEAD):
                    raise self._fatal(error) from None
                self._bury(batch, topic, key, value, "larger than the producer allows")
                return

    def _bury(self, batch: Batch, topic: str, key: str, value: bytes, why: str) -> None:
        """Send what has no place in a topic to its dead-letter topic, its error in the headers."""
        self.dead += 1
        headers = [("taskq-error", why[:1000]), ("taskq-topic", topic)]
        if len(value) > self._cut_bytes:
            # The limit that it broke holds there, too; its name and its beginning are kept.
            headers.append(("taskq-bytes", str(len(value))))
            value = value[: self._cut_bytes]

        def report(error: Any, _: Any) -> None:
            if error is not None:
                self._stop(error)
                return
            self._written(batch)

        self._produce(self._topics.dead(topic), key, value, headers, report, batch)

    def _written(self, batch: Batch) -> None:
        batch.left -= 1
        self.in_flight -= 1
        self.produced += 1
        self._reported_s = time.monotonic()
        self.trouble = ""

    def _not_written(self, batch: Batch, error: Any, topic: str, key: str, value: bytes) -> None:
        name = error.name()
        # A topic that one message names must not end the bridge for all.
        own = topic in self._topics.every and (name in _REFUSED or name in _MISSING)
        if error.fatal() or (error.retriable() and name not in _MISSING) or own:
            # Not this event's fault: nothing of it is acknowledged.
            self._stop(error)
        else:
            why = f"{name}: {error.str()}"
            log.warning("an event goes to the dead-letter topic topic=%s error=%s", topic, why)
            self._bury(batch, topic, key, value, why)

    def _stop(self, error: Any) -> None:
        if self._failure is not None:
            return
        name, text = error.name(), masked(error.str(), self._properties)
        if name in _REFUSED:
            self._failure = ConfigError(f"Kafka does not let this user write: {text}")
        elif name in _MISSING:
            self._failure = ConfigError(
                f"a topic is missing ({text}); make them: taskq bridge kafka --create-topics"
            )
        else:
            self._failure = KafkaError(f"Kafka's producer cannot go on: {name} {text}")

    def _fatal(self, error: Exception) -> Exception:
        first = error.args[0] if error.args else None
        if hasattr(first, "name"):
            self._stop(first)
        text = masked(error, self._properties)
        return self._failure or KafkaError(f"Kafka's producer cannot go on: {text}")

    def _poll(self, timeout_s: float) -> None:
        try:
            self._producer.poll(timeout_s)
        # A fatal error makes the client run callbacks with that exception pending, which shows
        # as SystemError; reports may be lost then, so nothing more is acknowledged.
        except self._errors as error:
            raise self._fatal(error) from None
        if self._failure is not None:
            raise self._failure

    def _acknowledge(self) -> None:
        """Acknowledge up to the first batch that is not written whole."""
        last = None
        while self._batches and not self._batches[0].left:
            batch = self._batches.popleft()
            last = batch if batch.receipt is not None else last
        if last is None:
            return
        try:
            self._feed.ack(last.receipt)
        except BrokerUnavailable as error:
            # The next acknowledgement covers it, or the batches come again.
            self._warn(f"waiting for the broker error={error}")

    def _on_error(self, error: Any) -> None:
        if error.fatal():
            self._stop(error)
        else:
            self._warn(f"waiting for Kafka error={masked(error.str(), self._properties)}")

    def _warn(self, text: str) -> None:
        self.trouble = text
        now_s = time.monotonic()
        if now_s - self._warned_s >= _WARN_EVERY_S:
            self._warned_s = now_s
            log.warning("%s", text)
