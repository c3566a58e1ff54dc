"""The workers of a torture: processes that are killed, stopped and replaced."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from taskq.errors import WorkerLost
from taskq.torture.tasks import RUNS_VARIABLE

_READY_S: Final = 60.0
_STOP_S: Final = 60.0
_POLL_S: Final = 0.05
_APP: Final = "taskq.torture.tasks:app"


class Worker:
    """One worker process.

    Attributes:
        pid: Process id of its hub.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", output: Path) -> None:
        self.pid = process.pid
        self._process = process
        self._output = output

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def ready(self) -> bool:
        """Whether it has begun to consume."""
        return "consuming queues=" in self.log()

    def log(self) -> str:
        """Return what it wrote."""
        return self._output.read_text(errors="replace")

    def signal(self, number: int) -> None:
        """Send a signal to the hub; nothing happens when it has ended."""
        if self.running:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it with all its processes at once, as when a machine is lost."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> int:
        """Stop it in order and return its exit code.

        Raises:
            WorkerLost: If it does not stop.
        """
        self.signal(signal.SIGTERM)
        try:
            return self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise WorkerLost(f"a worker did not stop within {_STOP_S:g} s") from None

    def executors(self) -> list[int]:
        """Return the process ids of its executors; empty where /proc does not tell."""
        return [pid for template in _children(self.pid) for pid in _children(template)]

    def memory_mb(self) -> float:
        """Return the resident memory of the hub in MB; 0 where /proc does not tell."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
        return 0.0

    def descriptors(self) -> int:
        """Return how many files the hub has open; 0 where /proc does not tell."""
        with contextlib.suppress(OSError):
            return len(os.listdir(f"/proc/{self.pid}/fd"))
        return 0


def _children(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += [int(word) for word in (thread / "children").read_text().split()]
    return found


class Fleet:
    """Workers on one broker.

    Attributes:
        workers: Those that are to run.
        runs_path: The file of runs.
        slots: Tasks that one worker runs at once.
    """

    def __init__(
        self, directory: Path, settings: Mapping[str, str], count: int = 2, slots: int = 2
    ) -> None:
        """Prepare.

        Args:
            directory: Where logs and the file of runs go.
            settings: The workers' `TASKQ_*` variables.
            count: How many workers.
            slots: See above.
        """
        self.workers: list[Worker] = []
        self.runs_path = directory / "runs"
        self.slots = slots
        self._directory = directory
        self._settings = settings
        self._count = count
        self._started = 0

    def fill(self, wait: bool = True) -> None:
        """Start what is missing.

        Raises:
            WorkerLost: If a worker does not come up.
        """
        self.workers = [worker for worker in self.workers if worker.running]
        while len(self.workers) < self._count:
            self.workers.append(self._start())
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until every worker consumes.

        Raises:
            WorkerLost: If one does not.
        """
        deadline_s = time.monotonic() + _READY_S
        for worker in self.workers:
            while not worker.ready:
                if not worker.running or time.monotonic() > deadline_s:
                    raise WorkerLost(f"a worker did not come up:\n{worker.log()[-2000:]}")
                time.sleep(_POLL_S)

    def _start(self) -> Worker:
        output = self._directory / f"worker-{self._started}.log"
        self._started += 1
        kept = {k: v for k, v in os.environ.items() if not k.startswith("TASKQ_")}
        paths = [str(Path(__file__).parents[2]), *filter(None, [kept.get("PYTHONPATH")])]
        environment = {
            **kept,
            **self._settings,
            "PYTHONPATH": os.pathsep.join(paths),
            RUNS_VARIABLE: str(self.runs_path),
        }
        words = ["worker", "-A", _APP, "-c", str(self.slots), "--grace", "10"]
        with output.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "taskq", *words],
                env=environment,
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Worker(process, output)

    def replace(self, worker: Worker) -> None:
        """Put a new worker in the place of one that has ended, without waiting for it."""
        self.workers = [self._start() if one is worker else one for one in self.workers]

    def close(self) -> None:
        """End all workers at once."""
        for worker in self.workers:
            worker.signal(signal.SIGCONT)
            worker.kill()
        self.workers = []
