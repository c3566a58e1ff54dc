"""How tasks are called: every line with an error says so, and no other line has one."""

from datetime import UTC, datetime
from typing import assert_type

from taskq import AsyncResult, Signature, TaskQ, task

app = TaskQ("typing", broker="memory://", results="memory://")


@app.task
def add(x: int, y: int = 0) -> int:
    return x + y


@app.task(queue="mail", max_retries=5)
def send(to: str, *, urgent: bool = False) -> str:
    return to


@app.task()
def nothing() -> None:
    return None


@task
def shared(path: str) -> bytes:
    return path.encode()


@task(name="other.shared")
def shared_with_options(path: str) -> list[str]:
    return [path]


# In place: the function itself.
assert_type(add(1, 2), int)
assert_type(send("x", urgent=True), str)
assert_type(shared("x"), bytes)
assert_type(shared_with_options("x"), list[str])
add("x")  # error
add()  # error
shared(1)  # error

# Sent.
assert_type(add.delay(1), AsyncResult[int])
assert_type(add.delay(1).get(timeout=1), int)
assert_type(add.delay(x=1, y=2).get(), int)
assert_type(send.delay("x", urgent=True).get(), str)
assert_type(nothing.delay().get(), None)
assert_type(shared.delay("x").get(), bytes)
add.delay("x")  # error
add.delay()  # error
add.delay(1, 2, 3)  # error
add.delay(1, z=2)  # error
add.delay(1, y="2")  # error
send.delay("x", True)  # error
send.delay("x", urgent="yes")  # error
nothing.delay(1)  # error
shared.delay(b"x")  # error
shared_with_options.delay(None)  # error
add.delay(1).get().upper()  # error
add.delay(1).get(timeout="1")  # error
add.dealy(1)  # error

# With options.
assert_type(add.apply_async((1, 2)).get(), int)
assert_type(add.apply_async([1], {"y": 2}, countdown=1.5, queue="q", priority=3), AsyncResult[int])
add.apply_async((1,), eta=datetime.now(UTC), expires=datetime.now(UTC))
add.apply_async((1,), headers={"tenant": "acme"}, task_id="my-id", serializer="json")
add.apply_async((1,), link=send.s("x"), link_error=[nothing.si()])
add.apply_async((1,), countdown="1")  # error
add.apply_async((1,), eta="tomorrow")  # error
add.apply_async((1,), priority="high")  # error
add.apply_async((1,), cuontdown=1)  # error
add.apply_async(1)  # error

# By name, in bulk, by id.
assert_type(app.send_many([add.s(1, 2), send.s("x")])[0].id, str)
app.send_many(add.s(number, 2) for number in range(3))
assert_type(app.result("id").state, str)
assert_type(add.s(1), Signature[int])
assert_type(add.s(1).delay(2).get(), int)
app.send_many(add.s(1, 2))  # error
app.send_many([1, 2])  # error
app.result(1)  # error
