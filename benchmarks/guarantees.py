"""The numbers of docs/guarantees.md: kills, comebacks, replacements, measured on private servers.

    python benchmarks/guarantees.py                              all of them, about ten minutes
    python benchmarks/guarantees.py kills --places sqlite --seconds 20

`kills`     a worker with all its processes is killed every 2 s for 60 s under 1,000 tasks
`comeback`  the broker is killed (-9) and started ten times; time from the moment it accepts
            connections to that in which the worker consumes
`replace`   executors are killed; time from the kill to the first task that a successor starts

Exit 1 when a task was lost, more ran twice than were in hand at the kills, or a bound was passed.
Times are wall time; the load of the machine is told beside them.
"""

import argparse
import contextlib
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from rabbitmq4 import RabbitServer4  # noqa: E402
from servers import RabbitServer, RedisServer, ServerMissing  # noqa: E402

from taskq import TaskQ  # noqa: E402
from taskq.cli.leaving import end_in_order  # noqa: E402
from taskq.torture.account import Runs, unfinished, until  # noqa: E402
from taskq.torture.campaign import isolated, make_client  # noqa: E402
from taskq.torture.fleet import Fleet, Worker  # noqa: E402

POLL_S = 0.01
COMEBACK_S = 5.0
REPLACED_S = 0.1


@dataclass
class Outcome:
    """One line of the table.

    Attributes:
        what: Which measurement.
        told: What was found.
        failures: What is wrong, in words.
    """

    what: str
    told: str
    failures: list[str] = field(default_factory=list)


@dataclass
class Place:
    """Where it is measured: a client, workers to be, and the broker when it is a server."""

    app: TaskQ
    directory: Path
    settings: dict[str, str]
    node: RabbitServer | None = None

    @contextlib.contextmanager
    def fleet(self, count: int, slots: int) -> Iterator[Fleet]:
        """Give so many running workers, with a file of runs of their own."""
        with tempfile.TemporaryDirectory(dir=self.directory) as temporary:
            fleet = Fleet(Path(temporary), self.settings, count, slots)
            try:
                fleet.fill()
                yield fleet
            finally:
                fleet.close()


@contextlib.contextmanager
def place(name: str) -> Iterator[Place]:
    """Give a place on SQLite, RabbitMQ 3.10 or RabbitMQ 4, with nothing in it."""
    with tempfile.TemporaryDirectory(prefix="tg") as temporary, contextlib.ExitStack() as stack:
        directory = Path(temporary)
        node = None
        if name == "sqlite":
            broker = results = f"sqlite:///{directory}/work.db"
        else:
            node = (RabbitServer4 if name == "4" else RabbitServer)(directory / "rabbitmq")
            redis = RedisServer(directory / "redis", durable=True)
            for server in (node, redis):
                stack.callback(server.destroy)
                server.start()
            broker, results = node.url, redis.url
        stack.enter_context(isolated(directory, {}))
        app = stack.enter_context(make_client(broker, results, ""))
        settings = {"TASKQ_BROKER": broker, "TASKQ_RESULTS": results, "TASKQ_LEASE_S": "2"}
        yield Place(app, directory, settings, node)


def send(app: TaskQ, count: int, sleep_s: float) -> list[str]:
    """Send so many tasks and return their ids."""
    with app.batch():
        return [app.send_task("torture.work", (sleep_s,)).id for _ in range(count)]


def lost_of(app: TaskQ, ids: list[str], limit_s: float = 180.0) -> list[str]:
    """Wait for all tasks to end, and return those that have not."""
    left = set(ids)

    def ended() -> bool:
        nonlocal left
        left = unfinished(app, left)
        return not left

    until(ended, limit_s)
    return sorted(left)


def running(runs_path: Path, pids: set[int]) -> int:
    """Return how many tasks these processes, dead by now, had begun and not ended."""
    open_runs: set[tuple[str, str]] = set()
    for line in runs_path.read_text().splitlines() if runs_path.exists() else []:
        kind, task_id, attempt, pid, _ = line.split(" ")
        if int(pid) in pids:
            (open_runs.add if kind == "s" else open_runs.discard)((task_id, attempt))
    return len(open_runs)


def unsettled(app: TaskQ, runs_path: Path, pids: set[int], since_ms: float) -> int:
    """Return how many tasks these dead processes had just ended, with nothing stored of it yet."""
    ended = [
        words[1]
        for line in runs_path.read_text().splitlines()
        if (words := line.split(" "))[0] == "e" and int(words[3]) in pids
        if int(words[4]) >= since_ms
    ]
    return len(unfinished(app, ended))


def kills(here: Place, seconds: float, tasks: int = 1000) -> Outcome:
    """Kill a worker with all its processes every 2 s; two take turns, so that work goes on."""
    with here.fleet(count=2, slots=2) as fleet:
        ids = send(here.app, tasks, 0.1)
        ran = ended = count = 0
        began_s = time.monotonic()
        while (count + 1) * 2.0 <= seconds:
            count += 1
            time.sleep(max(0.0, began_s + count * 2.0 - time.monotonic()))
            victim = fleet.workers[count % 2]
            pids = set(victim.executors())
            struck_ms = time.time() * 1000
            victim.kill()
            # Executors die with their template, which dies with the hub: a moment later.
            until(lambda pids=pids: not any(map(alive, pids)), 5)
            ran += running(fleet.runs_path, pids)
            ended += unsettled(here.app, fleet.runs_path, pids, struck_ms - 500)
            fleet.replace(victim)
        lost = lost_of(here.app, ids)
        runs = Runs(fleet.runs_path)
    twice = sum(n - 1 for n in runs.started.values())
    told = f"{count} kills, {tasks} tasks, {len(lost)} lost, {twice} twice; at the kills {ran} ran "
    told += f"and {ended} had ended with no result stored yet"
    failures = [f"{len(lost)} lost"] if lost else []
    if twice > ran + ended:
        failures.append(f"{twice} ran twice, {ran + ended} were in hand")
    return Outcome("kills", told, failures)


def alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


class Accepting:
    """Notes when a port takes connections again."""

    def __init__(self, port: int) -> None:
        self.at_s = 0.0
        self._port = port
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Accepting":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()

    def _look(self) -> None:
        while not self.at_s:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self._port), 5).close()
                self.at_s = time.monotonic()
            time.sleep(POLL_S)


class Consuming:
    """Notes when a worker has said once more that it consumes."""

    def __init__(self, worker: Worker) -> None:
        self.at_s = 0.0
        self._worker = worker
        self._before = self._count()
        self._thread = threading.Thread(target=self._look)

    def _count(self) -> int:
        return self._worker.log().count("consuming queues=") - self._worker.log().count(
            "not consuming queues="
        )

    def __enter__(self) -> "Consuming":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()

    def _look(self) -> None:
        end_s = time.monotonic() + 180
        while not self.at_s and time.monotonic() < end_s:
            if self._count() > self._before:
                self.at_s = time.monotonic()
            time.sleep(POLL_S)


def comeback(here: Place, rounds: int = 10) -> Outcome:
    """Kill the broker under work and start it again."""
    node = here.node
    if node is None:
        return Outcome("comeback", "a file has no broker to kill")
    waits_s: list[float] = []
    ids: list[str] = []
    with here.fleet(count=1, slots=2) as fleet:
        worker = fleet.workers[0]
        files = worker.descriptors()
        for _ in range(rounds):
            ids += send(here.app, 100, 0.02)
            time.sleep(random.uniform(0.1, 1.0))
            with Consuming(worker) as consuming:
                node.kill()
                with Accepting(node.port) as accepting:
                    node.start()
            if not consuming.at_s:
                return Outcome("comeback", "", ["a worker did not come back within 180 s"])
            waits_s.append(max(0.0, consuming.at_s - accepting.at_s))
        lost = lost_of(here.app, ids)
        files = worker.descriptors() - files
    told = f"{rounds} rounds, {len(ids)} tasks, {len(lost)} lost, back after {spread(waits_s)} s, "
    told += f"load {os.getloadavg()[0]:.1f}, files {files:+d}"
    failures = [f"{len(lost)} lost"] if lost else []
    if max(waits_s) > COMEBACK_S:
        failures.append(f"back after {max(waits_s):.2f} s")
    return Outcome("comeback", told, failures)


def replace(here: Place, rounds: int = 30) -> Outcome:
    """Kill the only executor of a worker that has more to do."""
    struck: list[tuple[int, float]] = []
    with here.fleet(count=1, slots=1) as fleet:
        worker = fleet.workers[0]
        files = worker.descriptors()
        ids = send(here.app, rounds * 4, 0.2)
        for _ in range(rounds):
            until(lambda: bool(started_after(fleet.runs_path, struck[-1] if struck else None)), 60)
            time.sleep(random.uniform(0.05, 0.3))
            pids = worker.executors()
            if not pids:
                continue
            struck.append((pids[0], time.time() * 1000))
            os.kill(pids[0], signal.SIGKILL)
        lost = lost_of(here.app, ids)
        waits_s = [
            (first - at_ms) / 1000
            for pid, at_ms in struck
            if (first := started_after(fleet.runs_path, (pid, at_ms)))
        ]
        files = worker.descriptors() - files
    late = sum(1 for wait_s in waits_s if wait_s > REPLACED_S)
    told = f"{len(waits_s)} kills, {len(lost)} lost, next task after {spread(waits_s)} s, {late} "
    told += f"later than {REPLACED_S:g} s, load {os.getloadavg()[0]:.1f}, "
    told += f"files {files:+d}"
    failures = [f"{len(lost)} lost"] if lost else []
    if late > len(waits_s) // 2:
        failures.append(f"{late} of {len(waits_s)} later than {REPLACED_S:g} s")
    return Outcome("replace", told, failures)


def started_after(runs_path: Path, strike: tuple[int, float] | None) -> float:
    """Return when a process other than the one struck began a task first, in epoch ms; 0: none."""
    lines = runs_path.read_text().splitlines() if runs_path.exists() else []
    pid, at_ms = strike or (0, 0.0)
    found = [line.split(" ") for line in lines if line.startswith("s")]
    return min((int(w[4]) for w in found if int(w[3]) != pid and int(w[4]) >= at_ms), default=0)


def spread(values_s: list[float]) -> str:
    """Return median and maximum."""
    ordered = sorted(values_s)
    return f"{ordered[len(ordered) // 2]:.3f} (at most {ordered[-1]:.3f})" if ordered else "-"


def main() -> int:
    """Run; returns 1 when something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", default=["kills", "comeback", "replace"])
    parser.add_argument("--places", default="sqlite,3.10,4")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long `kills` lasts")
    parser.add_argument("--rounds", type=int, default=10, help="of `comeback`")
    arguments = parser.parse_args()
    measure: dict[str, Callable[[Place], Outcome]] = {
        "kills": lambda here: kills(here, arguments.seconds),
        "comeback": lambda here: comeback(here, arguments.rounds),
        "replace": replace,
    }
    if unknown := set(arguments.what) - set(measure):
        parser.error(f"no measurement {', '.join(sorted(unknown))}; known are {', '.join(measure)}")
    broken = False
    for name in arguments.places.split(","):
        for what in arguments.what:
            try:
                with contextlib.ExitStack() as stack, place(name) as here:
                    end_in_order(stack)
                    found = measure[what](here)
            except ServerMissing as missing:
                print(f"{name}: {missing}")
                break
            print(f"{name:7} {found.what:9} {found.told}", flush=True)
            for failure in found.failures:
                broken = True
                print(f"{name:7} {found.what:9} BROKEN: {failure}", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
