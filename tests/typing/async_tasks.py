"""Coroutines as tasks: in place a coroutine, sent and awaited the value."""

from collections.abc import Coroutine
from typing import Any, assert_type

from taskq import AsyncResult, AsyncTask, Task, TaskQ, task

app = TaskQ("typing-async", broker="memory://", results="memory://")


@app.task
async def fetch(url: str, tries: int = 1) -> bytes:
    return url.encode()


@app.task(queue="io", soft_time_limit=1.5)
async def store(data: bytes) -> int:
    return len(data)


@app.task
def plain(x: int) -> int:
    return x


@app.task(bind=True)
async def bound(self: AsyncTask[..., str], url: str) -> str:
    return self.request.id + url


@task
async def shared(x: int) -> int:
    return x


async def main() -> None:
    coroutine = assert_type(fetch("x"), Coroutine[Any, Any, bytes])
    assert_type(await coroutine, bytes)
    assert_type(await fetch("x"), bytes)
    assert_type(await fetch.adelay("x", tries=2), AsyncResult[bytes])
    assert_type(await (await store.adelay(b"x")).aget(timeout=1), int)
    assert_type(await (await plain.adelay(1)).aget(), int)
    assert_type(await (await bound.adelay("x")).aget(), str)
    assert_type(await (await shared.adelay(1)).aget(), int)
    await fetch.adelay(1)  # error
    await fetch.adelay("x", trys=2)  # error
    await store.adelay("x")  # error
    await bound.adelay()  # error
    await fetch(b"x")  # error
    await plain(1)  # error
    await fetch.delay("x")  # error


# From code that is not async it is sent like any other.
assert_type(fetch.delay("x").get(), bytes)
assert_type(shared.delay(1).get(), int)
fetch.delay(1)  # error
fetch.delay("x").get().decode(1)  # error
not_async: Task[..., bytes] = fetch  # error
