"""Event sourcing: the lifecycle log is replayed into a state that equals the live one.

python examples/patterns/event_sourcing.py
"""

import threading
from collections.abc import Iterable

from taskq import TaskQ
from taskq.events import Event
from taskq.events.history import History
from taskq.testing import running_worker

app = TaskQ("shop", broker="memory://", results="memory://")


@app.task(name="charge", max_retries=0)
def charge(amount: int) -> int:
    if amount < 0:
        raise ValueError("negative")
    return amount


class Projection:
    """How each task stands: built from events alone."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}

    def apply(self, events: Iterable[Event]) -> None:
        """Take events in their order."""
        for event in events:
            if event.task_id:
                self.states[event.task_id] = event.data["state"]


def main() -> None:
    # A reader with a name keeps its place in the log: nothing is missed between two runs.
    log = app.broker.events("projection")
    live = Projection()
    ended = threading.Semaphore(0)

    def follow(event: Event) -> None:
        live.apply([event])
        if event.type in ("task.succeeded", "task.dead_lettered"):
            ended.release()

    with app.events.subscribe(follow), running_worker(app):
        ids = [charge.delay(amount).id for amount in (5, -1, 7)]
        for _ in ids:
            assert ended.acquire(timeout=60), live.states

    history = History(":memory:")
    history.catch_up(log)
    log.close()
    replayed = Projection()
    for task_id in ids:
        replayed.apply(history.life(task_id))
        print(task_id[:8], *(event.type for event in history.life(task_id)))
    history.close()

    assert replayed.states == live.states
    assert [replayed.states[task_id] for task_id in ids] == ["SUCCESS", "FAILURE", "SUCCESS"]
    assert [app.result(task_id).state for task_id in ids] == ["SUCCESS", "FAILURE", "SUCCESS"]


if __name__ == "__main__":
    with app:
        main()
