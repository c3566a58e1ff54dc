"""Signatures and chains."""

from typing import Any, assert_type

from taskq import AsyncResult, Chain, Signature, TaskQ, chain

app = TaskQ("typing-chains", broker="memory://", results="memory://")


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def show(value: int) -> str:
    return str(value)


assert_type(add.s(1, 2), Signature[int])
assert_type(add.si(1, 2).set(queue="q"), Signature[int])
assert_type(add.s(1, 2) | show.s(), Chain)
assert_type(add.s(1, 2) | add.s(3) | show.s(), Chain)
assert_type(add.s(1) | (add.s(2) | show.s()), Chain)
assert_type(chain(add.s(1, 2), show.s()), Chain)
assert_type(chain(add.s(1, 2), show.s()).delay(), AsyncResult[Any])
assert_type((add.s(1, 2) | show.s()).apply_async(countdown=1).get(), Any)
assert_type((add.s(1, 2) | show.s()).delay().parent, AsyncResult[Any] | None)

add.s(1, 2) | show  # error
add | show.s()  # error
chain(add, show)  # error
chain(add.delay(1, 2))  # error
app.send_many([add])  # error
