"""Consuming events: each once in effect, committed after it was handled, in order for each key."""

import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from typing import Any, Final

from taskq.errors import ConfigError, DecodeError
from taskq.events.kafka.client import KafkaError, load_client, make, masked
from taskq.events.schema import Event, read_cloudevent
from taskq.events.watermark import Watermark

log = logging.getLogger("taskq.events")

CONSUMER: Final[Mapping[str, Any]] = {
    "enable.auto.commit": False,
    "auto.offset.reset": "earliest",
    "isolation.level": "read_committed",
}
_BATCH: Final = 500
_TIMEOUT_S: Final = 30.0
_METADATA_BYTES: Final = 4000
"""Kafka takes 4,096 bytes beside an offset by default."""
Handler = Callable[[Event], Any]
_Place = tuple[str, int]
_Running = tuple[Any, Event | None, "Future[Any] | None"]


class EventConsumer:
    """A member of a consumer group that hands events to a function.

    An offset is committed only when the event and all before it in its partition were handled, so
    a member that is killed loses none; the next one gets the last again. Duplicates that the
    bridge made are dropped by the watermark of source and partition, which is committed beside
    the offset. What a handler did between a commit and a crash happens twice: make it idempotent.

    Attributes:
        handled: Events that a handler took.
        unreadable: Records that were no events; they are skipped, and counted.
        duplicates: Events that were dropped.
    """

    def __init__(
        self,
        properties: Mapping[str, Any],
        group: str,
        topics: Sequence[str],
        *,
        concurrency: int = 1,
    ) -> None:
        """Join the group with the first `run`.

        Args:
            properties: Of librdkafka; at least `bootstrap.servers`. They win over `CONSUMER`.
            group: Name of the group; its members share the partitions.
            topics: What to read.
            concurrency: Threads that handle events; those of one key stay in order.

        Raises:
            ConfigError: If the client is not installed, or refuses a property.
        """
        if concurrency < 1:
            raise ConfigError(f"concurrency is {concurrency}; it must be at least 1")
        self.handled = 0
        self.unreadable = 0
        self._module = load_client()
        # Of what was read, and of what was handled: only the latter is committed.
        self._marks: dict[_Place, Watermark] = defaultdict(Watermark)
        self._done: dict[_Place, Watermark] = defaultdict(Watermark)
        self._concurrency = concurrency
        self._properties = {**CONSUMER, **properties, "group.id": group}
        self._client = make("Consumer", self._properties)
        self._client.subscribe(list(topics), on_assign=self._assigned)
        self._stopped = False
        self._threads = [
            ThreadPoolExecutor(1, f"taskq-events-{number}") for number in range(concurrency)
        ]

    @property
    def duplicates(self) -> int:
        """Events that were dropped."""
        return sum(mark.duplicates for mark in self._marks.values())

    def run(self, handler: Handler, *, until: Callable[[], bool] | None = None) -> None:
        """Handle events until `stop`, or until `until` says so between two batches.

        Args:
            handler: Called with each event. When it raises, nothing of its partition from there
                on is committed, and `run` raises it: the events come again to the next `run`, here
                or elsewhere.
            until: Asked after each batch.

        Raises:
            KafkaError: If Kafka refuses for good.
        """
        while not self._stopped and not (until is not None and until()):
            records = self._guarded(lambda: self._client.consume(_BATCH, 0.1))
            if records:
                self._handle(records, handler)

    def stop(self) -> None:
        """End `run` after the batch in hand; from any thread."""
        self._stopped = True

    def close(self) -> None:
        """Leave the group; its partitions go to the other members at once."""
        for thread in self._threads:
            thread.shutdown()
        self._client.close()

    def pause(self) -> None:
        """Take nothing more for now, and stay in the group: keep calling `run`, or it ends."""
        self._client.pause(self._client.assignment())

    def resume(self) -> None:
        """Go on after `pause`."""
        self._client.resume(self._client.assignment())

    def seek(self, topic: str, partition: int, offset: int) -> None:
        """Go on from another place.

        Events up to the last that was handled are not handled again, for the watermark knows them;
        `forget` lets them pass.

        Args:
            topic: Which topic.
            partition: A partition that this member has.
            offset: The next record's.
        """
        self._marks[topic, partition] = Watermark(dict(self._done[topic, partition].seen))
        place = self._module.TopicPartition(topic, partition, offset)
        self._guarded(lambda: self._client.seek(place))

    def forget(self) -> None:
        """Forget the watermarks, so that `seek` brings events again."""
        self._marks.clear()
        self._done.clear()

    def _handle(self, records: Sequence[Any], handler: Handler) -> None:
        running: list[_Running] = []
        for record in records:
            if record.error() is not None:
                if record.error().fatal():
                    raise KafkaError(f"Kafka's consumer: {record.error().str()}")
                continue
            event = self._fresh(record)
            future = None
            if event is not None:
                thread = self._threads[hash(record.key()) % self._concurrency]
                future = thread.submit(handler, event)
            running.append((record, event, future))
        self._finish(running)

    def _finish(self, running: Sequence[_Running]) -> None:
        """Wait for the handlers; commit up to the first that failed in each partition."""
        offsets: dict[_Place, int] = {}
        failed: dict[_Place, int] = {}
        failure: BaseException | None = None
        for record, event, future in running:
            place = (record.topic(), record.partition())
            error = None if future is None else future.exception()
            if error is not None:
                failure = failure or error
                failed.setdefault(place, record.offset())
            if place in failed:
                continue
            offsets[place] = record.offset() + 1
            if event is not None:
                self.handled += 1
                self._done[place].new(event.source, event.sequence)
        self._commit(offsets)
        for (topic, partition), offset in failed.items():
            # So that another `run` of this member begins with what failed, too.
            self.seek(topic, partition, offset)
        if failure is not None:
            raise failure

    def _commit(self, offsets: Mapping[tuple[str, int], int]) -> None:
        if not offsets:
            return
        places = [
            self._module.TopicPartition(topic, partition, offset, self._metadata(topic, partition))
            for (topic, partition), offset in offsets.items()
        ]
        try:
            self._client.commit(offsets=places, asynchronous=False)
        except self._module.KafkaException as error:
            # During a rebalance: whoever has the partition now gets the events again.
            log.info("cannot commit, events will come again error=%s", error.args[0].str())

    def _metadata(self, topic: str, partition: int) -> str:
        return _write_marks(self._done[topic, partition].seen)

    def _fresh(self, record: Any) -> Event | None:
        try:
            event = read_cloudevent(record.value() or b"")
        except DecodeError as error:
            self.unreadable += 1
            place = f"{record.topic()}[{record.partition()}]@{record.offset()}"
            log.warning("skipping a record that is no event place=%s error=%s", place, error)
            return None
        mark = self._marks[record.topic(), record.partition()]
        return event if mark.new(event.source, event.sequence, contiguous=False) else None

    def _assigned(self, client: Any, partitions: Sequence[Any]) -> None:
        """Go on with the watermarks that whoever had the partitions committed with its offsets."""
        try:
            committed = client.committed(partitions, timeout=_TIMEOUT_S)
        except self._module.KafkaException as error:
            log.warning("cannot read watermarks, duplicates may pass error=%s", error)
            return
        for place in committed:
            seen = _read_marks(place.metadata)
            self._marks[place.topic, place.partition] = Watermark(dict(seen))
            self._done[place.topic, place.partition] = Watermark(seen)

    def _guarded(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except self._module.KafkaException as error:
            text = masked(error, self._properties)
            raise KafkaError(f"Kafka's consumer: {text}") from None


def _write_marks(seen: Mapping[str, int]) -> str:
    """Return the latest sources' sequences as a text that fits beside an offset in Kafka."""
    marks: dict[str, int] = {}
    left = _METADATA_BYTES
    for source, sequence in reversed(list(seen.items())):
        left -= len(source) + 26
        if left < 0:
            break
        marks[source] = sequence
    return json.dumps(dict(reversed(marks.items())), separators=(",", ":"))


def _read_marks(text: str | None) -> dict[str, int]:
    try:
        found = json.loads(text or "{}")
        return {str(source): int(sequence) for source, sequence in found.items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def replay(
    properties: Mapping[str, Any],
    topic: str,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Iterator[Event]:
    """Yield the events of a topic between two moments, without duplicates, and end.

    Records are chosen by the time of the event itself; reading begins where Kafka's index by time
    says, and ends at what is in the topic when it begins.

    Args:
        properties: Of librdkafka; at least `bootstrap.servers`.
        topic: What to read.
        since: From then on; from the beginning when None.
        until: Before then; to the end when None.

    Raises:
        KafkaError: If Kafka does not answer, or has no such topic.
    """
    module = load_client()
    own = {**CONSUMER, **properties, "group.id": "taskq-replay"}
    client = make("Consumer", own)
    try:
        ends = _assigned(client, module, topic, since)
        marks = {partition: Watermark() for partition in ends}
        deadline = time.monotonic() + _TIMEOUT_S
        while ends:
            for record in client.consume(_BATCH, 0.2):
                if record.error() is not None:
                    continue
                deadline = time.monotonic() + _TIMEOUT_S
                partition = record.partition()
                yield from _wanted(record, marks[partition], since, until)
            for place in client.position([module.TopicPartition(topic, n) for n in ends]):
                if place.offset >= ends[place.partition]:
                    del ends[place.partition]
            if time.monotonic() > deadline:
                raise KafkaError(f"nothing came from {topic} for {_TIMEOUT_S:g} s")
    except module.KafkaException as error:
        raise KafkaError(f"Kafka's consumer: {masked(error, own)}") from None
    finally:
        client.close()


def _assigned(client: Any, module: Any, topic: str, since: datetime | None) -> dict[int, int]:
    """Place the consumer, and return where each partition that has something ends."""
    found = client.list_topics(topic, timeout=_TIMEOUT_S).topics[topic]
    if not found.partitions or found.error is not None:
        raise KafkaError(f"Kafka has no topic {topic}")
    moment_ms = -2 if since is None else round(since.timestamp() * 1000)
    places = [module.TopicPartition(topic, number, moment_ms) for number in found.partitions]
    if since is not None:
        places = client.offsets_for_times(places, timeout=_TIMEOUT_S)
    ends = {}
    chosen = []
    for place in places:
        low, high = client.get_watermark_offsets(place, timeout=_TIMEOUT_S)
        begin = low if place.offset == -2 else place.offset
        if 0 <= begin < high:
            ends[place.partition] = high
            chosen.append(module.TopicPartition(topic, place.partition, begin))
    client.assign(chosen)
    return ends


def _wanted(
    record: Any, mark: Watermark, since: datetime | None, until: datetime | None
) -> Iterator[Event]:
    try:
        event = read_cloudevent(record.value() or b"")
    except DecodeError:
        return
    if not mark.new(event.source, event.sequence, contiguous=False):
        return
    early = since is not None and event.time_us < since.timestamp() * 1e6
    late = until is not None and event.time_us >= until.timestamp() * 1e6
    if not early and not late:
        yield event
