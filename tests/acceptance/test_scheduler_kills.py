"""Three schedulers as processes, their leaders killed and frozen at random: each tick one run.

In the middle the store is emptied, and later it is away; the embedded file, which is the broker
too, is locked by somebody else instead. 200 virtual minutes pass, fast. LONG=1 plays them slowly
enough that lateness can be held against the lease; by default the bound is generous.
"""

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fleet import HERE, Fleet, Run, until
from servers import RedisServer
from virtual_scheduler import SCHEDULES

from taskq import TaskQ
from taskq.schedules.entry import tick_id

LONG = os.environ.get("LONG") == "1"
SEED = int(os.environ.get("SEED", "0")) or random.randrange(10**6)
LEASE_S = 10.0 if LONG else 1.0
SPEED = 20.0 if LONG else 600.0
MINUTES = 200
SLACK_S = 0.5 if LONG else 60.0
"""For what is no lease: the machine, with a dozen processes of the test on it."""
WAIT_S = 120.0
FIRST_S = datetime(2026, 3, 28, 23, tzinfo=UTC).timestamp()
"""When virtual time begins: before a change of the clocks, which none of the schedules heeds."""
LAST_S = FIRST_S + MINUTES * 60


class Schedulers:
    """Three processes, and what is done to them.

    Attributes:
        harm: What was done, counted.
        moments: From when on a scheduler can work again, after each of these, in epoch seconds.
    """

    def __init__(self, fleet: Fleet, dice: random.Random, redis: RedisServer | None) -> None:
        self._fleet = fleet
        self._dice = dice
        self._redis = redis
        # Schedules belong to the app of this name.
        self.app = TaskQ("work", broker=fleet.broker, results=fleet.results)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._starts: Counter[str] = Counter()
        self.harm: Counter[str] = Counter()
        self.moments: list[float] = []
        for number in range(3):
            self._start(f"s{number}")

    def _start(self, name: str) -> None:
        words = (name, LEASE_S, SPEED, FIRST_S, LAST_S)
        self._starts[name] += 1
        with self._log(name).open("ab") as output:
            self._processes[name] = subprocess.Popen(
                [sys.executable, str(HERE / "virtual_scheduler.py"), *map(str, words)],
                cwd=self._fleet.directory,
                env=self._fleet.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def _log(self, name: str) -> Path:
        return self._fleet.directory / f"{name}.log"

    def ready(self) -> bool:
        """Return whether all three have started."""
        return all(
            self._log(name).read_text().count("schedules declared=") >= self._starts[name]
            for name in self._processes
        )

    def leader(self) -> str:
        """Return the name of who leads, empty for nobody."""
        beat = self.app.schedules.store.beat("", 0, 1, take=False)
        return beat.holder.partition("#")[0]

    def hurt_leader(self) -> None:
        """Kill the leader and start it anew, or freeze it, at times for longer than its lease."""
        name = until(self.leader, "a leader", WAIT_S)
        process = self._processes[name]
        if self._dice.random() < 0.5:
            self.moments.append(time.time())
            process.kill()
            process.wait()
            self.harm["killed"] += 1
            self._start(name)
            return
        self.moments.append(time.time())
        process.send_signal(signal.SIGSTOP)
        # Frozen in the midst of a transaction it keeps the whole file locked until it goes on.
        locks = self._redis is None and self._is_locked()
        time.sleep(self._dice.uniform(0.2, 3) * LEASE_S)
        process.send_signal(signal.SIGCONT)
        self.harm["frozen"] += 1
        if locks:
            self.harm["frozen with the file locked"] += 1
            self.moments.append(time.time())

    def _file(self) -> sqlite3.Connection:
        path = self._fleet.broker.removeprefix("sqlite:///")
        return sqlite3.connect(path, isolation_level=None, timeout=WAIT_S)

    def _is_locked(self) -> bool:
        with contextlib.closing(self._file()) as connection:
            connection.execute("PRAGMA busy_timeout = 500")
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
            connection.execute("ROLLBACK")
        return False

    def empty(self) -> None:
        """Empty the store, where that can be done."""
        if self._redis is not None:
            self._redis.ctl("FLUSHALL")
            self.harm["emptied"] += 1
            self.moments.append(time.time())
            # A leader that dies in the same beat takes with it what it alone knew to be sent: see
            # test_a_store_that_is_emptied_while_its_leader_is_frozen_costs_no_tick.
            until(lambda: self.app.schedules.store.rows(["sevens"])[0], "what was lost", WAIT_S)

    def take_away(self) -> None:
        """Let the store be away for longer than a lease."""
        away_s = self._dice.uniform(1, 2) * LEASE_S
        if self._redis is not None:
            self._redis.kill()
            time.sleep(away_s)
            self._redis.start()
        else:
            with contextlib.closing(self._file()) as connection:
                connection.execute("BEGIN IMMEDIATE")
                time.sleep(away_s)
                connection.execute("ROLLBACK")
        self.harm["away"] += 1
        self.moments.append(time.time())

    def logs(self) -> str:
        """Return the last lines of each."""
        return "\n".join(self._log(name).read_text()[-3000:] for name in sorted(self._processes))

    def close(self) -> None:
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
        self.app.close()


@pytest.fixture
def redis(request: pytest.FixtureRequest, backend_name: str) -> RedisServer | None:
    if backend_name == "sqlite":
        return None
    server: RedisServer = request.getfixturevalue("private_redis")
    return server


@pytest.fixture(params=["sqlite", "rabbitmq"])
def backend_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def backend(
    request: pytest.FixtureRequest, redis: RedisServer | None, tmp_path: Path
) -> tuple[str, str]:
    """URLs of an empty broker, and of an empty store that may be harmed."""
    if redis is None:
        url = f"sqlite:///{tmp_path}/work.db"
        return url, url
    return request.getfixturevalue("rabbitmq_url"), redis.url


@pytest.fixture
def dice() -> random.Random:
    return random.Random(SEED)


@pytest.fixture
def schedulers(
    fleet: Fleet, dice: random.Random, redis: RedisServer | None
) -> Iterator[Schedulers]:
    made = Schedulers(fleet, dice, redis)
    yield made
    made.close()


def expected(began_s: float) -> dict[str, float]:
    """Return the ids of all ticks, and when each is due in real epoch seconds."""
    found = {}
    for name, schedule in SCHEDULES.items():
        bound = schedule.bound(name)
        # The first is due after the schedules were declared, which is at the first moment.
        due_ms = bound.next_ms(round(FIRST_S * 1000))
        while due_ms is not None and due_ms <= LAST_S * 1000:
            due_s = began_s + (due_ms / 1000 - FIRST_S) / SPEED
            found[tick_id("work", name, due_ms)] = due_s
            due_ms = bound.next_ms(due_ms)
    return found


def sent_at(run: Run) -> float:
    return int(run.word) / 1000


def lateness(run: Run, due_s: float, moments: list[float]) -> tuple[float, float]:
    """Return by how much a tick was sent late, and the same since it could be sent last.

    The second counts from what was done to the schedulers or the store while the tick was due, so
    that two leaders which die one after the other have a lease each.
    """
    sent_s = sent_at(run)
    first, last = bisect_left(moments, due_s), bisect_right(moments, sent_s)
    since_s = moments[last - 1] if last > first else due_s
    return sent_s - due_s, sent_s - since_s


@pytest.mark.timeout(1500)
def test_each_tick_is_one_run_whatever_happens_to_the_leaders(
    fleet: Fleet, schedulers: Schedulers, dice: random.Random
) -> None:
    fleet.start(pool="thread", slots=4)
    until(schedulers.ready, "three schedulers", WAIT_S)
    until(schedulers.leader, "a leader", WAIT_S)
    began_s = time.time()
    (fleet.directory / "began.new").write_text(str(began_s))
    (fleet.directory / "began.new").rename(fleet.directory / "began")
    length_s = MINUTES * 60 / SPEED
    ids = expected(began_s)
    told = lambda: f"seed={SEED} {dict(schedulers.harm)}\n{schedulers.logs()}"  # noqa: E731
    troubles = [
        (0.35, schedulers.empty),
        (0.5, schedulers.take_away),
        (0.65, schedulers.empty),
    ]

    while (part := (time.time() - began_s) / length_s) < 1:
        time.sleep(dice.uniform(0.1, 1.5) * LEASE_S)
        if troubles and part > troubles[0][0]:
            troubles.pop(0)[1]()
        schedulers.hurt_leader()
        # One that is still starting cannot stand in for the next.
        until(schedulers.ready, "three schedulers", WAIT_S)
    for _, trouble in troubles:
        trouble()
    until(lambda: len({run.id for run in fleet.runs()}) >= len(ids), "every tick", WAIT_S)

    runs = fleet.runs()
    counts = Counter(run.id for run in runs)
    assert {task_id: counts[task_id] for task_id in ids if counts[task_id] != 1} == {}, told()
    assert counts.keys() == ids.keys(), told()
    late = [lateness(run, ids[run.id], sorted(schedulers.moments)) for run in runs]
    latest_s, latest_since_s = max(one for one, _ in late), max(two for _, two in late)
    print(
        f"seed={SEED} ticks={len(ids)} {dict(schedulers.harm)} lease={LEASE_S:g} s "
        f"latest={latest_s:.2f} s, since the last harm {latest_since_s:.2f} s"
    )
    assert latest_since_s < LEASE_S + SLACK_S, told()
