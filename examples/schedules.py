"""Scheduled tasks: in code, at run time, and the nights when the clocks change.

python examples/schedules.py
"""

import time
from datetime import UTC, datetime, timedelta

from taskq import TaskQ, crontab, every, once

app = TaskQ("schedules")


@app.task(schedule=every(0.5))
def poll() -> str:
    return "polled"


@app.task
def report(region: str) -> str:
    return f"report of {region}"


# Declared while the module is imported: a scheduler that starts makes the store say the same.
app.schedules.add(
    "nightly",
    report,
    crontab("30 2 * * *", tz="Europe/Berlin"),
    ("eu",),
    overlap="skip",
    catch_up="last",
    dynamic=False,
)


def wait_for(name: str, fired: int) -> None:
    """Wait until a schedule has sent so many tasks."""
    deadline = time.monotonic() + 60
    while app.schedules.get(name).fired < fired:
        assert time.monotonic() < deadline, f"{name} was not sent {fired} times"
        time.sleep(0.1)


def wait_for_deploy() -> None:
    """Wait until the scheduler has stored what this file declares."""
    deadline = time.monotonic() + 60
    while "nightly" not in {info.name for info in app.schedules.ls()}:
        assert time.monotonic() < deadline, "no scheduler has started"
        time.sleep(0.1)


def main() -> None:
    wait_for_deploy()
    wait_for("schedules.poll", fired=3)
    polled = app.schedules.get("schedules.poll")
    print("poll:     ", polled.fired, "ticks; last result:", app.result(polled.last_id).get(30))

    # From a running program: stored at once, and a scheduler knows of it within a second.
    soon = datetime.now(UTC) + timedelta(seconds=2)
    app.schedules.add("birthday", report, once(soon), ("us",), dynamic=True)
    wait_for("birthday", fired=1)
    print("birthday: ", app.result(app.schedules.get("birthday").last_id).get(timeout=30))
    app.schedules.remove("birthday")

    # Now, besides its ticks.
    print("run now:  ", app.schedules.run("nightly").get(timeout=30))

    app.schedules.pause("schedules.poll", why="the warehouse is down")
    print("paused:   ", app.schedules.get("schedules.poll").why)
    app.schedules.resume("schedules.poll")

    shown = app.schedules.preview("nightly", 3, after=datetime(2026, 10, 24, 12, tzinfo=UTC))
    print("nightly:  ", shown.text)
    for tick in shown.ticks:
        print("            ", tick.isoformat())
    for note in shown.notes[:2]:
        print("            ", note)
    utc_hours = [tick.astimezone(UTC).hour for tick in shown.ticks]
    assert utc_hours == [0, 1, 1], "once in the night that has 02:30 twice"


if __name__ == "__main__":
    from _worker import worker_beside

    with worker_beside(__file__, "--with-scheduler"), app:
        main()
