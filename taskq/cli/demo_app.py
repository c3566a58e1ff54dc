"""The app of `taskq demo`: one task of each kind."""

import asyncio
import time
from typing import Any

from taskq import RetryPolicy, TaskQ

app = TaskQ("demo")


@app.task(name="greet")
def greet(name: str) -> str:
    """Succeed."""
    return f"hello {name}"


@app.task(name="add")
def add(x: int, y: int) -> int:
    """Succeed; a step of the chain, too."""
    return x + y


@app.task(name="fetch")
async def fetch(seconds: float) -> str:
    """Wait without holding a thread."""
    await asyncio.sleep(seconds)
    return f"waited {seconds:g} s"


@app.task(name="flaky", bind=True, retry=RetryPolicy(base_s=0.4, factor=1.5, jitter="none"))
def flaky(self: Any, failures: int) -> str:
    """Fail so many times, then succeed."""
    attempt = self.request.retries + 1
    if attempt <= failures:
        raise ConnectionError(f"attempt {attempt}: the server did not answer")
    return f"worked at attempt {attempt}"


@app.task(name="stuck", time_limit=1.0, max_retries=0)
def stuck() -> None:
    """Hang, until the worker kills the process that runs it."""
    time.sleep(60)


@app.task(name="ship", max_retries=0)
def ship(order: dict[str, str]) -> str:
    """Fail for good when there is no address."""
    return order["address"]
