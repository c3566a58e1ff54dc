"""Measures a scheduler of 100,000 schedules: its start, 2,000 ticks due in one second, idleness.

    python benchmarks/schedules.py [--backend sqlite|rabbitmq|all] [--schedules N] [--due N]

Prints when the last of the ticks that are due in one second was sent, confirmed and settled, and
what the scheduler costs when nothing is due. Every tick must be one message, or the exit code is 1.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from priorities import servers  # noqa: E402
from tree import cpu_s, pss_mb  # noqa: E402

from taskq import TaskQ, crontab, every  # noqa: E402
from taskq.errors import ResultsUnavailable  # noqa: E402
from taskq.schedules.base import Schedule  # noqa: E402
from taskq.schedules.entry import Entry  # noqa: E402
from taskq.schedules.store import Row  # noqa: E402

app = TaskQ("schedules")
ZONES = ("Europe/Berlin", "America/New_York", "Asia/Kathmandu", "UTC")
_NIGHT_S = 12 * 3600


@app.task(name="job")
def job(number: int) -> None:
    """Do nothing: no worker runs."""


def row(number: int, schedule: Schedule, now_ms: int) -> Row:
    """Return a schedule as the store keeps it."""
    name = f"s{number}"
    entry = Entry(name=name, task="job", schedule=schedule, args=(number,))
    return Row(name, entry.to_text(), cursor_ms=now_ms)


def at(moment_s: float, zone: str = "UTC") -> Schedule:
    """Return a daily schedule that is due at this second."""
    moment = datetime.fromtimestamp(moment_s, UTC)
    return crontab(f"{moment.minute} {moment.hour} * * * {moment.second}", tz=zone)


def fill(client: TaskQ, count: int) -> None:
    """Store schedules that are due in half a day, of both kinds, in several zones."""
    now_s = time.time()
    rows = []
    for number in range(count):
        zone = ZONES[number % len(ZONES)]
        far_s = now_s + _NIGHT_S + number % 3600
        odd = every(86400, anchor=datetime.fromtimestamp(far_s, UTC))
        # A wall-clock time of another zone is hours away too: none of them is due soon.
        schedule = odd if number % 2 or zone != "UTC" else at(far_s)
        if zone != "UTC" and not number % 2:
            schedule = crontab(f"{number % 60} {number % 24} 1 1 *", tz=zone)
        rows.append(row(number, schedule, round(now_s * 1000)))
    client.schedules.store.restore(rows, [])


def make_due(client: TaskQ, count: int, total: int, moment_s: float) -> list[str]:
    """Store schedules that are due at one second; return their names."""
    rows = [row(total + i, at(moment_s), round(time.time() * 1000)) for i in range(count)]
    client.schedules.store.restore(rows, [])
    return [one.name for one in rows]


def until_settled(client: TaskQ, names: list[str]) -> float:
    """Return when every one of these was sent and settled, in epoch seconds."""
    probe = names[:: max(1, len(names) // 20)]
    deadline = time.monotonic() + 120
    while not all(one and one.fired for one in client.schedules.store.rows(probe)):
        if time.monotonic() > deadline:
            raise SystemExit("not sent within two minutes")
        time.sleep(0.02)
    while not all(one and one.fired for one in client.schedules.store.rows(names)):
        time.sleep(0.02)
    return time.time()


def measure(client: TaskQ, env: dict[str, str], options: argparse.Namespace) -> str:
    """Run a scheduler over a full store; return what it cost."""
    began_s = time.time()
    fill(client, options.schedules)
    filled_s = time.time() - began_s
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "taskq", "scheduler", "-A", "schedules:app"],
            cwd=ROOT / "benchmarks",
            env={**os.environ, **env, "PYTHONPATH": str(ROOT)},
            stderr=log,
        )
        try:
            return f"filled in {filled_s:.1f} s; " + watch(client, process.pid, options)
        finally:
            process.terminate()
            process.wait(60)
            log.seek(0)
            if errors := [line for line in log if "ERROR" in line]:
                print("".join(errors), file=sys.stderr)


def leader(client: TaskQ) -> str:
    """Return who leads; empty for nobody, and while the file is locked."""
    try:
        return client.schedules.store.beat("", 0, 1, take=False).holder
    except ResultsUnavailable:
        return ""


def watch(client: TaskQ, pid: int, options: argparse.Namespace) -> str:
    """Wait for a leader, let ticks be due, and let it idle."""
    store, due = client.schedules.store, options.due
    began_s = time.time()
    while not leader(client):
        time.sleep(0.02)
    started_s, started_cpu_s = time.time() - began_s, cpu_s([pid])
    lates, spent = [], []
    for number in range(options.rounds):
        # Room for the rows to arrive there and in the scheduler: it hears of them within a second.
        moment_s = int(time.time()) + 6
        names = make_due(client, due, options.schedules + number * due, moment_s)
        # By then it has read them.
        time.sleep(max(0.0, moment_s - 1 - time.time()))
        before_s = cpu_s([pid])
        lates.append(until_settled(client, names) - moment_s)
        spent.append(cpu_s([pid]) - before_s)
        if any(one is None or one.fired != 1 for one in store.rows(names)):
            raise SystemExit("a tick was not counted once")
    time.sleep(6)
    sent = client.broker.purge("default")
    if sent != due * options.rounds:
        raise SystemExit(f"{sent} messages of {due * options.rounds} ticks")
    before_s = cpu_s([pid])
    time.sleep(20)
    idle = (cpu_s([pid]) - before_s) / 20
    return (
        f"leads after {started_s:.1f} s ({started_cpu_s:.1f} s of CPU); {due} due in one second, "
        f"all settled after {', '.join(f'{late:.2f}' for late in lates)} s "
        f"({', '.join(f'{one:.2f}' for one in spent)} s of CPU); "
        f"idle {idle:.2%} of a core; {pss_mb([pid]):.0f} MB"
    )


def main() -> int:
    """Measure and print; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=("sqlite", "rabbitmq", "all"), default="all")
    parser.add_argument("--schedules", type=int, default=100_000, help="how many in the store")
    parser.add_argument("--due", type=int, default=2000, help="how many are due in one second")
    parser.add_argument("--rounds", type=int, default=3, help="how often that happens")
    options = parser.parse_args()
    names = ("sqlite", "rabbitmq") if options.backend == "all" else (options.backend,)
    for name in names:
        with tempfile.TemporaryDirectory() as place, servers(name, Path(place)) as env:
            client = TaskQ("schedules", broker=env["TASKQ_BROKER"], results=env["TASKQ_RESULTS"])
            with client:
                said = measure(client, env, options)
            print(f"{name}: {options.schedules} schedules {said}; load {os.getloadavg()[0]:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
