"""A member of a consumer group: records to a function, in order for each key, committed after it.

Nothing is committed before it and all before it in its partition were handled, or were written to
a retry or dead-letter topic. While handlers take long, or a circuit breaker is open, partitions
are paused and Kafka is still asked, so that the group keeps this member.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Final

from taskq.errors import ConfigError, DecodeError
from taskq.events.kafka.breaker import LocalBreaker
from taskq.events.kafka.client import KafkaError
from taskq.events.kafka.reading import BATCH, GroupReader, Place
from taskq.events.kafka.record import read, set_current
from taskq.events.kafka.retries import Failures, RetryTopics
from taskq.flow.spec import CircuitBreaker

log = logging.getLogger("taskq.events")

_KEEP_S: Final = 1.0
"""How long handlers may take before Kafka is asked in between."""
_AGAIN_S: Final = 0.2


class Slot:
    """One record in hand.

    Attributes:
        message: The client's.
        item: What the handler gets.
        state: What became of it: `waiting`, `done`, `failed`, `unreadable`, or `skipped` for one
            that needs no handler.
        error: Of the handler, or why it cannot be read.
        place: Topic and partition.
    """

    __slots__ = ("error", "item", "message", "place", "state")

    def __init__(self, message: Any, place: Place) -> None:
        self.message = message
        self.place = place
        self.item: Any = None
        self.state = "waiting"
        self.error: Any = None


class RecordConsumer:
    """A member of a consumer group that hands records to a function.

    A member that is killed loses none: the next one gets what it had not committed again. So a
    handler may see a record twice; make it idempotent.

    Attributes:
        handled: Records that a handler took.
        unreadable: Records that could not be read.
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
        """Join the group with the first `run`.

        Args:
            properties: Of librdkafka; at least `bootstrap.servers`.
            group: Name of the group; its members share the partitions.
            topics: What to read.
            concurrency: Threads that handle records; those of one key stay in order.
            circuit_breaker: Stops handling when handlers keep failing: partitions are paused, the
                member stays in the group, and one record is tried after `reset_s`. Failures that
                count do not end `run`, then.
            retries: Where records go whose handler failed; they do not end `run`, then.
            dead_letters: Whether records that cannot be read go to `<topic>.dead`; with `retries`
                they always do.

        Raises:
            ConfigError: If the client is not installed, or refuses a property.
        """
        if concurrency < 1:
            raise ConfigError(f"concurrency is {concurrency}; it must be at least 1")
        self.handled = 0
        self.unreadable = 0
        self._breaker = None if circuit_breaker is None else LocalBreaker(circuit_breaker)
        self._retries = retries
        self._failures: Failures | None = None
        if retries is not None or dead_letters:
            self._failures = Failures(properties, group, topics, retries)
        self._prepared = self._failures is None
        every = [*topics, *(self._failures.topics if self._failures else ())]
        self._reader = GroupReader(properties, group, every)
        self._reader.went_back = self._went_back
        self._reader.got = self._got
        self._stopped = False
        self._halted: set[Place] = set()
        self._halted_all = False
        self._threads = [
            ThreadPoolExecutor(1, f"taskq-events-{number}") for number in range(concurrency)
        ]

    @property
    def trouble(self) -> str:
        """What it waits for, such as a Kafka that does not answer; or empty."""
        return self._reader.trouble

    @property
    def circuit(self) -> str:
        """State of the circuit breaker: `closed`, `open` or `half-open`; empty without one."""
        return "" if self._breaker is None else self._breaker.state

    @property
    def retried(self) -> int:
        """Records that were sent to retry topics."""
        return 0 if self._failures is None else self._failures.retried

    @property
    def dead(self) -> int:
        """Records that were sent to dead-letter topics."""
        return 0 if self._failures is None else self._failures.dead

    def run(
        self, handler: Callable[[Any], Any], *, until: Callable[[], bool] | None = None
    ) -> None:
        """Handle records until `stop`, or until `until` says so between two batches.

        Args:
            handler: Called with each record. When it raises, and neither `retries` nor the circuit
                breaker takes it, nothing of its partition from there on is committed, and `run`
                raises it: the records come again to the next `run`, here or elsewhere.
            until: Asked after each batch, several times a second when nothing comes.

        Raises:
            ConfigError: If a topic is missing, or may not be read.
            KafkaError: If Kafka refuses for good.
        """
        while not self._stopped and not (until is not None and until()):
            messages = self._next()
            if messages:
                self._handle(messages, handler)

    def stop(self) -> None:
        """End `run` after the batch in hand; from any thread."""
        self._stopped = True

    def close(self) -> None:
        """Leave the group; its partitions go to the other members at once."""
        for thread in self._threads:
            thread.shutdown()
        if self._failures is not None:
            self._failures.close()
        self._reader.close()

    def pause(self) -> None:
        """Take nothing more for now, and stay in the group: keep calling `run`, or it ends."""
        self._reader.pause("user")

    def resume(self) -> None:
        """Go on after `pause`."""
        self._reader.resume("user")

    def seek(self, topic: str, partition: int, offset: int) -> None:
        """Go on from another place.

        Args:
            topic: Which topic.
            partition: A partition that this member has.
            offset: The next record's.

        Raises:
            KafkaError: If the member does not have the partition.
        """
        self._reader.seek((topic, partition), offset)

    # What consumers of a certain kind of records do in their own way

    def _open(self, message: Any, place: Place) -> Any:
        """Return what the handler gets, or None for a record that needs no handler.

        Raises:
            DecodeError: If it cannot be read.
        """
        return read(message)

    def _taken(self, slot: Slot) -> None:
        """Note that a record is behind us; called in the order of its partition."""

    def _metadata(self, place: Place) -> str:
        """Return what is committed beside an offset."""
        return ""

    def _went_back(self, place: Place) -> None:
        """Note that what was read of a partition, but not handled, will be read again."""

    def _got(self, client: Any, partitions: Sequence[Any]) -> None:
        """Note partitions that the group gave to this member."""

    # One batch

    def _next(self) -> Sequence[Any]:
        if not self._prepared and self._failures is not None:
            try:
                self._failures.prepare()
            except KafkaError as error:
                self._reader.warn(str(error))
                time.sleep(_AGAIN_S)
                return ()
            self._prepared = True
        if self._breaker is None:
            return self._reader.read()
        if self._breaker.allows():
            self._reader.resume("breaker")
        else:
            self._reader.pause("breaker")
        return self._reader.read(BATCH if self._breaker.state == "closed" else 1)

    def _handle(self, messages: Sequence[Any], handler: Callable[[Any], Any]) -> None:
        self._halted.clear()
        self._halted_all = False
        slots: list[Slot] = []
        lanes: list[list[Slot]] = [[] for _ in self._threads]
        for message in messages:
            slot = self._slot(message)
            if slot is None:
                continue
            slots.append(slot)
            if slot.state == "waiting":
                lanes[hash(message.key()) % len(lanes)].append(slot)
        running = [
            thread.submit(self._work, lane, handler)
            for thread, lane in zip(self._threads, lanes, strict=True)
            if lane
        ]
        try:
            self._await(running)
        except BaseException:
            # Ctrl-C, say: what runs may end, nothing more is started.
            self._halted_all = True
            wait(running)
            with contextlib.suppress(Exception):
                self._finish(slots)
            raise
        self._finish(slots)

    def _slot(self, message: Any) -> Slot | None:
        slot = Slot(message, (message.topic(), message.partition()))
        if self._failures is not None:
            if self._reader.holds(slot.place):
                return None
            wait_s = self._failures.wait_s(message)
            if wait_s > 0:
                self._reader.hold(message, wait_s)
                return None
        try:
            slot.item = self._open(message, slot.place)
        except DecodeError as error:
            slot.state, slot.error = "unreadable", error
            return slot
        if slot.item is None:
            slot.state = "skipped"
        return slot

    def _work(self, lane: Sequence[Slot], handler: Callable[[Any], Any]) -> None:
        halted, breaker = self._halted, self._breaker
        for slot in lane:
            if self._halted_all or slot.place in halted:
                continue
            set_current(slot.message)
            try:
                handler(slot.item)
            except BaseException as error:
                slot.state, slot.error = "failed", error
                self._failed(slot)
            else:
                slot.state = "done"
                if breaker is not None:
                    breaker.ended(None)
        set_current(None)

    def _failed(self, slot: Slot) -> None:
        breaker = self._breaker
        if breaker is not None:
            breaker.ended(slot.error)
            # What is not running yet waits, in all partitions.
            self._halted_all = self._halted_all or breaker.state != "closed"
        if not self._goes_on(slot.error):
            self._halted.add(slot.place)

    def _goes_on(self, error: BaseException) -> bool:
        return self._retries is not None and isinstance(error, Exception)

    def _await(self, running: "Sequence[Future[None]]") -> None:
        while wait(running, _KEEP_S).not_done:
            self._reader.pause("busy")
            self._reader.ask(0)
        self._reader.resume("busy")

    def _finish(self, slots: Sequence[Slot]) -> None:
        """Commit up to the first record of each partition that is not behind us."""
        offsets: dict[Place, int] = {}
        back: dict[Place, int] = {}
        failure: BaseException | None = None
        for slot in slots:
            place = slot.place
            if place in back:
                continue
            try:
                behind = self._settle(slot)
            except KafkaError as error:
                failure, behind = failure or error, False
            if not behind:
                back[place] = slot.message.offset()
                continue
            offsets[place] = slot.message.offset() + 1
            self._taken(slot)
        self._reader.commit(
            {place: (offset, self._metadata(place)) for place, offset in offsets.items()}
        )
        for place, offset in back.items():
            # So that another `run` of this member begins with what failed, too.
            self._reader.go_back(place, offset)
        failure = failure or self._raised(slots)
        if failure is not None:
            raise failure
        if back and self.circuit == "closed":
            time.sleep(_AGAIN_S)

    def _settle(self, slot: Slot) -> bool:
        """Return whether a record is behind us, after what it needs for that."""
        if slot.state == "done":
            self.handled += 1
        elif slot.state == "unreadable":
            self.unreadable += 1
            where = f"{slot.place[0]}[{slot.place[1]}]@{slot.message.offset()}"
            log.warning("a record cannot be read place=%s error=%s", where, slot.error)
            if self._failures is not None:
                self._failures.unreadable(slot.message, str(slot.error))
        elif slot.state == "failed" and self._goes_on(slot.error) and self._failures is not None:
            self._failures.handled(slot.message, slot.error)
        elif slot.state != "skipped":
            return False
        return True

    def _raised(self, slots: Sequence[Slot]) -> BaseException | None:
        """Return what a handler raised that ends `run`."""
        for slot in slots:
            if slot.state != "failed" or self._goes_on(slot.error):
                continue
            if self._breaker is None or not self._breaker.counts(slot.error):
                error: BaseException = slot.error
                return error
        return None
