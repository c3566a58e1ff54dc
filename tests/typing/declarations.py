"""How tasks are declared: `bind=True`, options of a wrong type, the app itself."""

from typing import assert_type

from taskq import Middleware, Request, Retry, RetryPolicy, Task, TaskQ, task

app = TaskQ("typing-declare", broker="memory://", results="memory://", max_retries=1)


@app.task(bind=True, max_retries=2, retry=RetryPolicy(base_s=1, on=(OSError,)))
def bound(self: Task[..., int], x: int, *, label: str = "") -> int:
    assert_type(self.request, Request)
    assert_type(self.request.retries, int)
    assert_type(self.retry(countdown=5), Retry)
    raise self.retry(countdown="5")  # error


@task(bind=True)
def shared_bound(self: Task[..., str], text: str) -> str:
    return text


# The task itself is no argument of its callers.
assert_type(bound(1, label="x"), int)
assert_type(bound.delay(1, label="x").get(), int)
assert_type(shared_bound.delay("x").get(), str)
bound.delay("1")  # error
bound.delay(1, "x")  # error
bound.delay(bound, 1)  # error
shared_bound.delay()  # error
bound("1")  # error


@app.task(queue=1)  # error
def wrong_queue() -> None: ...


@app.task(max_retries="3")  # error
def wrong_retries() -> None: ...


@app.task(retry=3)  # error
def wrong_policy() -> None: ...


@app.task(time_limit="1h")  # error
def wrong_limit() -> None: ...


@app.task(prioritty=3)  # error
def misspelt() -> None: ...


@task(bind="yes")  # error
def wrong_bind() -> None: ...


RetryPolicy(jitter="some")  # error
RetryPolicy(on=(ValueError, 3))  # error
RetryPolicy(retries=3)  # error
TaskQ(1)  # error
TaskQ("x", broker=5)  # error
TaskQ("x", middlewares=[print])  # error
TaskQ("x", middlewares=[Middleware()])


# One decorator declares several tasks, each with its own type.
declare = app.task(queue="mail")


@declare
def first(x: int) -> int:
    return x


@declare
def second(x: str) -> str:
    return x


assert_type(first.delay(1).get(), int)
assert_type(second.delay("x").get(), str)
first.delay("x")  # error
