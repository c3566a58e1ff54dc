"""What became of ticks, told in three places: counters, the log, and lifecycle events."""

import logging
from collections import Counter
from typing import Any, Final

from taskq import clock
from taskq.app import TaskQ
from taskq.errors import BrokerError
from taskq.events.bus import Recorder

log = logging.getLogger("taskq.scheduler")

_NOTED: Final = 20
"""Ticks of one turn that are logged one by one."""
_TIMEOUT_S: Final = 1.0
_PAUSE_S: Final = 5.0


class Teller:
    """Counts, logs and announces ticks.

    Attributes:
        counts: Ticks by what became of them.
    """

    def __init__(self, app: TaskQ) -> None:
        self.counts: Counter[str] = Counter()
        self._app = app
        self._recorder = None if app.settings.events == "off" else Recorder(app.name)
        self._noted = 0
        self._paused_until_s = 0.0

    def tell(self, kind: str, name: str, due_ms: int, details: dict[str, Any]) -> None:
        """Take what became of a tick; `flush` sends the events.

        Args:
            kind: `fired`, `skipped`, `missed`, `queued` or `refused`.
            name: The schedule's name.
            due_ms: When the tick was due, as epoch ms; of several the last one.
            details: `task_id`, `reason`, `count`.
        """
        told = {key: value for key, value in details.items() if value}
        self.counts[kind] += int(told.get("count", 1))
        self._noted += 1
        level = logging.INFO if kind in ("fired", "queued") else logging.WARNING
        if kind == "fired" and self._noted > _NOTED:
            level = logging.DEBUG
        if log.isEnabledFor(level):
            said = " ".join(f"{key}={value}" for key, value in told.items())
            log.log(level, "%s schedule=%s due=%s %s", kind, name, clock.to_iso(due_ms), said)
        if self._recorder is not None:
            self._recorder.tell(f"schedule.{kind}", {"schedule": name, "due_ms": due_ms, **told})

    def flush(self) -> None:
        """Send the events of this turn; their own failure costs no tick anything."""
        self._noted = 0
        recorder = self._recorder
        if recorder is None or clock.monotonic_s() < self._paused_until_s:
            return
        while (item := recorder.take()) is not None:
            try:
                error: Exception | None = self._app.broker.publish([item], _TIMEOUT_S)[0]
            except BrokerError as unavailable:
                error = unavailable
            if error is not None:
                recorder.lost(item)
                self._paused_until_s = clock.monotonic_s() + _PAUSE_S
                log.debug("events of schedules were not sent: %s", error)
                return
