"""What every side of the comparison shares: where servers are, what tasks do, how runs are counted.

A side is a file that runs one system the way its own documentation recommends for speed. As a
module it defines the app and the tasks, which that system's worker imports; as a program it sends.
Tasks count their runs in a file per process, by a store into mapped memory (0.2 us, the same for
all), so that no system is asked how much it believes to have done.
"""

import argparse
import json
import mmap
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

BROKER = os.environ.get("BENCH_BROKER", "")
RESULTS = os.environ.get("BENCH_RESULTS", "")
"""Empty when a run keeps no results."""
COUNTS = Path(os.environ.get("BENCH_COUNTS", "."))
IO_S = 0.01


class Counter:
    """Counts runs of this process, per thread; made anew after a fork."""

    def __init__(self) -> None:
        self._pid = 0

    def add(self) -> None:
        """Count one run."""
        try:
            # A place per thread: no lock, and no two threads on one number.
            self._place.view[0] += 1
        except AttributeError:
            self._open()
            self._place.view[0] += 1

    def _open(self) -> None:
        if self._pid != os.getpid():
            self._pid, self._place = os.getpid(), threading.local()
            os.register_at_fork(after_in_child=self._forget)
        path = COUNTS / f"{os.getpid()}-{threading.get_native_id()}"
        with path.open("w+b") as file:
            file.truncate(8)
            self._place.view = memoryview(mmap.mmap(file.fileno(), 8)).cast("q")

    def _forget(self) -> None:
        self.__dict__.pop("_place", None)


counter = Counter()


class Failed(Exception):
    """What a task raises on its first attempt."""


def percentiles(waits_s: Sequence[float]) -> dict[str, float]:
    """Return p50 and p99 in milliseconds."""
    ordered = sorted(wait_s * 1000 for wait_s in waits_s)
    return {
        "p50_ms": round(statistics.median(ordered), 2),
        "p99_ms": round(ordered[int(len(ordered) * 0.99)], 2),
    }


def timed(times: int, call: Callable[[int], object], pause_s: float = 0.0) -> list[float]:
    """Call so many times and return how long each took, in seconds."""
    spent = []
    for number in range(times):
        start = time.perf_counter()
        call(number)
        spent.append(time.perf_counter() - start)
        time.sleep(pause_s)
    return spent


def payload(size_bytes: int) -> str:
    """Return text of a size that does not compress away in a codec."""
    return os.urandom(size_bytes // 2 + 1).hex()[:size_bytes]


def main(
    bulk: Callable[[str, list[Any]], None],
    single: Callable[[int], object],
    round_trip: Callable[[int], object],
) -> None:
    """Run a side as a program and print what it measured as JSON.

    Args:
        bulk: Sends a task of this name once per argument tuple, the fastest way there is.
        single: Sends one no-op and returns when the system says that it is sent.
        round_trip: Sends an echo of a number and returns its result.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["fill", "single", "threads", "round-trip"])
    parser.add_argument("--task", default="noop")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--size", type=int, default=0)
    options = parser.parse_args()
    answer: dict[str, Any] = {}
    if options.command == "fill":
        args = (payload(options.size),) if options.size else ()
        start = time.perf_counter()
        bulk(options.task, [args] * options.count)
        answer["per_s"] = round(options.count / (time.perf_counter() - start))
    elif options.command == "single":
        single(0)
        answer = percentiles(timed(options.count, single))
    elif options.command == "threads":
        single(0)
        each = options.count // 8
        threads = [threading.Thread(target=timed, args=(each, single)) for _ in range(8)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        answer["per_s"] = round(each * 8 / (time.perf_counter() - start))
    else:
        for number in range(20):
            round_trip(number)
        answer = percentiles(timed(options.count, round_trip, 0.002))
    json.dump(answer, sys.stdout)
