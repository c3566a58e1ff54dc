"""What the workers of `taskq torture` run; each run leaves a line, also when it is killed.

A line is `s` or `e` (start, end), task id, attempt, process id, moment in epoch ms. It is written
in one call, so that lines of killed processes are whole or absent.
"""

import os
import time
from typing import Any, Final

from taskq.app import TaskQ
from taskq.retry import RetryPolicy

RUNS_VARIABLE: Final = "TORTURE_RUNS"
"""Environment variable with the path of the file of runs."""
QUEUE: Final = "torture"
_SOON: Final = RetryPolicy(base_s=0.1, cap_s=1.0)
_MANY: Final = 50
"""Attempts of tasks that only fail when they are made to: executors are killed many times."""

app = TaskQ("torture", default_queue=QUEUE)


def note(kind: str, task: Any) -> None:
    """Append one line to the file of runs."""
    request = task.request
    line = f"{kind} {request.id} {request.retries} {os.getpid()} {int(time.time() * 1000)}\n"
    end = os.open(os.environ[RUNS_VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(end, line.encode())
    finally:
        os.close(end)


@app.task(name="torture.work", bind=True, max_retries=_MANY, retry=_SOON)
def work(self: Any, sleep_s: float = 0.0) -> float:
    """Sleep, and return how long."""
    note("s", self)
    if sleep_s:
        time.sleep(sleep_s)
    note("e", self)
    return sleep_s


@app.task(name="torture.follow", bind=True, max_retries=_MANY, retry=_SOON)
def follow(self: Any, before: float) -> float:
    """Be the second step of a chain."""
    note("s", self)
    note("e", self)
    return before


@app.task(name="torture.fail", bind=True, max_retries=1, retry=_SOON)
def fail(self: Any) -> None:
    """Fail twice, and become a dead letter."""
    note("s", self)
    note("e", self)
    raise ValueError("on purpose")
