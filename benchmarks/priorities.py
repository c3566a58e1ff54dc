"""Measures how far an urgent task is overtaken: under a flood of short unimportant ones.

    python benchmarks/priorities.py [--backend sqlite|rabbitmq|all] [-c N] [--urgent N]

Prints, for each backend, how long tasks of priority 9 took from the send to their start, and how
many tasks of priority 0 started meanwhile. Every task must have run, or the exit code is 1.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from stage import Servers  # noqa: E402

from taskq import TaskQ  # noqa: E402

app = TaskQ("priorities")
FLOOD = 20_000


@app.task(name="low", ignore_result=True)
def low() -> None:
    """Work for a millisecond and leave a byte that can be counted."""
    end = time.perf_counter() + 0.001
    while time.perf_counter() < end:
        pass
    with open(os.environ["PRIORITY_LOG"], "ab", buffering=0) as stream:
        stream.write(b".")


@app.task(name="urgent")
def urgent() -> list[float]:
    """Return when it started and how many unimportant tasks had."""
    return [time.time(), os.path.getsize(os.environ["PRIORITY_LOG"])]


@contextmanager
def servers(backend: str, directory: Path) -> Iterator[dict[str, str]]:
    """Yield the environment of a backend; its servers live as long as the block."""
    if backend == "sqlite":
        url = f"sqlite:///{directory}/bench.db"
        yield {"TASKQ_BROKER": url, "TASKQ_RESULTS": url}
        return
    with Servers(directory) as started:
        yield {"TASKQ_BROKER": started.url("rabbitmq"), "TASKQ_RESULTS": started.url("redis")}


def measure(env: dict[str, str], log: Path, slots: int, count: int) -> list[tuple[float, int]]:
    """Return (seconds from send to start, unimportant starts meanwhile) of each urgent task."""
    found = []
    with TaskQ("client", broker=env["TASKQ_BROKER"], results=env["TASKQ_RESULTS"]) as client:
        client.send_many([low.s() for _ in range(FLOOD)])
        words = ["worker", "-A", "priorities:app", "-c", str(slots), "-l", "warning"]
        worker = subprocess.Popen(
            [sys.executable, "-m", "taskq", *words],
            cwd=ROOT / "benchmarks",
            env={**os.environ, **env, "PYTHONPATH": str(ROOT), "PRIORITY_LOG": str(log)},
        )
        try:
            while log.stat().st_size < 500:
                time.sleep(0.01)
            for _ in range(count):
                before, sent_s = log.stat().st_size, time.time()
                started_s, ran = client.send_task("urgent", priority=9).get(timeout=120)
                found.append((started_s - sent_s, int(ran) - before))
                time.sleep(0.05)
        finally:
            worker.terminate()
            worker.wait(60)
    return found


def main() -> int:
    """Measure and print; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=("sqlite", "rabbitmq", "all"), default="all")
    parser.add_argument("-c", type=int, default=2, help="tasks at once")
    parser.add_argument("--urgent", type=int, default=60, help="how many urgent tasks")
    options = parser.parse_args()
    names = ("sqlite", "rabbitmq") if options.backend == "all" else (options.backend,)
    for name in names:
        with tempfile.TemporaryDirectory() as place, servers(name, Path(place)) as env:
            log = Path(place) / "log"
            log.touch()
            rows = measure(env, log, options.c, options.urgent)
        waits = sorted(wait_s for wait_s, _ in rows)
        starts = sorted(count for _, count in rows)
        middle = len(rows) // 2
        print(
            f"{name}: start p50 {waits[middle] * 1000:.0f} ms, max {waits[-1] * 1000:.0f} ms; "
            f"overtaken by p50 {starts[middle]}, max {starts[-1]} of {FLOOD}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
