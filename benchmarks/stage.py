"""One run of one system: a fresh broker namespace, its worker, its senders, and what they cost."""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(HERE), str(HERE / "sides")]

from servers import RabbitServer, RedisServer  # noqa: E402
from systems import System  # noqa: E402
from tree import cpu_s, pids_below, pss_mb  # noqa: E402

_POLL_S = 0.005
_numbers = itertools.count(1)


class Void(Exception):
    """A measurement whose tasks did not all execute."""


class Servers:
    """The private servers of a whole comparison."""

    def __init__(self, directory: Path) -> None:
        self.rabbit = RabbitServer(directory / "rabbit")
        self.redis = RedisServer(directory / "redis", databases=4096)
        self.directory = directory

    def __enter__(self) -> "Servers":
        self.rabbit.start()
        self.redis.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.rabbit.destroy()
        self.redis.destroy()

    def url(self, kind: str) -> str:
        """Return the URL of something empty: a vhost, a database, a file."""
        if kind == "rabbitmq":
            return self.rabbit.add_vhost()
        if kind == "redis":
            number = next(_numbers)
            self.redis.ctl("FLUSHDB", url=f"redis://127.0.0.1:{self.redis.port}/{number}")
            return f"redis://127.0.0.1:{self.redis.port}/{number}"
        return f"sqlite:///{self.directory}/{next(_numbers)}.db"


class Stage:
    """A system in one run.

    Attributes:
        system: Which.
        results: Whether it keeps results.
    """

    def __init__(
        self,
        system: System,
        servers: Servers,
        peers: Path,
        results: bool,
        env: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.system = system
        self.results = results
        self._python = sys.executable if system.own else str(peers / "bin/python")
        self._counts = Path(tempfile.mkdtemp(dir=servers.directory))
        broker = servers.url(system.broker)
        same = system.results == system.broker != "redis"
        kept = broker if same else servers.url(system.results)
        if system.broker == system.results == "redis":
            kept = broker
        self._env = {
            **{name: text for name, text in os.environ.items() if not name.startswith("TASKQ_")},
            **system.env,
            **env,
            "BENCH_BROKER": broker,
            "BENCH_RESULTS": kept if results else "",
            "BENCH_COUNTS": str(self._counts),
            "PYTHONPATH": f"{HERE / 'sides'}:{ROOT}" if system.own else str(HERE / "sides"),
            "PYTHONDONTWRITEBYTECODE": "",
        }

    def send(self, command: str, task: str = "noop", count: int = 1, size: int = 0) -> Any:
        """Run the side as a program and return what it measured."""
        argv = [self._python, str(HERE / "sides" / self.system.side), command, "--task", task]
        argv += ["--count", str(count), "--size", str(size)]
        done = subprocess.run(
            argv, env=self._env, cwd=self._counts, capture_output=True, text=True, timeout=600
        )
        if done.returncode:
            raise Void(f"{self.system.name}: {command} failed: {done.stderr[-600:]}")
        return json.loads(done.stdout)

    def ran(self) -> int:
        """Return how many task runs were counted."""
        total = 0
        for path in self._counts.iterdir():
            data = path.read_bytes()
            if path.name.replace("-", "").isdigit() and len(data) == 8:
                total += int.from_bytes(data, "little")
        return total

    @contextmanager
    def worker(
        self, processes: int = 1, at_once: int = 1, coroutines: bool = False
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run the system's worker while the block lasts."""
        make = self.system.coroutines if coroutines else self.system.worker
        if make is None:
            raise Void(f"{self.system.name} has no coroutines")
        log = (self._counts / "worker.log").open("wb")
        process = subprocess.Popen(
            [self._python, *make(processes, at_once)],
            env=self._env,
            cwd=self._counts,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            self._end(process)
            log.close()

    def _end(self, process: "subprocess.Popen[bytes]") -> None:
        below = pids_below(process.pid)
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pid in below[1:]:
            # A manager that was killed leaves its children behind.
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = 300) -> None:
        """Poll until it is true.

        Raises:
            Void: If that takes longer than `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                log = (self._counts / "worker.log").read_text()[-600:]
                raise Void(f"{self.system.name}: {what}: {self.ran()} runs in {timeout_s} s\n{log}")
            time.sleep(_POLL_S)

    def drain(
        self, runs: int, processes: int = 1, at_once: int = 1, coroutines: bool = False
    ) -> Any:
        """Start the worker on a filled queue, and charge its whole tree until all is settled.

        Start-up is excluded: the account begins when the first runs are seen.

        Args:
            runs: How many runs there will be; more or fewer make the measurement void.
            processes: How many executor processes.
            at_once: How many tasks at once in each.
            coroutines: Whether the tasks are coroutines.
        """
        begun = time.perf_counter()
        with self.worker(processes, at_once, coroutines) as process:
            self.until(lambda: self.ran() > 0, "the first task", 60)
            first = time.perf_counter()
            base, before_s = self.ran(), cpu_s(pids_below(process.pid))
            self.until(lambda: self.ran() >= runs, "all tasks")
            last = time.perf_counter()
            spent_s = self._settled(process.pid)
            memory = pss_mb(pids_below(process.pid))
            if self.ran() != runs:
                raise Void(f"{self.system.name}: {self.ran()} runs instead of {runs}")
        left = max(1, runs - base)
        return {
            "per_s": round(left / max(1e-6, last - first)),
            "cpu_us": round((spent_s - before_s) / left * 1e6, 1),
            "memory_mb": round(memory, 1),
            "first_s": round(first - begun, 2),
        }

    def _settled(self, pid: int) -> float:
        """Return the tree's CPU seconds once it rests: acknowledging goes on after the last run."""
        last = cpu_s(pids_below(pid))
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            time.sleep(0.3)
            now = cpu_s(pids_below(pid))
            if now - last <= 0.02:
                return last
            last = now
        return last
