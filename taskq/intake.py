"""From Kafka to tasks: a task for each record, its offset committed after the broker's confirm.

A batch is sent with pipelined confirms. While the broker is away partitions are paused, the members
stay in their groups, and one record is tried each second: nothing is lost, nothing piles up here.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from taskq.canvas import Signature
from taskq.errors import (
    AlreadyQueued,
    BrokerUnavailable,
    ConfigError,
    DecodeError,
    PublishError,
    ResultsUnavailable,
    TaskqError,
)
from taskq.events.kafka.client import KafkaError
from taskq.events.kafka.member import RecordConsumer, Slot
from taskq.events.kafka.process import (
    EX_OK,
    EX_TEMPFAIL,
    health_port,
    metrics_text,
    stopped_by_signals,
)
from taskq.events.kafka.reading import Place
from taskq.events.kafka.record import Record, read
from taskq.flow.spec import CircuitBreaker
from taskq.ids import new_id
from taskq.triggers import Trigger

if TYPE_CHECKING:
    from taskq.app import TaskQ

log = logging.getLogger("taskq.intake")

_AWAY: Final = (PublishError, BrokerUnavailable, ResultsUnavailable)
_BREAKER: Final = CircuitBreaker(failures=1, window_s=60, reset_s=1, on=_AWAY)
_HEADER_BYTES: Final = 4096
_JOIN_S: Final = 30.0
_TRACE: Final = ("traceparent", "tracestate")


class Intake(RecordConsumer):
    """One group's member: its records become tasks.

    Attributes:
        handled: Records that became tasks, or had one already.
        sent: Tasks that the broker confirmed.
        why: Why no tasks are sent, or empty.
    """

    def __init__(
        self, app: "TaskQ", properties: Mapping[str, Any], triggers: Sequence[Trigger]
    ) -> None:
        """Join the group with the first `run`.

        Args:
            app: Sends the tasks.
            properties: Of librdkafka.
            triggers: Of one group.

        Raises:
            ConfigError: If the client is not installed, or refuses a property.
        """
        self.sent = 0
        self.why = "not a member of its group yet"
        self._app = app
        self._by_topic = {trigger.topic: trigger for trigger in triggers}
        group = triggers[0].group
        super().__init__(
            properties,
            group,
            list(self._by_topic),
            circuit_breaker=_BREAKER,
            dead_letters=True,
        )

    def _open(self, message: Any, place: Place) -> Signature[Any]:
        trigger = self._by_topic[place[0]]
        record = read(message)
        try:
            payload = trigger.decode(record.value)
        # Users' code on bytes of others: whatever it raises speaks of the record.
        except Exception as error:
            kind = type(error).__name__
            raise DecodeError(f"its value cannot be read: {kind} {error}") from error
        # With ids of its own, it is known which of a batch the broker did not confirm.
        options: dict[str, Any] = {"headers": _headers(record), "task_id": new_id()}
        flow = self._app.tasks[trigger.task].spec.flow
        own = flow is not None and flow.idempotency_key is not None
        if self._app.settings.results is not None and not own:
            # With its time, so that records of a topic that was made anew are others.
            where = f"{record.topic}/{record.partition}/{record.offset}/{record.time_ms}"
            options["idempotency_key"] = f"kafka/{trigger.group}/{where}"
        return Signature(trigger.task, (payload,), {}, options)

    def _got(self, client: Any, partitions: Sequence[Any]) -> None:
        self.why = ""

    def _work(self, lane: Sequence[Slot], handler: Callable[[Any], Any]) -> None:
        """Send a batch at once; see `RecordConsumer`."""
        try:
            self._app.send([slot.item for slot in lane])
        except PublishError as error:
            failed = set(error.failed_ids)
            sent = [slot for slot in lane if slot.item.options["task_id"] not in failed]
            self._note_sent(sent)
            self._away([slot for slot in lane if slot not in sent], error)
        except (BrokerUnavailable, ResultsUnavailable) as error:
            self._away(lane, error)
        except TaskqError:
            # One of them cannot be sent at all: each by itself says which.
            for slot in lane:
                self._send_one(slot)
        else:
            self._confirmed(lane)

    def _send_one(self, slot: Slot) -> None:
        if self._halted_all:
            return
        try:
            self._app.send([slot.item])
        except _AWAY as error:
            self._away([slot], error)
        except AlreadyQueued:
            slot.state = "done"
        except TaskqError as error:
            slot.state, slot.error = "unreadable", error
        else:
            self._confirmed([slot])

    def _away(self, lane: Sequence[Slot], error: Exception) -> None:
        if not self.why:
            log.warning("waiting for the broker error=%s", error)
        self.why = str(error)
        for slot in lane:
            slot.state, slot.error = "failed", error
            self._failed(slot)

    def _note_sent(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            slot.state = "done"
        self.sent += len(slots)

    def _confirmed(self, lane: Sequence[Slot]) -> None:
        self._note_sent(lane)
        self.why = ""
        if self._breaker is not None:
            self._breaker.ended(None)


def _headers(record: Record) -> dict[str, Any]:
    headers: dict[str, Any] = {
        "kafka-topic": record.topic,
        "kafka-partition": record.partition,
        "kafka-offset": record.offset,
        "kafka-time-ms": record.time_ms,
    }
    if record.key:
        headers["kafka-key"] = _text(record.key)
    own = {name: _text(text) for name, text in record.headers.items() if name not in _TRACE}
    if own:
        headers["kafka-headers"] = own
    headers.update({name: text for name, text in record.headers.items() if name in _TRACE})
    return headers


def _text(text: str) -> str:
    return text[:_HEADER_BYTES].encode("utf-8", "replace").decode()


class IntakeService:
    """`taskq bridge from-kafka` as a process: a member of each group, until a signal."""

    def __init__(
        self, app: "TaskQ", properties: Mapping[str, Any], groups: Sequence[str], port: int
    ) -> None:
        """Find what to do.

        Args:
            app: Whose `on_kafka` functions get records.
            properties: Of librdkafka.
            groups: Only these; all when empty.
            port: Of /livez, /readyz and /metrics; 0 for none.

        Raises:
            ConfigError: If the app has no such group.
        """
        self._app = app
        self._properties = properties
        self._port = port
        self._stop = threading.Event()
        self._intakes: list[Intake] = []
        self._failures: list[BaseException] = []
        by_group: dict[str, list[Trigger]] = {}
        for trigger in app.triggers:
            by_group.setdefault(trigger.group, []).append(trigger)
        unknown = [group for group in groups if group not in by_group]
        if unknown or not by_group:
            known = ", ".join(sorted(by_group)) or "none"
            raise ConfigError(
                f"no @app.on_kafka function has group {', '.join(unknown) or 'any'}; groups of "
                f"the app: {known}"
            )
        self._groups = {group: by_group[group] for group in groups or by_group}

    def stop(self) -> None:
        """End in order, soon; from any thread."""
        self._stop.set()
        for intake in self._intakes:
            intake.stop()

    def run(self) -> int:
        """Carry records until a signal, and return the exit code.

        Raises:
            ConfigError: If a property, a topic or a permission is missing.
        """
        with (
            stopped_by_signals(self.stop, log),
            health_port(self._port, self.readiness, self.metrics),
            self._members() as threads,
        ):
            for thread in threads:
                thread.start()
            while not self._stop.wait(0.2):
                if self._failures:
                    break
            self.stop()
            for thread in threads:
                thread.join(_JOIN_S)
        for failure in self._failures:
            if not isinstance(failure, KafkaError):
                raise failure
            log.error("%s; start again to go on, nothing is lost", failure)
            return EX_TEMPFAIL
        return EX_OK

    def readiness(self) -> str:
        """Return why records do not become tasks; empty when they do."""
        for intake in self._intakes:
            if intake.why or intake.trouble:
                return intake.why or intake.trouble
        return "" if self._intakes else "starting"

    def metrics(self) -> str:
        """Return counters in Prometheus' text format."""
        intakes = self._intakes
        return metrics_text(
            "taskq_intake",
            {
                "sent_total": sum(intake.sent for intake in intakes),
                "dead_total": sum(intake.dead for intake in intakes),
                "ready": 0 if self.readiness() else 1,
            },
        )

    @contextlib.contextmanager
    def _members(self) -> Iterator[list[threading.Thread]]:
        for triggers in self._groups.values():
            self._intakes.append(Intake(self._app, self._properties, triggers))
        try:
            for group, triggers in self._groups.items():
                topics = ", ".join(trigger.topic for trigger in triggers)
                log.info("records of %s become tasks group=%s", topics, group)
            yield [
                threading.Thread(target=self._carry, args=(intake,), name=f"taskq-intake-{group}")
                for intake, group in zip(self._intakes, self._groups, strict=True)
            ]
        finally:
            for intake in self._intakes:
                intake.close()
                log.info("sent %d tasks, %d records to dead letters", intake.sent, intake.dead)

    def _carry(self, intake: Intake) -> None:
        try:
            intake.run(lambda _: None)
        except BaseException as error:
            self._failures.append(error)
