"""The thread that sends a worker's lossy events: batches, in order, given up in time."""

import logging
import threading
from typing import Final

from taskq.brokers.base import Broker
from taskq.events.bus import Recorder

log = logging.getLogger("taskq.worker.events")

_EVERY_S: Final = 0.1
_CROWD: Final = 1000
_LAST_S: Final = 2.0


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
