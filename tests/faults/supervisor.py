"""Workers that are started again when they die, as a supervisor does."""

import time
from collections.abc import Callable
from pathlib import Path

from fleet import Fleet, Worker

APP = f"{Path(__file__).parent / 'crash_app.py'}:app"


def keep_running(
    fleet: Fleet,
    condition: Callable[[], object],
    what: str,
    *,
    pool: str = "process",
    slots: int = 1,
    timeout_s: float = 120.0,
) -> Worker:
    """Start a worker whenever none runs, until `condition` holds; return the last one.

    Args:
        fleet: Whose workers.
        condition: What is waited for.
        what: Its name, for the failure.
        pool: `-P`.
        slots: `-c`.
        timeout_s: Bound of the whole, in seconds.
    """
    deadline = time.monotonic() + timeout_s
    worker = fleet.start(app=APP, pool=pool, slots=slots, ready=False)
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen:\n{worker.log()}"
        if worker.process.poll() is not None:
            worker = fleet.start(app=APP, pool=pool, slots=slots, ready=False)
        time.sleep(0.05)
    return worker
