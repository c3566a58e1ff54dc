"""A change of mind: tasks called off before they start, while they run, and many at once.

python examples/cancelling.py
"""

import time
from pathlib import Path

from taskq import TaskCancelled, TaskQ

app = TaskQ("cancelling")


@app.task(bind=True)
def export(self, flag: str) -> None:
    Path(flag).touch()
    while True:
        time.sleep(0.02)
        # Ends the task here once it is cancelled; without this it is stopped after cancel_grace_s.
        self.checkpoint()


@app.task
def mail(to: str) -> str:
    return f"sent to {to}"


@app.task(bind=True, heartbeat_timeout_s=30)
def index(self, pages: int) -> int:
    for _ in range(pages):
        # A task that works in steps says that it makes progress; silent for 30 s, it is stopped.
        self.heartbeat()
    return pages


def main() -> None:
    flag = Path("export-runs").absolute()
    running = export.delay(str(flag))
    until_s = time.monotonic() + 60
    while not flag.exists() and time.monotonic() < until_s:
        time.sleep(0.05)
    flag.unlink()

    print("cancelled while it runs:", running.cancel())
    try:
        running.get(timeout=60)
    except TaskCancelled as error:
        print("the export:             ", error)
    else:
        raise AssertionError("a cancelled task returned")

    # The slot is free again. All mail of one customer, delayed as it is, is called off at once.
    later = [mail.apply_async((name,), countdown=2, headers={"tenant": "acme"}) for name in "ab"]
    other = mail.apply_async(("c",), countdown=2, headers={"tenant": "other"})
    app.cancel_all(task=mail.name, headers={"tenant": "acme"})
    for result in later:
        try:
            result.get(timeout=60)
        except TaskCancelled:
            continue
        raise AssertionError("a cancelled task ran")
    print("mail of others:         ", other.get(timeout=60))
    print("pages indexed:          ", index.delay(100).get(timeout=60))


if __name__ == "__main__":
    from _worker import worker_beside

    with worker_beside(__file__), app:
        main()
