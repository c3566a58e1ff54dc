"""What happens when a task fails: retries, refusals, and the dead letters that remain.

python examples/retries.py
"""

import json
from typing import Any

from taskq import AsyncResult, Reject, RetryPolicy, Task, TaskFailed, TaskQ

app = TaskQ("retries")

# Waits of at most 0.1 s, 0.2 s, 0.4 s ...; no attempt turns a wrong input into a right one.
FAST = RetryPolicy(base_s=0.1, factor=2, cap_s=60, jitter="full", dead_on=(ValueError,))


class ServiceDown(Exception):
    """What a service raises on a bad day."""


@app.task(bind=True, max_retries=3, retry=FAST)
def unsteady(self: Task[..., str]) -> str:
    if self.request.retries < 2:
        raise ServiceDown("try again")
    return f"worked at attempt {self.request.retries + 1}"


@app.task(bind=True, max_retries=5)
def patient(self: Task[..., str]) -> str:
    # A task that knows better than its policy when to come back says so.
    if self.request.retries < 1:
        raise self.retry(countdown=0.3)
    return f"worked at attempt {self.request.retries + 1}"


@app.task(max_retries=2, retry=FAST)
def hopeless() -> None:
    raise ServiceDown("gone for good")


@app.task(retry=FAST)
def wrong_input(amount: int) -> None:
    raise ValueError(f"amount is {amount}")


@app.task
def picky(order: str) -> None:
    raise Reject(f"{order} is not for us")


def main() -> list[AsyncResult[None]]:
    # All are sent before the first is waited for, so they run while we look.
    first, second = unsteady.delay(), patient.delay()
    failing = [hopeless.delay(), wrong_input.delay(-1), picky.delay("order 7")]

    print("retried by its policy: ", first.get(timeout=30))
    print("retried by self.retry():", second.get(timeout=30))

    for result in failing:
        try:
            result.get(timeout=30)
        except TaskFailed as error:
            print("gave up:               ", error.remote_type, "-", error.remote_message)
        else:
            raise AssertionError(f"{result} did not fail")
    return failing


def show_dead_letters(letters: list[dict[str, Any]]) -> None:
    for letter in letters:
        kind = letter["exception"]["type"]
        print(f"dead letter: {letter['task']:21} {letter['reason']:9} {kind:12}", end=" ")
        print(f"attempts {letter['attempts']}  id {letter['id']}")


if __name__ == "__main__":
    from _worker import taskq, worker_beside

    with worker_beside(__file__) as worker, app:
        failing_ids = [result.id for result in main()]
        # A failure is told first and buried then; a stopped worker has done both.
        worker.stop()
        listed = json.loads(taskq("dead", "ls", "-A", __file__, "--json"))
        own = [letter for letter in listed if letter["id"] in failing_ids]
        show_dead_letters(own)
        found = {(letter["task"], letter["reason"], letter["attempts"]) for letter in own}
        assert found == {
            ("retries.hopeless", "failed", 3),
            ("retries.wrong_input", "failed", 1),
            ("retries.picky", "rejected", 1),
        }, found
