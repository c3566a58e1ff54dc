"""The same tasks on taskq, as one that moves over queue by queue has them."""

import os
from typing import Any

from taskq import Task, TaskQ

QUEUE = "taskq-side"

app = TaskQ(
    "taskq-side",
    broker=os.environ.get("MIXED_BROKER", "memory://"),
    results=os.environ.get("MIXED_RESULTS", "memory://"),
    default_queue=QUEUE,
)


@app.task(name="mixed.add")
def add(x: int, y: int) -> int:
    return x + y


@app.task(name="mixed.describe")
def describe(*args: Any, **kwargs: Any) -> list[str]:
    named = [f"{name}={value!r}" for name, value in sorted(kwargs.items())]
    return [repr(value) for value in args] + named


@app.task(name="mixed.request", bind=True)
def request(self: Task[[], dict[str, Any]]) -> dict[str, Any]:
    found = self.request
    return {
        "id": found.id,
        "retries": found.retries,
        "timelimit": found.headers.get("timelimit"),
        "tenant": found.headers.get("tenant"),
        "root_id": found.root_id,
        "parent_id": found.parent_id,
        "queue": found.queue,
    }


@app.task(name="mixed.fail", max_retries=0)
def fail(text: str) -> None:
    raise ValueError(text)


@app.task(name="mixed.where")
def where() -> str:
    return "taskq"


@app.task(name="mixed.note")
def note(path: str, word: str) -> None:
    with open(path, "a") as stream:
        stream.write(f"{word}\n")
