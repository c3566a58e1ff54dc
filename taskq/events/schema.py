"""What an event is: its fields, its form in a batch on the broker, its form as a CloudEvent.

An event is named by its source (one process of one boot) and its sequence (a counter of that
source), which give identity, order and a way to see gaps without a random id for each event.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import msgpack

from taskq.errors import DecodeError
from taskq.ids import made_ms

_loads: Callable[[bytes | str], Any] = json.loads
with contextlib.suppress(ImportError):
    import orjson

    _loads = orjson.loads

VERSION: Final = 1
"""Version of the batches; fields may be added within it, none changes or goes."""
PREFIX: Final = "io.taskq."
EXCHANGE: Final = "taskq.events"
MULTI: Final = "task.multi"
"""Routing key of a batch."""
TYPE_URN: Final = f"urn:taskq:events:v{VERSION}:"
"""How the `dataschema` of events of this version begins."""
CONTENT_TYPE: Final = "application/cloudevents+json; charset=UTF-8"

MESSAGE: Final = "message.published"
"""Type of an event that carries a message of the app's own to Kafka."""
KAFKA_READER: Final = "kafka"
"""Name under which the bridge to Kafka reads; its queue keeps what waits for it."""

TASK_STATES: Final[Mapping[str, str]] = {
    "task.sent": "PENDING",
    "task.received": "RECEIVED",
    "task.started": "STARTED",
    "task.progress": "STARTED",
    "task.timeout": "STARTED",
    "task.succeeded": "SUCCESS",
    "task.failed": "FAILURE",
    "task.rejected": "FAILURE",
    "task.retried": "RETRY",
    "task.deferred": "PENDING",
    "task.parked": "PENDING",
    "task.requeued": "PENDING",
    "task.cancelled": "CANCELLED",
    "task.expired": "EXPIRED",
    "task.ignored": "IGNORED",
    "task.duplicate": "DUPLICATE",
    "task.dead_lettered": "FAILURE",
}
"""Types of task events, with the state that each leaves its task in."""


class UnknownVersion(DecodeError):
    """A batch was written by a taskq whose events this one cannot read."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    Attributes:
        source: Who saw it: `/taskq/<app>/<node>/<boot>`.
        sequence: Its number in that source, from 1.
        type: Such as `task.succeeded`.
        time_us: When, as epoch microseconds by the source's clock.
        data: The fields of its schema.
    """

    source: str
    sequence: int
    type: str
    time_us: int
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The sequence as 16 hexadecimal digits, which sort as the numbers do."""
        return f"{self.sequence:016x}"

    @property
    def task_id(self) -> str:
        """The task's id; empty for events of workers and schedules."""
        return str(self.data.get("task_id") or "")

    @property
    def root_id(self) -> str:
        """Id of the first task of its workflow; its own when it began one."""
        return str(self.data.get("root_id") or self.task_id)

    @property
    def subject(self) -> str:
        """What it is about: a task id, the name of a worker, schedule or queue, a message's key."""
        data = self.data
        for name in ("task_id", "worker", "schedule", "queue", "key"):
            if data.get(name):
                return str(data[name])
        return ""


def pack_batch(
    source: str, first: int, facts: Mapping[str, Any], records: Sequence[Sequence[Any]]
) -> bytes:
    """Return records as one message body.

    Args:
        source: Who saw them.
        first: Sequence of the first event.
        facts: What all events of the source share, such as `app` and `worker`.
        records: From `bus.Recorder`; one of a run holds two events, its start and its end.
    """
    packed: bytes = msgpack.packb((VERSION, source, first, facts, records))
    return packed


def read_batch(body: bytes) -> list[Event]:
    """Read `pack_batch`'s form.

    Raises:
        UnknownVersion: If a later taskq wrote it in a form of its own.
        DecodeError: If it is no batch.
    """
    try:
        parts = msgpack.unpackb(body, strict_map_key=False)
    except Exception as error:
        kind = type(error).__name__
        raise DecodeError(f"a batch of events is not msgpack: {kind} {error}") from error
    if not isinstance(parts, list) or not parts or not isinstance(parts[0], int):
        raise DecodeError("a batch of events is not a list that begins with its version")
    if parts[0] != VERSION:
        raise UnknownVersion(
            f"a batch of events has version {parts[0]}, this taskq reads {VERSION}"
        )
    try:
        _, source, first, facts, records = parts[:5]
        return list(_expanded(source, first, facts, records))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise DecodeError(f"a batch of events has another form: {error}") from error


def _expanded(
    source: str, first: int, facts: Mapping[str, Any], records: Sequence[Sequence[Any]]
) -> Iterator[Event]:
    if not isinstance(source, str) or not isinstance(first, int) or not isinstance(facts, dict):
        raise ValueError("source, sequence or facts have the wrong type")
    number = first
    for record in records:
        if len(record) == 3:
            kind, at_us, own = record
            yield Event(source, number, str(kind), int(at_us), {**facts, **own})
            number += 1
            continue
        kind, at_us, begun_us, task_id, task, queue, attempt, root_id, parent_id, us, more = record[
            :11
        ]
        data = {**facts, "task_id": task_id, "task": task, "queue": queue, "attempt": attempt + 1}
        data["root_id"] = root_id or task_id
        if parent_id:
            data["parent_id"] = parent_id
        # A worker before them, and a client, know of neither.
        received_us, due_ms = record[11:13] if len(record) > 12 else (0, 0)
        if received_us:
            yield Event(source, number, "task.received", received_us, {**data, "state": "RECEIVED"})
            number += 1
        start_us = begun_us or (at_us if kind == "task.started" else 0)
        if start_us and (wait_us := _waited_us(task_id, attempt, due_ms, start_us)) is not None:
            data["queue_wait_us"] = wait_us
        if begun_us:
            yield Event(source, number, "task.started", begun_us, {**data, "state": "STARTED"})
            number += 1
        data["state"] = TASK_STATES.get(kind, "")
        if us:
            data["runtime_us"] = us
        if more:
            data.update(more)
        yield Event(source, number, str(kind), int(at_us), data)
        number += 1


def _waited_us(task_id: str, attempt: int, due_ms: int, start_us: int) -> int | None:
    """Return how long an attempt could have run before it did; None when nothing tells."""
    since_ms = due_ms or (made_ms(task_id) if not attempt else 0)
    return max(0, start_us - since_ms * 1000) if since_ms else None


def to_cloudevent(event: Event, key: str = "") -> dict[str, Any]:
    """Return an event as a CloudEvent 1.0 in structured form.

    Args:
        event: The event.
        key: Its `partitionkey`; the subject when empty.
    """
    moment = datetime.fromtimestamp(event.time_us / 1_000_000, UTC)
    return {
        "specversion": "1.0",
        "id": event.id,
        "source": event.source,
        "type": PREFIX + event.type,
        "time": moment.isoformat(timespec="microseconds"),
        "subject": event.subject,
        "datacontenttype": "application/json",
        "dataschema": TYPE_URN + event.type,
        "sequence": event.id,
        "partitionkey": key or event.subject,
        "timeus": event.time_us,
        "data": dict(event.data),
    }


def json_loads(body: bytes | str) -> Any:
    """Return JSON as a value, by the fastest reader that is installed.

    Raises:
        ValueError: If it is no JSON.
    """
    return _loads(body)


def read_cloudevent(body: bytes | str) -> Event:
    """Read `to_cloudevent`'s form, as JSON.

    Unknown fields are ignored, and so are types of later versions: they come as they are.

    Raises:
        DecodeError: If it is no CloudEvent of taskq.
    """
    try:
        item = _loads(body)
    except ValueError as error:
        raise DecodeError(f"not a CloudEvent of taskq: {type(error).__name__} {error}") from error
    return from_cloudevent(item)


def from_cloudevent(item: Any) -> Event:
    """Return the event of a CloudEvent that was read already; see `read_cloudevent`.

    Raises:
        DecodeError: If it is no CloudEvent of taskq.
    """
    try:
        source, sequence, kind = item["source"], int(item["sequence"], 16), item["type"]
        time_us = item.get("timeus")
        if time_us is None:
            time_us = round(datetime.fromisoformat(item["time"]).timestamp() * 1_000_000)
        data = item.get("data") or {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DecodeError(f"not a CloudEvent of taskq: {type(error).__name__} {error}") from error
    if not (isinstance(source, str) and isinstance(kind, str) and isinstance(data, dict)):
        raise DecodeError("not a CloudEvent of taskq: source, type or data have the wrong type")
    if not kind.startswith(PREFIX) or not isinstance(time_us, int):
        raise DecodeError(f"not a CloudEvent of taskq: its type is {kind!r:.60}")
    return Event(source, sequence, kind.removeprefix(PREFIX), time_us, data)


def load_schema() -> dict[str, Any]:
    """Return the JSON Schema of the CloudEvents: `$defs` has one entry for each type."""
    from importlib import resources

    text = resources.files("taskq.events").joinpath("schemas", "v1.json").read_text("utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema
