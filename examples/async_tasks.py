"""Coroutines as tasks: one process that waits for a hundred things at once.

python examples/async_tasks.py
"""

import asyncio
import time

from taskq import TaskQ

app = TaskQ("async_tasks")

TASKS = 200
WAIT_S = 0.2


@app.task
async def fetch(number: int) -> int:
    # Stands for a request to another service.
    await asyncio.sleep(WAIT_S)
    return number * number


@app.task
def total(numbers: list[int]) -> int:
    # A plain function among coroutines runs on a thread and does not hold the others up.
    return sum(numbers)


async def main() -> None:
    # In place it is the coroutine that it was declared as.
    print("here:   ", await fetch(12))

    # The first waits for the worker to start.
    print("worker: ", await (await fetch.adelay(12)).aget(timeout=30))

    # adelay() and aget() keep this loop free: sends and waits of all run side by side.
    start = time.monotonic()
    results = await asyncio.gather(*(fetch.adelay(number) for number in range(TASKS)))
    squares = await asyncio.gather(*(result.aget(timeout=30) for result in results))
    took_s = time.monotonic() - start
    print(f"{TASKS} tasks of {WAIT_S} s each: {took_s:.2f} s, one by one {TASKS * WAIT_S:.0f} s")
    assert squares == [number * number for number in range(TASKS)]
    assert took_s < TASKS * WAIT_S / 2

    added = await (await total.adelay(squares)).aget(timeout=30)
    print("sum:    ", added)
    assert added == sum(squares)


if __name__ == "__main__":
    from _worker import worker_beside

    with worker_beside(__file__, "-P", "asyncio", "-c", "100"), app:
        asyncio.run(main())
