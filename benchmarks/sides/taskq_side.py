"""taskq as it comes: quorum queue, confirms, late acknowledgement."""

import time
from asyncio import sleep
from typing import Any

from common import BROKER, IO_S, RESULTS, Failed, counter, main

from taskq import RetryPolicy, TaskQ

app = TaskQ("bench", broker=BROKER, results=RESULTS or "off")


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


def bulk(task: str, calls: list[Any]) -> None:
    signature = app.tasks[task].s
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
