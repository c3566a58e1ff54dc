"""What a worker reports of its tasks: records out of endings, and the thread that sends them.

With `events="durable"` the settling thread sends them instead, confirmed before the tasks are
acknowledged.
"""

import asyncio
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from taskq import outcome
from taskq._version import __version__
from taskq.brokers.base import Broker, Outgoing
from taskq.config import Settings
from taskq.events.bus import Record, Recorder
from taskq.events.client import sent_record
from taskq.message import DEAD_PREFIX, HISTORY
from taskq.worker import endings
from taskq.worker.admission import DUPLICATE
from taskq.worker.courier import Courier
from taskq.worker.endings import Ending
from taskq.worker.held import Held
from taskq.worker.settle import Settler

if TYPE_CHECKING:
    from taskq.worker.hub import Hub

HEARTBEAT_S: Final = 30.0
"""How often a worker says that it is there, in seconds; each is a batch of the embedded log."""
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
    # Sent back to its queue with the keys of its limits, which its sender had not computed.
    endings.KEYED: "task.deferred",
    DUPLICATE: "task.duplicate",
}
_OWN_COPY: Final = frozenset({outcome.RETRY, endings.DEFERRED, endings.PARKED, endings.KEYED})
_RUNNING_S: Final = 0.2
_TEXT: Final = 1000
_TRACEBACK: Final = 4000


def _text(value: Any) -> str:
    """Return a header that anyone may have set as text."""
    return value[:_TEXT] if isinstance(value, str) else ""


class Report:
    """Reports what becomes of a worker's deliveries; called on the hub's loop.

    Attributes:
        recorder: Numbers the events.
    """

    def __init__(self, app: str, worker: str, tracebacks: bool = False) -> None:
        """Begin.

        Args:
            app: Name of the app.
            worker: Name of the worker.
            tracebacks: Whether failures show them.
        """
        self.recorder = Recorder(app, worker=worker)
        self._tracebacks = tracebacks

    def ended(self, outcomes: list[tuple[Held, Ending]]) -> None:
        """Report endings."""
        now = time.time_ns() // 1000
        records: list[Record] = []
        for held, ending in outcomes:
            delivery, envelope = held.delivery, held.envelope
            message = delivery.message
            us = ending.runtime_us
            begun = now - us if us else 0
            plain = not ending.follow and not ending.detail
            kind = _TYPES.get(ending.code) or f"task.{ending.code.lower()}"
            if held.said is not None or held.overrun or ending.detail == "Reject":
                kind = self._unusual(held, ending, kind, begun or now, records)
            if held.told:
                begun = 0
            records.append(
                (
                    kind,
                    now,
                    begun,
                    message.id,
                    message.task,
                    delivery.queue,
                    envelope.retries,
                    envelope.root_id,
                    envelope.parent_id,
                    us,
                    None if plain else _more(ending, self._tracebacks),
                    held.received_us,
                    envelope.due_ms,
                )
            )
            if ending.follow:
                records += _followed(held, ending, now)
        self.recorder.add(records)

    def _unusual(
        self, held: Held, ending: Ending, kind: str, begun: int, records: list[Record]
    ) -> str:
        """Report what few runs have besides their end; return the end's type."""
        if held.said is not None or held.overrun:
            self._begin(held, begun, records)
        if held.overrun:
            records.append(_record("task.timeout", held, begun, {"limit": held.overrun[:_TEXT]}))
        rejected = ending.code == outcome.FAILURE and ending.detail == "Reject"
        return "task.rejected" if rejected else kind

    @staticmethod
    def _begin(held: Held, begun_us: int, records: list[Record]) -> None:
        """Report that a run began, unless that was done, and what it said of its progress."""
        if not held.told:
            held.told = True
            records.append(_record("task.started", held, begun_us, None))
            held.received_us = 0
        if held.said is not None:
            at_us, done, total, note = held.said
            held.said = None
            more = {"done": done, "total": total, "note": note}
            kept = {name: value for name, value in more.items() if value not in (None, "")}
            records.append(_record("task.progress", held, at_us, kept))

    def running(self, tasks: Iterable[tuple[Any, Held, float]]) -> None:
        """Report the start of tasks that run for a while, and how far they are.

        Short ones report their start with their end.
        """
        records: list[Record] = []
        for _, held, ran_s in tasks:
            if held.said is None and (ran_s < _RUNNING_S or held.told):
                continue
            self._begin(held, time.time_ns() // 1000 - round(ran_s * 1e6), records)
        if records:
            self.recorder.add(records)

    def online(self, facts: Mapping[str, Any]) -> None:
        """Report that the worker consumes."""
        about = {"pid": os.getpid(), "taskq_version": __version__}
        self.recorder.tell("worker.online", {**about, **facts})

    def alive(self, facts: Mapping[str, Any]) -> None:
        """Report that the worker is there."""
        about = {"interval_s": HEARTBEAT_S, "dropped": self.recorder.dropped}
        self.recorder.tell("worker.heartbeat", {**about, **facts})

    def offline(self) -> None:
        """Report that the worker stops."""
        self.recorder.tell("worker.offline", {"dropped": self.recorder.dropped})


def _record(kind: str, held: Held, at_us: int, more: dict[str, Any] | None) -> Record:
    message, envelope = held.delivery.message, held.envelope
    root_id, parent_id = envelope.root_id, envelope.parent_id
    queue, retries = held.delivery.queue, envelope.retries
    run = (message.id, message.task, queue, retries, root_id, parent_id, 0, more)
    return (kind, at_us, 0, *run, held.received_us, envelope.due_ms)


def _more(ending: Ending, tracebacks: bool) -> dict[str, Any] | None:
    """Return the fields that only some endings have."""
    more: dict[str, Any] = {}
    code = ending.code
    if code in _OWN_COPY and ending.follow:
        more["due_ms"] = ending.follow[0].due_ms
    if code == DUPLICATE and ending.detail:
        # Whoever ended it may have died before it could tell.
        more["state"] = ending.detail
    if code == outcome.SUCCESS and ending.detail:
        size, _, text = ending.detail.partition(" ")
        # One that another run's idempotency key stands for says whose instead.
        if size.isdecimal():
            more["result"], more["result_size_bytes"] = text, int(size)
    if code in (outcome.RETRY, outcome.FAILURE, endings.MALFORMED):
        letter = next((item for item in ending.follow if item.dead), None)
        if letter is not None:
            more["reason"] = _text(letter.message.headers.get(DEAD_PREFIX + "reason"))
            more["error"] = _dead_error(letter)
            trace = letter.message.headers.get(DEAD_PREFIX + "traceback")
            if tracebacks and isinstance(trace, str):
                # Its end says where it happened.
                more["error"]["traceback"] = trace[-_TRACEBACK:]
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
            held.received_us = 0
            records.append(_record("task.dead_lettered", held, now, more))
        elif not item.topic and ending.code != DUPLICATE:
            records.append(sent_record(item))
    return records


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
        self._hub: Hub | None = None
        settler.events = self.take
        self._report: Report | None = None
        if settings.events != "off":
            self._report = Report(app, worker, settings.event_tracebacks)
            settler.on_refused = self._report.recorder.lost
        self._courier: Courier | None = None
        if self._report is not None and not self.durable:
            self._courier = Courier(self._report.recorder, broker, settings.publish_timeout_s)

    @property
    def dropped(self) -> int:
        """Events that were given up."""
        return self._report.recorder.dropped if self._report is not None else 0

    def start(self, hub: "Hub") -> None:
        """Begin, on the hub's loop; see `Report.online`."""
        if self._courier is not None:
            self._courier.start()
        if self._report is not None:
            self._hub = hub
            pool, queues = hub.settings.pool, list(hub.queues)
            self._report.online({"pool": pool, "slots": hub.pool.slots, "queues": queues})
            self._nudge()
            asyncio.get_running_loop().call_later(HEARTBEAT_S, self._beat)

    def _beat(self) -> None:
        hub, report = self._hub, self._report
        if hub is None or report is None:
            return
        running = sum(1 for _ in hub.pool.running())
        done = sum(hub.stats.endings.values())
        report.alive({"slots": hub.pool.slots, "running": running, "ended": done})
        self._nudge()
        asyncio.get_running_loop().call_later(HEARTBEAT_S, self._beat)

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
        self._hub = None
        if self._report is not None:
            self._report.offline()
            if self._courier is not None:
                self._courier.stop()

    def take(self) -> Sequence[Outgoing]:
        """Return what the settling thread sends with its batch: nothing unless durable."""
        if self._report is None or not self.durable:
            return ()
        # All of it: what is left would come after the acknowledgement of its task.
        return list(iter(self._report.recorder.take, None))

    def _nudge(self) -> None:
        if self._courier is not None:
            self._courier.nudge()
        elif self.durable:
            # A batch without deliveries: it only sends what waits.
            self._settler.put([])
