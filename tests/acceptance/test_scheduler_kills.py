"""Three schedulers as processes, their leaders killed and frozen at random: each tick one run.

Time passes fast. LONG=1 plays 200 virtual minutes at a tenth of the speed, with more deaths, and
holds the lateness against the lease; by default it is a fifth of the kills and a generous bound.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from fleet import HERE, Fleet, until

from taskq import TaskQ
from taskq.schedules import crontab, every
from taskq.schedules.base import Schedule
from taskq.schedules.entry import tick_id

LONG = os.environ.get("LONG") == "1"
SEED = int(os.environ.get("SEED", "0")) or random.randrange(10**6)
LEASE_S = 1.0
SPEED = 60.0 if LONG else 900.0
MINUTES = 200
SLACK_S = 1.0 if LONG else 60.0
FIRST_S = datetime(2026, 3, 28, 23, tzinfo=UTC).timestamp()
"""When virtual time begins: before a change of the clocks, which none of the schedules heeds."""
LAST_S = FIRST_S + MINUTES * 60
SCHEDULES: dict[str, Schedule] = {
    "minutely": crontab("* * * * *"),
    "fives": crontab("*/5 * * * *", tz="Asia/Kathmandu"),
    "sevens": every(420, jitter_s=100),
}


class Schedulers:
    """Three processes, of which one is always meant to live."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        # Schedules belong to the app of this name.
        self.app = TaskQ("work", broker=fleet.broker, results=fleet.results)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        for number in range(3):
            self.start(f"s{number}")

    def start(self, name: str) -> None:
        words = (name, LEASE_S, SPEED, FIRST_S, LAST_S)
        with (self._fleet.directory / f"{name}.log").open("ab") as output:
            self._processes[name] = subprocess.Popen(
                [sys.executable, str(HERE / "virtual_scheduler.py"), *map(str, words)],
                cwd=self._fleet.directory,
                env=self._fleet.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def leader(self) -> str:
        """Return the name of who leads, empty for nobody."""
        beat = self.app.schedules.store.beat("", 0, 1, take=False)
        return beat.holder.partition("#")[0]

    def harm(self, dice: random.Random) -> str:
        """Kill the leader and start it anew, or freeze it for longer than its lease."""
        name = until(self.leader, "a leader", 60)
        process = self._processes[name]
        if dice.random() < 0.5:
            process.kill()
            process.wait()
            self.start(name)
            return "killed"
        process.send_signal(signal.SIGSTOP)
        time.sleep(dice.uniform(0.2, 3 * LEASE_S))
        process.send_signal(signal.SIGCONT)
        return "frozen"

    def logs(self) -> str:
        """Return the last lines of each."""
        paths = sorted(self._fleet.directory.glob("s?.log"))
        return "\n".join(path.read_text()[-3000:] for path in paths)

    def close(self) -> None:
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
        self.app.close()


@pytest.fixture
def schedulers(fleet: Fleet) -> Iterator[Schedulers]:
    made = Schedulers(fleet)
    yield made
    made.close()


def expected() -> dict[str, float]:
    """Return the ids of all ticks, and how many real seconds after the beginning each is due."""
    found = {}
    for name, schedule in SCHEDULES.items():
        bound = schedule.bound(name)
        # The first is due after the schedules were declared, which is at the first moment.
        due_ms = bound.next_ms(round(FIRST_S * 1000))
        while due_ms is not None and due_ms <= LAST_S * 1000:
            found[tick_id("work", name, due_ms)] = (due_ms / 1000 - FIRST_S) / SPEED
            due_ms = bound.next_ms(due_ms)
    return found


@pytest.mark.timeout(600)
def test_each_tick_is_one_run_whatever_happens_to_the_leaders(
    fleet: Fleet, schedulers: Schedulers
) -> None:
    dice = random.Random(SEED)
    fleet.start(pool="thread", slots=4)
    until(lambda: schedulers.app.schedules.store.rows(["sevens"])[0], "a scheduler", 60)
    until(schedulers.leader, "a leader", 60)
    ids = expected()
    harm = Counter[str]()
    began_s = time.time()
    (fleet.directory / "began.new").write_text(str(began_s))
    (fleet.directory / "began.new").rename(fleet.directory / "began")
    end_s = began_s + MINUTES * 60 / SPEED

    while time.time() < end_s:
        time.sleep(dice.uniform(0.1, 1.5))
        harm[schedulers.harm(dice)] += 1
    told = lambda: f"seed={SEED} {dict(harm)}\n{schedulers.logs()}"  # noqa: E731
    until(lambda: len({run.id for run in fleet.runs()}) >= len(ids), "every tick", 120)

    runs = fleet.runs()
    counts = Counter(run.id for run in runs)
    assert {task_id: counts[task_id] for task_id in ids if counts[task_id] != 1} == {}, told()
    assert counts.keys() == ids.keys(), told()
    assert sum(harm.values()) >= 3
    late_s = [run.at_s - began_s - ids[run.id] for run in runs]
    print(f"ticks={len(ids)} {dict(harm)} latest={max(late_s):.2f} s")
    assert max(late_s) < LEASE_S + SLACK_S, told()
