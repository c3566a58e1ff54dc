"""Huey on Redis (BENCH_RESULTS is its server) or, with BENCH_STYLE=sqlite, on an SQLite file."""

import os
import time
from typing import Any

from common import BROKER, IO_S, MINUTE_S, RESULTS, Failed, Side, counter, main, note
from huey import RedisHuey, SqliteHuey
from huey.api import Task

common: dict[str, Any] = {"results": bool(RESULTS), "store_none": bool(RESULTS)}
if os.environ.get("BENCH_STYLE") == "sqlite":
    huey = SqliteHuey("bench", filename=BROKER.removeprefix("sqlite:///"), **common)
else:
    huey = RedisHuey("bench", url=BROKER, **common)


@huey.task(name="noop")
def noop(data: str = "") -> None:
    counter.add()


@huey.task(name="echo")
def echo(number: int) -> int:
    counter.add()
    return number


@huey.task(name="fail_once", retries=1, context=True)
def fail_once(task: Task | None = None) -> None:
    counter.add()
    if task is not None and task.retries:
        raise Failed


@huey.task(name="io")
def io() -> None:
    time.sleep(IO_S)
    counter.add()


@huey.task(name="waited")
def waited(since_s: float) -> None:
    note(time.time() - since_s)
    counter.add()


@huey.task(name="minute")
def minute() -> None:
    time.sleep(MINUTE_S)


TASKS = {
    "noop": noop,
    "echo": echo,
    "fail_once": fail_once,
    "io": io,
    "waited": waited,
    "minute": minute,
}


def bulk(task: str, calls: list[Any]) -> None:
    for args in calls:
        TASKS[task](*args)


def single(_number: int) -> object:
    return noop()


def round_trip(number: int) -> object:
    value = echo(number).get(blocking=True, timeout=30, backoff=1.0, max_delay=0.001)
    assert value == number
    return value


def later(task: str, args: tuple[Any, ...], delay_s: float) -> object:
    return TASKS[task].schedule(args, delay=delay_s)


if __name__ == "__main__":
    # Huey names a task after its module, which must be the one that its worker imports.
    import huey_side

    side = huey_side
    main(Side(side.bulk, side.single, side.round_trip, side.later))
