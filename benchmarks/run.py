"""Measures taskq on private servers; prints a table, and JSON with `--json FILE`.

    python benchmarks/run.py [--quick] [--backend sqlite|rabbitmq|all] [--json FILE]

A run whose tasks did not all execute is void and ends the program with exit code 1.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
sys.path.insert(0, str(ROOT / "benchmarks"))

from tree import cpu_s, pids_below, pss_mb  # noqa: E402

Row = dict[str, Any]


class Void(Exception):
    """A measurement whose tasks did not all execute."""


@contextmanager
def servers(backend: str, directory: Path) -> Iterator[dict[str, str]]:
    """Yield the environment of a backend; its servers live as long as the block."""
    if backend == "sqlite":
        url = f"sqlite:///{directory}/bench.db"
        yield {"TASKQ_BROKER": url, "TASKQ_RESULTS": url}
        return
    from servers import RabbitServer, RedisServer

    rabbit, redis = RabbitServer(directory / "rabbit"), RedisServer(directory / "redis")
    rabbit.start()
    redis.start()
    try:
        yield {"TASKQ_BROKER": rabbit.url, "TASKQ_RESULTS": redis.url}
    finally:
        rabbit.destroy()
        redis.destroy()


@contextmanager
def worker(env: dict[str, str], *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker while the block lasts."""
    process = subprocess.Popen(
        [sys.executable, "-m", "taskq", "worker", "-A", "bench_app:app", *options],
        env={**os.environ, **env, "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"},
        cwd=ROOT / "benchmarks",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Poll every 2 ms.

    Raises:
        Void: If the condition did not come true in time.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise Void(f"{what} took longer than {timeout_s} s")
        time.sleep(0.002)


def fresh_app(env: dict[str, str]) -> Any:
    """Return the bench app connected to this backend."""
    os.environ.update(env)
    os.environ.pop("TASKQ_RESULTS", None) if not env.get("TASKQ_RESULTS") else None
    import importlib

    import bench_app

    bench_app.app.close()
    return importlib.reload(bench_app).app


def ended(app: Any) -> int:
    """Return how many tasks the one worker has settled; -1 while it does not answer."""
    answers = app.broker.ask({"command": "stats"}, 0.3)
    if not answers or answers[0].get("unsettled"):
        return -1
    return int(answers[0]["endings"].get("SUCCESS", 0))


def drain(env: dict[str, str], count: int, results: bool) -> Row:
    """Pre-fill a queue with no-ops, run them, and charge the whole worker tree."""
    env = dict(env) if results else {**env, "TASKQ_RESULTS": "off"}
    app = fresh_app(env)
    from bench_app import noop

    if "default" in app.broker.known_queues() or app.broker.depths(["default"])["default"]:
        app.broker.purge("default")
    start = time.perf_counter()
    app.send_many([noop.s() for _ in range(count)])
    filled_s = time.perf_counter() - start
    with worker(env, "-c", "1", "-l", "warning") as process:
        begun = time.perf_counter()
        depth = lambda: app.broker.depths(["default"])["default"].ready  # noqa: E731
        wait_until(lambda: depth() < count, 30, "the first task")
        first = time.perf_counter()
        pids = pids_below(process.pid)
        base_s, left = cpu_s(pids), depth()
        wait_until(lambda: depth() == 0, 120, "the drain")
        done_ready = time.perf_counter()
        wait_until(lambda: ended(app) >= count, 60, "settling")
        pids = pids_below(process.pid)
        spent_s, memory = cpu_s(pids) - base_s, pss_mb(pids)
        if ended(app) != count:
            raise Void(f"{ended(app)} of {count} tasks ended")
    return {
        "case": f"drain no-ops, results {'on' if results else 'off'}",
        "tasks/s": round(left / (done_ready - first)),
        "CPU us/task": round(spent_s / max(1, left) * 1e6, 1),
        "PSS MB": round(memory, 1),
        "send_many/s": round(count / filled_s),
        "first task s": round(first - begun, 2),
    }


def round_trip(env: dict[str, str], count: int) -> Row:
    """Measure delay() to get() on an idle worker, and what idling costs."""
    app = fresh_app(env)
    from bench_app import echo

    with worker(env, "-c", "1", "-l", "warning") as process:
        for value in range(20):
            echo.delay(value).get(timeout=30)
        waits = []
        for value in range(count):
            start = time.perf_counter()
            if echo.delay(value).get(timeout=30) != value:
                raise Void("a wrong result")
            waits.append((time.perf_counter() - start) * 1000)
            time.sleep(0.002)
        sends = []
        for value in range(count):
            start = time.perf_counter()
            echo.delay(value)
            sends.append((time.perf_counter() - start) * 1000)
        time.sleep(1)
        pids = pids_below(process.pid)
        before = cpu_s(pids)
        time.sleep(10)
        idle = (cpu_s(pids) - before) / 10
    waits.sort()
    app.close()
    return {
        "case": "round trip, idle worker",
        "p50 ms": round(statistics.median(waits), 2),
        "p99 ms": round(waits[int(len(waits) * 0.99)], 2),
        "delay() p50 ms": round(statistics.median(sends), 2),
        "idle CPU %": round(idle * 100, 2),
    }


def no_results(env: dict[str, str], count: int) -> Row:
    """Drain with results off."""
    return drain(env, count, False)


def with_results(env: dict[str, str], count: int) -> Row:
    """Drain with results on."""
    return drain(env, count, True)


def idle_round_trip(env: dict[str, str], _count: int) -> Row:
    """Round trips on an idle worker."""
    return round_trip(env, 300)


def main() -> int:
    """Run the cases and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=["sqlite", "rabbitmq", "all"], default="all")
    parser.add_argument("--quick", action="store_true", help="fewer tasks, one round")
    parser.add_argument("--json", metavar="FILE", help="write the rows there as well")
    options = parser.parse_args()
    backends = ["sqlite", "rabbitmq"] if options.backend == "all" else [options.backend]
    rounds = 1 if options.quick else 3
    rows: list[Row] = []
    for backend in backends:
        count = (5_000 if options.quick else 20_000) * (1 if backend == "sqlite" else 4)
        with tempfile.TemporaryDirectory() as name, servers(backend, Path(name)) as env:
            for number in range(rounds):
                for case in (no_results, with_results, idle_round_trip):
                    try:
                        row = {"backend": backend, "round": number + 1, **case(env, count)}
                    except Void as reason:
                        print(f"void: {reason}", file=sys.stderr)
                        return 1
                    rows.append(row)
                    print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
