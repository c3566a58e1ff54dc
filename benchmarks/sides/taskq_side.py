"""taskq as it comes: quorum queue, confirms, late acknowledgement."""

import os
import time
from asyncio import sleep
from typing import Any

from common import BROKER, IO_S, RESULTS, Failed, counter, main

from taskq import CircuitBreaker, RetryBudget, RetryPolicy, TaskQ

EVENTS = os.environ.get("BENCH_EVENTS", "on")
app = TaskQ("bench", broker=BROKER, results=RESULTS or "off", events=EVENTS)


@app.task(name="noop")
def noop(data: str = "") -> None:
    counter.add()


@app.task(name="echo")
def echo(number: int) -> int:
    counter.add()
    return number


@app.task(name="fail_once", bind=True, retry=RetryPolicy(base_s=0))
def fail_once(self: Any) -> None:
    counter.add()
    if not self.request.retries:
        raise Failed


@app.task(name="io")
def io() -> None:
    time.sleep(IO_S)
    counter.add()


@app.task(name="aio")
async def aio() -> None:
    await sleep(IO_S)
    counter.add()


if RESULTS:
    MANY: Any = {"rate_limit": "1000000/s", "rate_burst": 1_000_000, "max_concurrency": 10_000}

    @app.task(name="limited", **MANY)
    def limited() -> None:
        counter.add()

    @app.task(
        name="all_limits",
        unique="until_done",
        unique_key="args[0]",
        idempotency_key="args[0]",
        circuit_breaker=CircuitBreaker(failures=5, window_s=60, reset_s=30),
        retry_budget=RetryBudget(share=0.1),
        **MANY,
    )
    def all_limits(number: int) -> None:
        counter.add()


def bulk(task: str, calls: list[Any]) -> None:
    signature = app.tasks[task].s
    if task == "all_limits":
        # Each call has a key of its own, or all but one would be duplicates.
        calls = [(number,) for number in range(len(calls))]
    app.send_many(signature(*args) for args in calls)


def single(_number: int) -> object:
    return noop.delay()


def round_trip(number: int) -> object:
    value = echo.delay(number).get(timeout=30)
    assert value == number
    return value


if __name__ == "__main__":
    main(bulk, single, round_trip)
    app.close()
