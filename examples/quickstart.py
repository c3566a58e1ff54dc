"""The first steps: declare tasks, send them, read their results.

    python examples/quickstart.py

Without settings everything happens on an embedded queue; with TASKQ_BROKER and TASKQ_RESULTS set,
the same lines use RabbitMQ and Redis.
"""

from taskq import TaskFailed, TaskQ

app = TaskQ("quickstart")


@app.task
def add(x: float, y: float) -> float:
    return x + y


@app.task(max_retries=0)
def greet(name: str, *, polite: bool = False) -> str:
    if not name:
        raise ValueError("whom?")
    return f"Good day, {name}." if polite else f"Hi {name}!"


def main() -> None:
    # Calling a task runs it here, as the function that it is.
    print("here:        2 + 3 =", add(2, 3))

    # delay() sends it: a worker process runs it and stores what it returned.
    result = add.delay(2, 3)
    print("in a worker: 2 + 3 =", result.get(timeout=30), "| id", result.id)
    assert (result.get(), result.state) == (5, "SUCCESS")

    greeting = greet.delay("Ada", polite=True).get(timeout=30)
    print("in a worker:", greeting)
    assert greeting == "Good day, Ada."

    # Arguments that do not fit are refused before anything is sent.
    try:
        greet.delay("Ada", loud=True)  # type: ignore[call-arg]
    except TypeError as error:
        print("not sent:   ", error)
    else:
        raise AssertionError("a wrong argument was sent")

    # What a task raises, get() raises: a TaskFailed that is also a ValueError.
    failing = greet.delay("")
    try:
        failing.get(timeout=30)
    except ValueError as error:
        print("failed:     ", error, "| a TaskFailed too:", isinstance(error, TaskFailed))
    else:
        raise AssertionError("the failure was lost")
    assert failing.state == "FAILURE"

    # Many at once: the broker's confirms are pipelined.
    results = app.send_many([add.s(number, number) for number in range(100)])
    total = sum(one.get(timeout=30) for one in results)
    print("100 tasks:   their sum is", total)
    assert total == 9900

    # A chain: each step gets the value of the one before as its first argument.
    chained = (add.s(1, 2) | add.s(10) | add.s(100)).delay().get(timeout=30)
    print("a chain:     1 + 2 + 10 + 100 =", chained)
    assert chained == 113


if __name__ == "__main__":
    from _worker import worker_beside

    with worker_beside(__file__), app:
        main()
