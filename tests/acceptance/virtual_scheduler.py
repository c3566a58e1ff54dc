"""A scheduler process whose clock runs fast; arguments: name, lease, speed, first and last moment.

Virtual time stands at the first moment until the file `began` says when, in real epoch seconds, it
began to run.
"""

import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from taskq import crontab, every
from taskq.scheduler.lease import SchedulerClock
from taskq.scheduler.scheduler import Scheduler
from taskq.schedules.base import Schedule
from taskq.worker.logs import set_up

SCHEDULES: dict[str, Schedule] = {
    "minutely": crontab("* * * * *"),
    "fives": crontab("*/5 * * * *", tz="Asia/Kathmandu"),
    "sevens": every(420, jitter_s=100),
}


class FastClock(SchedulerClock):
    """Time that passes faster, the same in every process of this machine."""

    def __init__(self, first_s: float, speed: float) -> None:
        super().__init__()
        self._first_s = first_s
        self._speed = speed
        self._began_s = 0.0

    def set(self, now_ms: int) -> None:
        """Take nothing over: the store's clock is the real one."""

    def now_ms(self) -> int:
        """Return virtual epoch ms."""
        if not self._began_s:
            path = Path("began")
            if not path.exists():
                return round(self._first_s * 1000)
            self._began_s = float(path.read_text())
        passed_s = time.time() - self._began_s
        return round((self._first_s + passed_s * self._speed) * 1000)

    def wait_s(self, due_ms: int) -> float:
        """Return real seconds."""
        return super().wait_s(due_ms) / self._speed


def main() -> None:
    from work_app import app

    name = sys.argv[1]
    lease_s, speed, first_s, until_s = map(float, sys.argv[2:6])
    limits = {
        "starting_at": datetime.fromtimestamp(first_s, UTC),
        "until": datetime.fromtimestamp(until_s, UTC),
        "max_age_s": 86400,
        "dynamic": False,
    }
    for schedule_name, schedule in SCHEDULES.items():
        app.schedules.add(schedule_name, "sent_at", schedule, **limits)
    set_up("info", "text")
    scheduler = Scheduler(app, name=name, lease_s=lease_s, time=FastClock(first_s, speed))
    signal.signal(signal.SIGTERM, lambda number, frame: scheduler.stop())
    with app:
        scheduler.run()


if __name__ == "__main__":
    main()
