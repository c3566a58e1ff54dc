"""What run times lead to: STARTED is stored, and limits of time or of silence are passed."""

import time
from collections.abc import Iterable, Iterator
from typing import Final

from taskq import clock
from taskq.worker.child import Child
from taskq.worker.held import Held

_STARTED_AFTER_S: Final = 0.2
DEADLINE_GRACE_MS: Final = 5000
"""So long after its deadline a task is stopped from outside."""


def overrun(children: Iterable[Child]) -> Iterator[tuple[Child, Held]]:
    """Yield the running tasks that passed a limit just now, with the reason in `held.overrun`."""
    now_ns = time.monotonic_ns()
    for child in children:
        if child.dead:
            continue
        for tag, start_ns, beat_ns in child.slots.progress():
            held = child.held.get(tag)
            if held is None or held.limit_hit:
                continue
            why = _passed(held, (now_ns - start_ns) / 1e9, (now_ns - beat_ns) / 1e9)
            if why:
                held.overrun = why
                held.ran_s = (now_ns - start_ns) / 1e9
                yield child, held


def _passed(held: Held, ran_s: float, silent_s: float) -> str:
    limit_s = held.time_limit_s
    if limit_s is not None and ran_s > limit_s:
        return f"the task ran longer than {limit_s:g} s"
    deadline_ms = held.envelope.deadline_ms
    # At its deadline a task is asked to end (SoftTimeLimitExceeded); it has a moment for that.
    if deadline_ms and clock.now_ms() > deadline_ms + DEADLINE_GRACE_MS:
        return "the task ran past its deadline"
    patience_s = None if held.info is None else held.info.heartbeat_timeout_s
    if patience_s is not None and silent_s > patience_s:
        return f"the task gave no heartbeat for {patience_s:g} s (heartbeat_timeout_s)"
    return ""


def unmarked(running: Iterable[tuple[Child, Held, float]]) -> Iterator[Held]:
    """Yield, once each, the tasks that run for so long that somebody may ask for their state."""
    for _, held, ran_s in running:
        if ran_s >= _STARTED_AFTER_S and not held.marked and held.info is not None:
            held.marked = True
            yield held
