"""What a worker reports of its tasks: records out of endings, and the thread that sends them.

With `events="durable"` the settling thread sends them instead, confirmed before the tasks are
acknowledged.
"""

import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from taskq import outcome
from taskq.brokers.base import Broker, Outgoing
from taskq.config import Settings
from taskq.events.bus import Record, Recorder
from taskq.events.client import sent_record
from taskq.message import DEAD_PREFIX, HISTORY
from taskq.worker import endings
from taskq.worker.admission import DUPLICATE
from taskq.worker.endings import Ending
from taskq.worker.held import Held
from taskq.worker.settle import Settler

log = logging.getLogger("taskq.worker.events")

_TYPES: Final = {
    outcome.SUCCESS: "task.succeeded",
    outcome.FAILURE: "task.failed",
    outcome.RETRY: "task.retried",
    outcome.CANCELLED: "task.cancelled",
    outcome.EXPIRED: "task.expired",
    endings.IGNORED: "task.ignored",
    endings.REQUEUED: "task.requeued",
    endings.DEFERRED: "task.deferred",
    endings.PARKED: "task.parked",
    endings.MALFORMED: "task.failed",
    DUPLICATE: "task.duplicate",
}
_OWN_COPY: Final = frozenset({outcome.RETRY, endings.DEFERRED, endings.PARKED})
_RUNNING_S: Final = 0.2
_EVERY_S: Final = 0.1
_CROWD: Final = 1000
_LAST_S: Final = 2.0
_TEXT: Final = 1000


def _text(value: Any) -> str:
    """Return a header that anyone may have set as text."""
    return value[:_TEXT] if isinstance(value, str) else ""


class Report:
    """Reports what becomes of a worker's deliveries; called on the hub's loop.

    Attributes:
        recorder: Numbers the events.
    """

    def __init__(self, app: str, worker: str) -> None:
        self.recorder = Recorder(app, worker=worker)
        self._started: set[int] = set()

    def ended(self, outcomes: list[tuple[Held, Ending]]) -> None:
        """Report endings."""
        now = time.time_ns() // 1000
        records: list[Record] = []
        started = self._started
        for held, ending in outcomes:
            delivery, envelope = held.delivery, held.envelope
            message = delivery.message
            us = ending.runtime_us
            begun = now - us if us else 0
            if started and held.tag in started:
                started.discard(held.tag)
                begun = 0
            plain = not ending.follow and not ending.detail
            records.append(
                (
                    _TYPES.get(ending.code) or f"task.{ending.code.lower()}",
                    now,
                    begun,
                    message.id,
                    message.task,
                    delivery.queue,
                    envelope.retries,
                    envelope.root_id,
                    envelope.parent_id,
                    us,
                    None if plain else _more(ending),
                )
            )
            if ending.follow:
                records += _followed(held, ending, now)
        self.recorder.add(records)

    def running(self, tasks: Iterable[tuple[Any, Held, float]]) -> None:
        """Report the start of tasks that run for a while; short ones report it with their end."""
        for _, held, ran_s in tasks:
            if ran_s < _RUNNING_S or held.tag in self._started:
                continue
            self._started.add(held.tag)
            begun = time.time_ns() // 1000 - round(ran_s * 1e6)
            self.recorder.add([_record("task.started", held, begun, None)])

    def online(self, facts: Mapping[str, Any]) -> None:
        """Report that the worker consumes."""
        self.recorder.tell("worker.online", {"pid": os.getpid(), **facts})

    def offline(self) -> None:
        """Report that the worker stops."""
        self.recorder.tell("worker.offline", {"dropped": self.recorder.dropped})


def _record(kind: str, held: Held, at_us: int, more: dict[str, Any] | None) -> Record:
    message, envelope = held.delivery.message, held.envelope
    root_id, parent_id = envelope.root_id, envelope.parent_id
    queue, retries = held.delivery.queue, envelope.retries
    return (kind, at_us, 0, message.id, message.task, queue, retries, root_id, parent_id, 0, more)


def _more(ending: Ending) -> dict[str, Any] | None:
    """Return the fields that only some endings have."""
    more: dict[str, Any] = {}
    code = ending.code
    if code in _OWN_COPY and ending.follow:
        more["due_ms"] = ending.follow[0].due_ms
    if code in (outcome.RETRY, outcome.FAILURE, endings.MALFORMED):
        letter = next((item for item in ending.follow if item.dead), None)
        if letter is not None:
            more["reason"] = _text(letter.message.headers.get(DEAD_PREFIX + "reason"))
            more["error"] = _dead_error(letter)
        elif ending.detail:
            more["error"] = {"type": ending.detail.partition(" ")[0]}
            history = ending.follow[0].message.headers.get(HISTORY) if ending.follow else None
            if code == outcome.RETRY and isinstance(history, list) and history:
                more["error"]["message"] = _text(history[-1][3])
    return more or None


def _dead_error(letter: Outgoing) -> dict[str, str]:
    headers = letter.message.headers
    kind, text = headers.get(DEAD_PREFIX + "type"), headers.get(DEAD_PREFIX + "message")
    return {"type": _text(kind) or "Exception", "message": _text(text)}


def _followed(held: Held, ending: Ending, now: int) -> list[Record]:
    """Return the records of the messages that an ending sends."""
    if ending.code in _OWN_COPY:
        return []
    records: list[Record] = []
    for item in ending.follow:
        if item.dead:
            reason = _text(item.message.headers.get(DEAD_PREFIX + "reason"))
            more = {"reason": reason, "error": _dead_error(item)}
            records.append(_record("task.dead_lettered", held, now, more))
        elif not item.topic and ending.code != DUPLICATE:
            records.append(sent_record(item))
    return records


class Courier:
    """Sends a recorder's batches ten times a second, one at a time and in order.

    What the broker does not take within the timeout is given up and counted: events must not
    pile up in a worker whose tasks can go on.
    """

    def __init__(self, recorder: Recorder, broker: Broker, timeout_s: float) -> None:
        self._recorder = recorder
        self._broker = broker
        self._timeout_s = timeout_s
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._troubled = False
        self._thread = threading.Thread(target=self._run, name="taskq-events", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def nudge(self) -> None:
        """Learn that records wait; cheap, may be called for each batch."""
        if not self._wake.is_set():
            self._wake.set()

    def stop(self) -> None:
        """Send what waits and end."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(_LAST_S)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait()
            # Collects for a moment: one message for many events.
            self._stopping.wait(_EVERY_S)
            self._wake.clear()
            self._flush()
        self._flush()

    def _flush(self) -> None:
        while (item := self._recorder.take()) is not None:
            error: Exception | None
            try:
                error = self._broker.publish([item], self._timeout_s)[0]
            # An unforeseen error must cost events, not the thread.
            except Exception as problem:
                log.exception("sending events failed")
                error = problem
            if error is not None:
                self._recorder.lost(item)
            if (error is not None) != self._troubled:
                self._troubled = error is not None
                text = f"events are being dropped error={error}" if error else "events go on"
                log.log(logging.WARNING if error else logging.INFO, "%s", text)
            if self._recorder.waiting < _CROWD and not self._stopping.is_set():
                return


class Reporting:
    """The hub's events: off, sent by a courier, or by the settling thread."""

    def __init__(
        self, app: str, worker: str, settings: Settings, broker: Broker, settler: Settler
    ) -> None:
        """Prepare.

        Args:
            app: Name of the app.
            worker: Name of the worker.
            settings: The app's.
            broker: Where events go.
            settler: Sends durable events with its batches.
        """
        self.durable = settings.events == "durable"
        self._settler = settler
        settler.events = self.take
        self._report = Report(app, worker) if settings.events != "off" else None
        self._courier: Courier | None = None
        if self._report is not None and not self.durable:
            self._courier = Courier(self._report.recorder, broker, settings.publish_timeout_s)

    @property
    def dropped(self) -> int:
        """Events that were given up."""
        return self._report.recorder.dropped if self._report is not None else 0

    def start(self, facts: Mapping[str, Any]) -> None:
        """Begin; see `Report.online`."""
        if self._courier is not None:
            self._courier.start()
        if self._report is not None:
            self._report.online(facts)
            self._nudge()

    def ended(self, outcomes: list[tuple[Held, Ending]]) -> None:
        """Report endings; call it before they are handed to the settler."""
        if self._report is not None:
            self._report.ended(outcomes)
            if self._courier is not None:
                self._courier.nudge()

    def running(self, tasks: Iterable[tuple[Any, Held, float]]) -> None:
        """Report what runs for a while."""
        if self._report is not None:
            self._report.running(tasks)
            if self._report.recorder.waiting:
                self._nudge()

    def stop(self) -> None:
        """Report the end of the worker, and send what waits."""
        if self._report is not None:
            self._report.offline()
            if self._courier is not None:
                self._courier.stop()

    def take(self) -> Sequence[Outgoing]:
        """Return what the settling thread sends with its batch: nothing unless durable."""
        if self._report is None or not self.durable:
            return ()
        item = self._report.recorder.take()
        return () if item is None else (item,)

    def _nudge(self) -> None:
        if self._courier is not None:
            self._courier.nudge()
        elif self.durable:
            # A batch without deliveries: it only sends what waits.
            self._settler.put([])
