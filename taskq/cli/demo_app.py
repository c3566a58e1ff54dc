"""The app of `taskq demo`: one task of each kind."""

import asyncio
import time

from taskq import RetryPolicy, TaskQ
from taskq.task import BaseTask

app = TaskQ("demo")


@app.task
def add(x: int, y: int) -> int:
    """Succeed."""
    return x + y


@app.task(bind=True, max_retries=3, retry=RetryPolicy(base_s=0.3, jitter="none"))
def flaky(self: BaseTask[..., int], failures: int) -> int:
    """Fail so many times, then succeed."""
    if self.request.retries < failures:
        raise ConnectionError(f"attempt {self.request.retries + 1} failed on purpose")
    return self.request.retries + 1


@app.task
async def fetch(delay_s: float) -> str:
    """Wait without blocking."""
    await asyncio.sleep(delay_s)
    return "fetched"


@app.task(time_limit=1.0, max_retries=0)
def stuck() -> None:
    """Run for too long."""
    time.sleep(60)


@app.task(max_retries=1, retry=RetryPolicy(base_s=0.2, jitter="none"))
def broken(order: int) -> None:
    """Fail for good."""
    raise ValueError(f"order {order} has no address")
