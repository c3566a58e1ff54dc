"""Throughput, failures and run times by task and minute, from the lifecycle log in Kafka; an alert.

    python examples/streams/main.py --bootstrap localhost:9092 [--tasks N] [--window SECONDS]

Starts a worker, a bridge and the stream, sends tasks, prints the lines and the alerts, and ends.
With --tasks 0 it sends for ever, and prints each line as it closes, until Ctrl-C.
"""

import argparse
import contextlib
import itertools
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks import alert, app, charge, resize

from taskq import AsyncResult, TaskqError
from taskq.events.kafka.client import read_environment
from taskq.events.kafka.topics import Topics, create
from taskq.events.streams import LifecycleStream, line_key, window_lines

sys.path.append(str(Path(__file__).resolve().parents[1]))
from _worker import worker_beside

FAILURES_BEFORE_ALERT = 0.2
ENDED_BEFORE_ALERT = 20
WATCHED = ("streams.charge", "streams.resize")
TASKS = Path(__file__).with_name("tasks.py")
Row = dict[str, Any]


class Board:
    """The newest line of each task and window, and the alerts that were sent.

    Attributes:
        lines: By `line_key`.
        alerts: What came of each; once more after a crash, which the task's key sorts out.
    """

    def __init__(self, stream: LifecycleStream, total: int) -> None:
        self.lines: dict[str, Row] = {}
        self.alerts: list[AsyncResult[str]] = []
        self._stream = stream
        self._total = total

    def take(self, line: Row) -> None:
        """Show a line; the last one of all tasks ends the stream."""
        self.lines[line_key(line)] = line
        if not self._total:
            print(as_text(line), flush=True)
        elif self.sum("sent") >= self._total <= self.sum("succeeded") + self.sum("dead"):
            self._stream.stop()

    def sum(self, word: str) -> int:
        """Return how many of the tasks that are watched were, say, `succeeded`."""
        return sum(line[word] for line in self.lines.values() if line["task"] in WATCHED)

    def warn(self, line: Row) -> None:
        """Send the alert: a task as any other, from wherever the stream runs."""
        self.alerts.append(alert.delay(line_key(line), line["task"], line["failure_rate"]))


def is_bad(line: Row) -> bool:
    """Return whether a line is worth an alert."""
    ended = line["succeeded"] + line["failed"]
    return bool(ended >= ENDED_BEFORE_ALERT and line["failure_rate"] > FAILURES_BEFORE_ALERT)


def is_first(line: Row, state: Any) -> bool:
    """Return whether no line of this task and window passed here before."""
    name = f"alerted:{line['start_ms']}"
    if state.get(name):
        return False
    state.set(name, True)
    return True


def as_text(line: Row) -> str:
    """Return a line of the table."""
    at = time.strftime("%H:%M:%S", time.localtime(line["start_ms"] / 1000))
    rate = (line["succeeded"] + line["failed"]) / line["window_s"]
    times = [f"{1000 * (line[name] or 0):8.1f}" for name in ("p50_s", "p95_s", "p99_s")]
    return f"{at} {line['task']:16} {rate:8.1f} {line['failure_rate']:8.1%} {' '.join(times)}"


def send(total: int, ended: threading.Event) -> None:
    """Send tasks of both kinds in small bursts; for ever when total is 0."""
    numbers = itertools.count() if not total else range(total)
    for number in numbers:
        if ended.is_set():
            return
        (charge if number % 2 else resize).delay(number // 2)
        if number % 50 == 49:
            time.sleep(0.2)


@contextlib.contextmanager
def bridge_beside(bootstrap: str, topics: Topics) -> Iterator[None]:
    """Run `taskq bridge kafka` while the block lasts."""
    words = ["bridge", "kafka", "-A", str(TASKS.resolve()), "-l", "warning"]
    words += ["--bootstrap", bootstrap]
    words += ["--task-topic", topics.tasks, "--worker-topic", topics.workers]
    process = subprocess.Popen([sys.executable, "-m", "taskq", *words], start_new_session=True)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def watch(stream: LifecycleStream, board: Board, topic: str, window_s: float) -> None:
    """Say what is to be done with each event: this is the stream."""
    lines = window_lines(stream.frame, window_s)
    stream.write(lines, topic, line_key, cleanup="compact")
    lines.update(board.take)
    lines.filter(is_bad).filter(is_first, stateful=True).update(board.warn)


def run(options: argparse.Namespace, properties: dict[str, str]) -> tuple[Board, list[str]]:
    """Send, carry and count until all is counted; returns the board and what the alerts say."""
    prefix = options.prefix or f"taskq-example-{uuid.uuid4().hex[:8]}"
    topics = Topics(f"{prefix}.task-events", f"{prefix}.worker-events")
    create(properties, topics, options.partitions, -1)
    bootstrap = properties["bootstrap.servers"]
    stream = LifecycleStream(properties, f"{prefix}-minutes", topics.tasks, member="example")
    board = Board(stream, options.tasks)
    watch(stream, board, f"{prefix}.minutes", options.window)
    ended = threading.Event()
    sender = threading.Thread(target=send, args=(options.tasks, ended))
    with worker_beside(str(TASKS), "-c", "2", "-l", "error"), bridge_beside(bootstrap, topics), app:
        sender.start()
        try:
            stream.run(idle_s=options.patience if options.tasks else 0)
        finally:
            ended.set()
            sender.join()
        return board, [result.get(timeout=60) for result in board.alerts]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bootstrap", metavar="HOST:PORT", help="or TASKQ_KAFKA_BOOTSTRAP_SERVERS")
    parser.add_argument("--tasks", type=int, default=600, metavar="N", help="0: until Ctrl-C")
    parser.add_argument("--window", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--partitions", type=int, default=4, metavar="N", help="of the log")
    parser.add_argument("--prefix", metavar="NAME", help="of the topics; a new one for each run")
    parser.add_argument("--patience", type=float, default=60.0, metavar="SECONDS", help="idle")
    return parser.parse_args()


def main() -> int:
    """Run it and return the exit code: 0, or 1 when a task was not counted exactly once."""
    options = parse_arguments()
    properties = read_environment(os.environ)
    if options.bootstrap:
        properties["bootstrap.servers"] = options.bootstrap
    board, warnings = run(options, properties)
    print("window   task             tasks/s  failures   p50 ms   p95 ms   p99 ms")
    for line in sorted(board.lines.values(), key=line_key):
        print(as_text(line))
    for text in warnings:
        print(f"alert: {text}")
    if not options.tasks:
        return 0
    failed = len([n for n in range(options.tasks) if n % 2 and n // 2 % 3 == 0])
    found = [board.sum(word) for word in ("sent", "started", "succeeded", "failed")]
    print(f"{found[0]} sent, {found[1]} started, {found[2]} succeeded, {found[3]} failed")
    right = found == [options.tasks, options.tasks, options.tasks - failed, failed]
    return 0 if right and warnings else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except TaskqError as failure:
        sys.exit(f"{type(failure).__name__}: {failure}")
