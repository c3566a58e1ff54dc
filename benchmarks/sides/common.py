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
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BROKER = os.environ.get("BENCH_BROKER", "")
RESULTS = os.environ.get("BENCH_RESULTS", "")
"""Empty when a run keeps no results."""
COUNTS = Path(os.environ.get("BENCH_COUNTS", "."))
IO_S = 0.01
MINUTE_S = 60


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
_WAIT = struct.Struct("<d")


def note(wait_s: float) -> None:
    """Keep a wait that a task measured, in seconds, for the stage to read."""
    with (COUNTS / f"waits-{os.getpid()}").open("ab", buffering=0) as file:
        file.write(_WAIT.pack(wait_s))


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


@dataclass(frozen=True)
class Side:
    """How a system sends.

    Attributes:
        bulk: Sends a task of this name once per argument tuple, the fastest way there is.
        single: Sends one no-op and returns when the system says that it is sent.
        round_trip: Sends an echo of a number and returns its result.
        later: Sends a task of this name with these arguments after so many seconds; None where
            the system cannot.
        together: Sends so many no-ops from coroutines; None where the system cannot.
        spread: Sends so many no-ops, evenly to so many queues; None where it is not compared.
        wait: Waits for so many results at once, for ever; None where it is not compared.
    """

    bulk: Callable[[str, list[Any]], None]
    single: Callable[[int], object]
    round_trip: Callable[[int], object]
    later: Callable[[str, tuple[Any, ...], float], object] | None = None
    together: Callable[[int], None] | None = None
    spread: Callable[[int, int], None] | None = None
    wait: Callable[[int], None] | None = None


def _fill(side: Side, options: argparse.Namespace) -> dict[str, Any]:
    args = (payload(options.size),) if options.size else ()
    start = time.perf_counter()
    if options.number > 1 and side.spread is not None:
        side.spread(options.count, options.number)
    else:
        side.bulk(options.task, [args] * options.count)
    return {"per_s": round(options.count / (time.perf_counter() - start))}


def _single(side: Side, options: argparse.Namespace) -> dict[str, Any]:
    side.single(0)
    return percentiles(timed(options.count, side.single))


def _threads(side: Side, options: argparse.Namespace) -> dict[str, Any]:
    side.single(0)
    each = options.count // 8
    threads = [threading.Thread(target=timed, args=(each, side.single)) for _ in range(8)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"per_s": round(each * 8 / (time.perf_counter() - start))}


def _together(side: Side, options: argparse.Namespace) -> dict[str, Any]:
    if side.together is None:
        raise SystemExit("this side sends from no coroutines")
    side.single(0)
    start = time.perf_counter()
    side.together(options.count)
    return {"per_s": round(options.count / (time.perf_counter() - start))}


def _round_trip(side: Side, options: argparse.Namespace) -> dict[str, Any]:
    for number in range(20):
        side.round_trip(number)
    return percentiles(timed(options.count, side.round_trip, 0.002))


def _later(side: Side, options: argparse.Namespace) -> dict[str, Any]:
    """Send what is due at one moment, so far ahead that the slowest has sent all by then."""
    if side.later is None:
        raise SystemExit("this side sends nothing for later")
    due_s = time.time() + options.number
    for _ in range(options.count):
        side.later("waited", (due_s,), max(0.0, due_s - time.time()))
    return {"spare_s": round(due_s - time.time(), 2)}


def _mixed(side: Side, options: argparse.Namespace) -> dict[str, Any]:
    """Send one task of a minute, then short ones, 50 a second."""
    side.bulk("minute", [()])
    time.sleep(0.5)
    for _ in range(options.count):
        side.bulk("waited", [(time.time(),)])
        time.sleep(0.02)
    return {}


def _load(side: Side, options: argparse.Namespace) -> dict[str, Any]:
    """Send no-ops at a rate until somebody ends this program."""
    share = max(1, options.number // 20)
    while True:
        start = time.perf_counter()
        side.bulk("noop", [()] * share)
        time.sleep(max(0.0, share / options.number - (time.perf_counter() - start)))


def _wait(side: Side, options: argparse.Namespace) -> dict[str, Any]:
    if side.wait is None:
        raise SystemExit("waiting clients of this side are not compared")
    side.wait(options.count)
    return {}


COMMANDS: dict[str, Callable[[Side, argparse.Namespace], dict[str, Any]]] = {
    "fill": _fill,
    "single": _single,
    "threads": _threads,
    "together": _together,
    "round-trip": _round_trip,
    "later": _later,
    "mixed": _mixed,
    "load": _load,
    "wait": _wait,
}


def main(side: Side) -> None:
    """Run a side as a program and print what it measured as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=list(COMMANDS))
    parser.add_argument("--task", default="noop")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--size", type=int, default=0)
    parser.add_argument("--number", type=int, default=1)
    options = parser.parse_args()
    json.dump(COMMANDS[options.command](side, options), sys.stdout)
