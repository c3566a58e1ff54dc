"""Tasks for later: countdown, eta, expiry, and a change of mind.

python examples/delays.py
"""

import time
from datetime import UTC, datetime, timedelta

from taskq import TaskCancelled, TaskExpired, TaskQ

app = TaskQ("delays")


@app.task
def now() -> float:
    return time.time()


def main() -> None:
    sent_at = time.time()
    # Delays live in the broker: workers may come and go while a task waits, for up to a year.
    by_countdown = now.apply_async(countdown=1)
    by_date = now.apply_async(eta=datetime.now(UTC) + timedelta(seconds=1.5))
    too_late = now.apply_async(countdown=2, expires=0.5)
    next_week = now.apply_async(countdown=7 * 86400)

    print("cancelled:   ", next_week.cancel())
    try:
        next_week.get(timeout=30)
    except TaskCancelled as error:
        print("next week:   ", error)
    else:
        raise AssertionError("a cancelled task ran")

    for name, result, wait_s in [("countdown=1", by_countdown, 1), ("eta in 1.5 s", by_date, 1.5)]:
        ran_after_s = result.get(timeout=30) - sent_at
        print(f"{name}:  ran after {ran_after_s:.2f} s")
        assert ran_after_s >= wait_s, "a task ran before its time"

    # It was due after it expired: no worker starts it, and whoever waits is told.
    try:
        too_late.get(timeout=30)
    except TaskExpired as error:
        print("expired:     ", error)
    else:
        raise AssertionError("an expired task ran")


if __name__ == "__main__":
    from _worker import worker_beside

    with worker_beside(__file__), app:
        main()
