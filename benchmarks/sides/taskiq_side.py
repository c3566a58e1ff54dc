"""TaskIQ on aio-pika: a quorum queue, a prefetch of 1,000."""

import asyncio
import time
from typing import Annotated, Any

from common import BROKER, IO_S, MINUTE_S, RESULTS, Failed, Side, counter, main, note
from taskiq import Context, SimpleRetryMiddleware, TaskiqDepends
from taskiq_aio_pika import AioPikaBroker
from taskiq_redis import RedisAsyncResultBackend

broker = AioPikaBroker(BROKER.removesuffix("//"), qos=1000)
broker = broker.with_middlewares(SimpleRetryMiddleware(default_retry_count=3))
if RESULTS:
    broker = broker.with_result_backend(RedisAsyncResultBackend(RESULTS))


@broker.task("noop")
async def noop(data: str = "") -> None:
    counter.add()


@broker.task("echo")
async def echo(number: int) -> int:
    counter.add()
    return number


@broker.task("fail_once", retry_on_error=True)
async def fail_once(context: Annotated[Context, TaskiqDepends()]) -> None:
    counter.add()
    if not int(context.message.labels.get("_retries", 0)):
        raise Failed


@broker.task("io")
def io() -> None:
    time.sleep(IO_S)
    counter.add()


@broker.task("aio")
async def aio() -> None:
    await asyncio.sleep(IO_S)
    counter.add()


@broker.task("waited")
async def waited(since_s: float) -> None:
    note(time.time() - since_s)
    counter.add()


@broker.task("minute")
async def minute() -> None:
    await asyncio.sleep(MINUTE_S)


TASKS = {
    "noop": noop,
    "echo": echo,
    "fail_once": fail_once,
    "io": io,
    "aio": aio,
    "waited": waited,
    "minute": minute,
}
loop = asyncio.new_event_loop()


def bulk(task: str, calls: list[Any]) -> None:
    async def send() -> None:
        for start in range(0, len(calls), 100):
            await asyncio.gather(*(TASKS[task].kiq(*args) for args in calls[start : start + 100]))

    loop.run_until_complete(send())


def single(_number: int) -> object:
    return loop.run_until_complete(noop.kiq())


def round_trip(number: int) -> object:
    async def both() -> Any:
        task = await echo.kiq(number)
        return (await task.wait_result(check_interval=0.001, timeout=30)).return_value

    value = loop.run_until_complete(both())
    assert value == number
    return value


def together(count: int) -> None:
    bulk("noop", [()] * count)


if __name__ == "__main__":
    loop.run_until_complete(broker.startup())
    main(Side(bulk, single, round_trip, together=together))
    loop.run_until_complete(broker.shutdown())
