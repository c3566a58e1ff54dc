"""Workers as users start them, for acceptance tests: processes, their logs, and what they ran."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskq import TaskQ
from taskq.brokers.base import Delivery, Verdict
from taskq.message import DEAD_PREFIX, Message
from taskq.result import AsyncResult

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
POOLS = ("process", "thread", "asyncio", "solo")


def until(condition: Callable[[], Any], what: str, timeout_s: float = 20.0) -> Any:
    """Return the first true value of `condition`; fail naming `what` after the deadline."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s:g} s"
        time.sleep(0.02)


@dataclass(frozen=True)
class Run:
    """One line of the executions' file."""

    id: str
    pid: int
    attempt: int
    at_s: float
    word: str


@dataclass(frozen=True)
class Letter:
    """A dead letter: its message, and its story by short name."""

    message: Message
    story: Mapping[str, Any]


class Worker:
    """A worker process and what it wrote."""

    def __init__(self, process: "subprocess.Popen[bytes]", output: Path) -> None:
        self.process = process
        self.pid = process.pid
        self.output = output

    def log(self) -> str:
        """Return everything it wrote so far."""
        return self.output.read_text(errors="replace")

    def until_log(self, text: str, count: int = 1, timeout_s: float = 90.0) -> None:
        """Wait until it wrote a text so many times."""
        deadline = time.monotonic() + timeout_s
        while self.log().count(text) < count:
            told = f"no {text!r} in:\n{self.log()}"
            assert self.process.poll() is None, told
            assert time.monotonic() < deadline, told
            time.sleep(0.02)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 30.0) -> int:
        """Wait for its end and return the exit code."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout_s:g} s:\n{self.log()}") from None

    def term(self, timeout_s: float = 30.0) -> int:
        """Stop it as a supervisor does and return the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def children(self) -> list[int]:
        """Return the pids of its executors."""
        found = []
        for template in _children_of(self.pid):
            found += _children_of(template)
        return found


def _children_of(pid: int) -> list[int]:
    done = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    own = [int(word) for word in done.stdout.split()]
    return [child for child in own if child > 0]


class Fleet:
    """Workers on one broker, a client of it, and the file in which runs are counted."""

    def __init__(self, directory: Path, broker: str, results: str) -> None:
        self.directory = directory
        self.broker = broker
        self.results = results
        self.runs_path = directory / "runs"
        self.app = TaskQ("client", broker=broker, results=results)
        self._workers: list[Worker] = []

    def start(
        self,
        *options: str,
        pool: str = "process",
        slots: int = 2,
        app: str = "work_app:app",
        env: Mapping[str, str] | None = None,
        ready: bool = True,
    ) -> Worker:
        """Start a worker.

        Args:
            *options: Further words of the command line.
            pool: `-P`.
            slots: `-c`.
            app: `-A`.
            env: Variables that replace the usual ones.
            ready: Whether to wait until it consumes.
        """
        output = self.directory / f"worker-{len(self._workers)}.log"
        words = ["worker", "-A", app, "-P", pool, "-c", str(slots), *options]
        with output.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "taskq", *words],
                cwd=self.directory,
                env={**self.environment(), **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        worker = Worker(process, output)
        self._workers.append(worker)
        if ready:
            worker.until_log("consuming queues=")
        return worker

    def environment(self) -> dict[str, str]:
        """Return the variables of a process that works on this broker."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("TASKQ_", "PYTEST_"))}
        return {
            **kept,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}",
            "PYTHONUNBUFFERED": "1",
            "TASKQ_BROKER": self.broker,
            "TASKQ_RESULTS": self.results,
            "WORK_LOG": str(self.runs_path),
        }

    def send(self, name: str, *args: Any, **options: Any) -> AsyncResult[Any]:
        """Send a task by name."""
        return self.app.send_task(name, args, **options)

    def send_many(self, name: str, count: int, *args: Any) -> list[AsyncResult[Any]]:
        """Send so many equal tasks."""
        with self.app.batch():
            return [self.send(name, *args) for _ in range(count)]

    def runs(self, task_id: str = "") -> list[Run]:
        """Return the runs so far, of all tasks or of one."""
        try:
            lines = self.runs_path.read_text().splitlines()
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            own_id, pid, attempt, at_s, *words = line.split(" ", 4)
            found.append(Run(own_id, int(pid), int(attempt), float(at_s), "".join(words)))
        return [run for run in found if not task_id or run.id == task_id]

    def until_runs(self, count: int, task_id: str = "", timeout_s: float = 20.0) -> list[Run]:
        """Wait until at least so many runs began."""
        until(
            lambda: len(self.runs(task_id)) >= count,
            f"run {count} (there were {len(self.runs(task_id))})",
            timeout_s,
        )
        return self.runs(task_id)

    def assert_each_once(self, handles: list[AsyncResult[Any]]) -> None:
        """Check that every task of these ran exactly once."""
        counts = Counter(run.id for run in self.runs())
        wrong = {h.id: counts[h.id] for h in handles if counts[h.id] != 1}
        assert not wrong, f"{len(wrong)} of {len(handles)} tasks ran another number than once"

    def settled(self, handles: list[AsyncResult[Any]], timeout_s: float = 40.0) -> list[Any]:
        """Wait for every task's value, and return them in order."""
        deadline = time.monotonic() + timeout_s
        return [handle.get(timeout=max(0.0, deadline - time.monotonic())) for handle in handles]

    def letters(self) -> list[Letter]:
        """Return the dead letters, oldest first."""
        found: list[Letter] = []

        def visit(delivery: Delivery) -> Verdict:
            headers = delivery.message.headers
            story = {
                name.removeprefix(DEAD_PREFIX): value
                for name, value in headers.items()
                if name.startswith(DEAD_PREFIX)
            }
            found.append(Letter(delivery.message, story))
            return "keep"

        self.app.broker.sweep_dead(visit)
        return found

    def until_letters(self, count: int, timeout_s: float = 20.0) -> list[Letter]:
        """Wait for so many dead letters and return them."""
        found: list[Letter] = []

        def enough() -> bool:
            # The look that found enough is the one returned: right after it, RabbitMQ counts the
            # letters that it gets back as in hand, and a second look would find none.
            found[:] = self.letters()
            return len(found) >= count

        until(enough, f"dead letter {count}", timeout_s)
        return found

    def ready(self, queue: str = "default") -> int:
        """Return how many messages wait in a queue."""
        depth = self.app.broker.depths([queue])[queue]
        return 0 if depth is None else depth.ready

    def close(self) -> None:
        """End every worker that still runs, and the client's connections."""
        for worker in self._workers:
            if worker.process.poll() is None:
                # A worker's executors die with it: the kernel tells them.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(worker.pid, signal.SIGKILL)
                worker.process.wait()
        self.app.close()
