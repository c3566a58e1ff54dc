"""taskq as it comes: quorum queue, confirms, late acknowledgement."""

import os
import threading
import time
from asyncio import gather, run, sleep
from contextlib import suppress
from typing import Any

from common import BROKER, IO_S, MINUTE_S, RESULTS, Failed, Side, counter, main, note

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


@app.task(name="waited")
def waited(since_s: float) -> None:
    note(time.time() - since_s)
    counter.add()


@app.task(name="minute")
def minute() -> None:
    time.sleep(MINUTE_S)


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


def later(task: str, args: tuple[Any, ...], delay_s: float) -> object:
    return app.tasks[task].apply_async(args, countdown=delay_s)


def together(count: int) -> None:
    async def some(number: int) -> None:
        for _ in range(number):
            await noop.adelay()

    async def send() -> None:
        await gather(*(some(count // 100) for _ in range(100)))

    run(send())


def spread(count: int, queues: int) -> None:
    app.send_many(noop.s().set(queue=f"q{number % queues}") for number in range(count))


def wait(count: int) -> None:
    def one() -> None:
        with suppress(TimeoutError):
            noop.apply_async(countdown=3600).get(timeout=600)

    threads = [threading.Thread(target=one, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    print("waiting", flush=True)
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(Side(bulk, single, round_trip, later, together, spread, wait))
    app.close()
