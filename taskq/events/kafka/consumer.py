"""Consuming lifecycle events: each once in effect, whatever the bridge sent twice dropped."""

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from taskq.errors import DecodeError
from taskq.events.kafka.client import module_error
from taskq.events.kafka.member import RecordConsumer, Slot
from taskq.events.kafka.reading import Place
from taskq.events.kafka.retries import RetryTopics
from taskq.events.schema import TYPE_URN, Event, from_cloudevent, json_loads
from taskq.events.watermark import Watermark
from taskq.flow.spec import CircuitBreaker

log = logging.getLogger("taskq.events")

_TIMEOUT_S: Final = 30.0
_METADATA_BYTES: Final = 4000
"""Kafka takes 4,096 bytes beside an offset by default."""
Handler = Callable[[Event], Any]


class EventConsumer(RecordConsumer):
    """A member of a consumer group that hands lifecycle events to a function.

    As `RecordConsumer`, and duplicates that the bridge made are dropped by the watermark of source
    and partition, which is committed beside the offset. What comes from a retry topic is not
    dropped.

    Attributes:
        handled: Events that a handler took.
        unreadable: Records that were no events; they are skipped, or go to the dead letters.
        unknown: Events of a version that this taskq does not know; they are handled as they are.
    """

    def __init__(
        self,
        properties: Mapping[str, Any],
        group: str,
        topics: Sequence[str],
        *,
        concurrency: int = 1,
        circuit_breaker: CircuitBreaker | None = None,
        retries: RetryTopics | None = None,
        dead_letters: bool = False,
    ) -> None:
        """Join the group with the first `run`; see `RecordConsumer`."""
        self.unknown = 0
        # Of what was read, and of what was handled: only the latter is committed.
        self._marks: dict[Place, Watermark] = defaultdict(Watermark)
        self._done: dict[Place, Watermark] = defaultdict(Watermark)
        super().__init__(
            properties,
            group,
            topics,
            concurrency=concurrency,
            circuit_breaker=circuit_breaker,
            retries=retries,
            dead_letters=dead_letters,
        )

    @property
    def duplicates(self) -> int:
        """Events that were dropped."""
        return sum(mark.duplicates for mark in self._marks.values())

    def seek(self, topic: str, partition: int, offset: int) -> None:
        """Go on from another place.

        Events up to the last that was handled are not handled again, for the watermark knows them;
        `forget` lets them pass.

        Args:
            topic: Which topic.
            partition: A partition that this member has.
            offset: The next record's.

        Raises:
            KafkaError: If the member does not have the partition.
        """
        super().seek(topic, partition, offset)

    def forget(self) -> None:
        """Forget the watermarks, so that `seek` brings events again."""
        self._marks.clear()
        self._done.clear()

    def _open(self, message: Any, place: Place) -> Event | None:
        try:
            item = json_loads(message.value() or b"")
        except ValueError as error:
            raise DecodeError(f"not a CloudEvent of taskq: {error}") from error
        event = from_cloudevent(item)
        schema = item.get("dataschema", TYPE_URN)
        if not (isinstance(schema, str) and schema.startswith(TYPE_URN)):
            self.unknown += 1
        if self._failures is not None and self._failures.is_retry(place[0]):
            return event
        mark = self._marks[place]
        return event if mark.new(event.source, event.sequence, contiguous=False) else None

    def _taken(self, slot: Slot) -> None:
        event = slot.item
        if event is not None:
            self._done[slot.place].new(event.source, event.sequence)

    def _metadata(self, place: Place) -> str:
        return _write_marks(self._done[place].seen)

    def _went_back(self, place: Place) -> None:
        mark = self._marks[place]
        mark.seen = dict(self._done[place].seen)

    def _got(self, client: Any, partitions: Sequence[Any]) -> None:
        """Go on with the watermarks that whoever had the partitions committed with its offsets."""
        try:
            committed = client.committed(partitions, timeout=_TIMEOUT_S)
        except module_error() as error:
            log.warning("cannot read watermarks, duplicates may pass error=%s", error)
            return
        for part in committed:
            seen = _read_marks(part.metadata)
            place = (part.topic, part.partition)
            self._marks[place].seen = dict(seen)
            self._done[place] = Watermark(seen)


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
