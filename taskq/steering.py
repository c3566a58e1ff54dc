"""What a running task can do about its own run: say how it goes, and ask whether to stop."""

import contextlib
import math
import time
from typing import Final

from taskq.errors import TaskCancelled
from taskq.request import current

_SAY_EVERY_S: Final = 0.05
_NOTE_CHARS: Final = 1000


class Steering:
    """The methods of a task that concern the run at hand; outside of a worker they do nothing."""

    def heartbeat(self) -> None:
        """Say that the task makes progress; see `heartbeat_timeout_s`.

        To be called from the task's own thread or coroutine; it costs about a microsecond.
        """
        request = current.get()
        if request is not None and request.run is not None:
            request.run.beat()

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Say how far the task is, as event `task.progress`; it also counts as a heartbeat.

        Of what is said within a twentieth of a second the first is told, and the end of it all;
        nothing of it is ever waited for. With `events="off"` nobody hears it.

        Args:
            done: How much is done, in whatever unit.
            total: How much there is of it, where that is known.
            note: For people, such as the name of the current step; cut at 1,000 characters.

        Raises:
            TypeError: If done or total is no number.
        """
        for value in (done, total):
            if value is None and value is not done:
                continue
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise TypeError(f"progress is counted in finite numbers, not in {value!r:.50}")
        request = current.get()
        if request is None or request.run is None:
            return
        run = request.run
        run.beat()
        now_s = time.monotonic()
        said_s, tag = run.said
        if tag == run.tag and now_s - said_s < _SAY_EVERY_S and done != total:
            return
        run.said = now_s, run.tag
        at_us = time.time_ns() // 1000
        # A hub that is gone ends this executor by another way.
        with contextlib.suppress(OSError):
            run.send("said", run.tag, at_us, done, total, str(note)[:_NOTE_CHARS])

    def checkpoint(self) -> None:
        """End the task here if it was cancelled; it also counts as a heartbeat.

        Raises:
            TaskCancelled: If it was. Let it pass after putting things in order.
        """
        request = current.get()
        if request is None or request.run is None:
            return
        run = request.run
        run.beat()
        if run.tag in run.cancelled:
            raise TaskCancelled(f"task {request.id} was cancelled")
