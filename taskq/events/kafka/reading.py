"""Reading as a member of a group: partitions that wait, and a group that keeps its member.

A paused partition keeps its place and brings nothing. While anything is paused Kafka is asked on:
what came from partitions that are new meanwhile waits in a backlog.
"""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from taskq.errors import ConfigError
from taskq.events.kafka.client import KafkaError, load_client, make, masked

log = logging.getLogger("taskq.events")

CONSUMER: Final[Mapping[str, Any]] = {
    "enable.auto.commit": False,
    "auto.offset.reset": "earliest",
    "isolation.level": "read_committed",
}
BATCH: Final = 500
_POLL_S: Final = 0.1
_MISSING_S: Final = 3.0
_ASK_S: Final = 5.0
_REFUSED: Final = ("TOPIC_AUTHORIZATION_FAILED", "GROUP_AUTHORIZATION_FAILED")
_MISSING: Final = ("UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC")
Place = tuple[str, int]


class GroupReader:
    """Reads topics for a member of a group.

    Attributes:
        trouble: What it waits for, or empty.
        went_back: Called with each place from which records will be read again.
        got: Called with the partitions that the group gave to this member.
    """

    def __init__(self, properties: Mapping[str, Any], group: str, topics: Sequence[str]) -> None:
        """Prepare; the group is joined with the first `read`.

        Args:
            properties: Of librdkafka; they win over `CONSUMER`.
            group: Name of the group.
            topics: What to read.

        Raises:
            ConfigError: If the client is not installed, or refuses a property.
        """
        self.trouble = ""
        self.went_back: Callable[[Place], None] = lambda place: None
        self.got: Callable[[Any, Sequence[Any]], None] = lambda client, partitions: None
        module = load_client()
        self._errors = module.KafkaException
        self._part = module.TopicPartition
        self._topics = list(topics)
        self._properties = {"error_cb": self._on_error, **CONSUMER, **properties, "group.id": group}
        self._client = make("Consumer", self._properties)
        self._subscribed = False
        self._missing_s = 0.0
        self._paused: set[str] = set()
        self._held: dict[Place, float] = {}
        self._backlog: deque[Any] = deque()

    def read(self, limit: int = BATCH) -> Sequence[Any]:
        """Return what has come, or what comes soon; nothing while paused.

        Args:
            limit: How many records at most.

        Raises:
            ConfigError: If a topic is missing, or may not be read.
            KafkaError: If Kafka refuses for good.
        """
        if not self._subscribed:
            self._subscribed = True
            self._client.subscribe(self._topics, on_assign=self._assigned, on_revoke=self._revoked)
        self._wake()
        if self._missing_s and time.monotonic() - self._missing_s > _MISSING_S:
            self._look_for_topics()
        if self._paused:
            self.ask(_POLL_S)
            return ()
        if self._backlog:
            return [self._backlog.popleft() for _ in range(min(limit, len(self._backlog)))]
        return self._consume(limit, _POLL_S)

    def ask(self, timeout_s: float) -> None:
        """Show the group that this member lives, and read nothing.

        Args:
            timeout_s: How long to wait for news of the group, in seconds.
        """
        with contextlib.suppress(self._errors):
            self._client.pause(self._client.assignment())
        self._backlog.extend(self._consume(BATCH, timeout_s))

    def pause(self, why: str) -> None:
        """Bring nothing until `resume` was called with each reason."""
        if why not in self._paused:
            self._paused.add(why)
            with contextlib.suppress(self._errors):
                self._client.pause(self._client.assignment())

    def resume(self, why: str) -> None:
        """Take a reason for a pause back."""
        if why in self._paused:
            self._paused.discard(why)
            assigned = [(part.topic, part.partition) for part in self._client.assignment()]
            self._unpause([place for place in assigned if place not in self._held])

    def hold(self, message: Any, wait_s: float) -> None:
        """Let a record and all behind it in its partition wait; the other partitions go on.

        Args:
            message: The record; it is read again.
            wait_s: How long, in seconds.
        """
        place = (message.topic(), message.partition())
        self._held[place] = time.monotonic() + wait_s
        with contextlib.suppress(self._errors):
            self._client.pause([self._part(*place)])
        self.go_back(place, message.offset())

    def holds(self, place: Place) -> bool:
        """Return whether a partition waits."""
        return place in self._held

    def go_back(self, place: Place, offset: int) -> None:
        """Read on from an offset, if the partition is still this member's.

        Args:
            place: Topic and partition.
            offset: The next record's.
        """
        # If it is another member's now, that one begins at what is committed.
        with contextlib.suppress(KafkaError):
            self.seek(place, offset)

    def seek(self, place: Place, offset: int) -> None:
        """Read on from an offset.

        Args:
            place: Topic and partition.
            offset: The next record's.

        Raises:
            KafkaError: If this member does not have the partition.
        """
        self.went_back(place)
        self._drop_backlog({place})
        try:
            self._client.seek(self._part(*place, offset))
        except self._errors as error:
            raise KafkaError(f"cannot seek {place[0]}[{place[1]}]: {error}") from None

    def commit(self, offsets: Mapping[Place, tuple[int, str]]) -> None:
        """Commit the offset of the next record of each place, and a text beside it."""
        if not offsets:
            return
        parts = [self._part(*place, *value) for place, value in offsets.items()]
        try:
            self._client.commit(offsets=parts, asynchronous=False)
        except self._errors as error:
            # During a rebalance: whoever has the partition now gets the records again.
            log.info("cannot commit, records will come again error=%s", error.args[0].str())

    def close(self) -> None:
        """Leave the group."""
        self._client.close()

    def warn(self, text: str) -> None:
        """Note what it waits for; logged once until records come again."""
        if not self.trouble:
            log.warning("%s", text)
        self.trouble = text

    def _consume(self, limit: int, timeout_s: float) -> list[Any]:
        try:
            messages = self._client.consume(limit, timeout_s)
        except self._errors as error:
            text = masked(error, self._properties)
            raise KafkaError(f"Kafka's consumer: {text}") from None
        kept = []
        for message in messages:
            if message.error() is None:
                kept.append(message)
            else:
                self._refused(message.error())
        if kept:
            self.trouble = ""
        return kept

    def _refused(self, error: Any) -> None:
        text = masked(error.str(), self._properties)
        if error.name() in _REFUSED:
            raise ConfigError(f"Kafka does not let this user read: {text}")
        if error.name() in _MISSING and not self._missing_s:
            self._missing_s = time.monotonic()
        if error.fatal():
            raise KafkaError(f"Kafka's consumer: {text}")

    def _look_for_topics(self) -> None:
        """See whether a topic that was missing is still: one that was just made shows late."""
        try:
            known = self._client.list_topics(timeout=_ASK_S).topics
        except self._errors as error:
            self.warn(f"waiting for Kafka error={masked(error, self._properties)}")
            return
        self._missing_s = 0.0
        missing = [name for name in self._topics if name not in known]
        if missing:
            raise ConfigError(f"Kafka has no topic {', '.join(missing)}")

    def _wake(self) -> None:
        now_s = time.monotonic()
        due = [place for place, until_s in self._held.items() if until_s <= now_s]
        for place in due:
            del self._held[place]
        self._unpause(due)

    def _unpause(self, places: Sequence[Place]) -> None:
        if places and not self._paused:
            with contextlib.suppress(self._errors):
                self._client.resume([self._part(*place) for place in places])

    def _drop_backlog(self, places: set[Place]) -> None:
        if self._backlog:
            kept = [m for m in self._backlog if (m.topic(), m.partition()) not in places]
            self._backlog = deque(kept)

    def _assigned(self, client: Any, partitions: Sequence[Any]) -> None:
        self.trouble = ""
        self.got(client, partitions)

    def _revoked(self, client: Any, partitions: Sequence[Any]) -> None:
        gone = {(part.topic, part.partition) for part in partitions}
        self._drop_backlog(gone)
        for place in gone:
            self._held.pop(place, None)

    def _on_error(self, error: Any) -> None:
        self.warn(f"waiting for Kafka error={masked(error.str(), self._properties)}")
