"""One run of one system: a fresh broker namespace, its worker, its senders, and what they cost."""

import itertools
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
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

    def spent_s(self) -> float:
        """Return the CPU seconds of the servers so far."""
        roots = [pid for pid in (self.rabbit.pid, self.redis.pid) if pid is not None]
        return sum(cpu_s(pids_below(root)) for root in roots)

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
        broker: URL of its broker.
        usual_per_s: What it runs in a second when there is nothing else to do; 0 when unknown.
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
        self._servers = servers
        self.usual_per_s = 0
        self._python = sys.executable if system.own else str(peers / "bin/python")
        self._counts = Path(tempfile.mkdtemp(dir=servers.directory))
        self.broker = broker = servers.url(system.broker)
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

    def send(
        self, command: str, task: str = "noop", count: int = 1, size: int = 0, number: int = 1
    ) -> Any:
        """Run the side as a program and return what it measured.

        Args:
            command: One of `common.COMMANDS`.
            task: What is sent.
            count: How many.
            size: Of the argument, in bytes; 0 for none.
            number: What else the command needs: a rate, a number of queues, seconds.
        """
        argv = [*self._side(command), "--task", task, "--number", str(number)]
        argv += ["--count", str(count), "--size", str(size)]
        try:
            done = subprocess.run(
                argv, env=self._env, cwd=self._counts, capture_output=True, text=True, timeout=600
            )
        except subprocess.TimeoutExpired:
            raise Void(f"{self.system.name}: {command} took more than 10 minutes") from None
        if done.returncode:
            raise Void(f"{self.system.name}: {command} failed: {done.stderr[-600:]}")
        return json.loads(done.stdout)

    def _side(self, command: str) -> list[str]:
        return [self._python, str(HERE / "sides" / self.system.side), command]

    @contextmanager
    def sending(
        self, command: str, count: int = 1, number: int = 1
    ) -> Iterator["subprocess.Popen[bytes]"]:
        """Run a command of the side that does not end by itself while the block lasts."""
        process = subprocess.Popen(
            [*self._side(command), "--count", str(count), "--number", str(number)],
            env=self._env,
            cwd=self._counts,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def waits_s(self) -> list[float]:
        """Return the waits that tasks measured, in seconds, shortest first."""
        waits: list[float] = []
        for path in self._counts.glob("waits-*"):
            data = path.read_bytes()
            waits += [wait for (wait,) in struct.iter_unpack("<d", data[: len(data) // 8 * 8])]
        return sorted(waits)

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
        self,
        processes: int = 1,
        at_once: int = 1,
        coroutines: bool = False,
        more: Sequence[str] = (),
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run the system's worker while the block lasts.

        Args:
            processes: How many executor processes.
            at_once: How many tasks at once in each.
            coroutines: Whether the tasks are coroutines.
            more: Further options of its command.
        """
        make = self.system.coroutines if coroutines else self.system.worker
        if make is None:
            raise Void(f"{self.system.name} has no coroutines")
        log = (self._counts / "worker.log").open("wb")
        process = subprocess.Popen(
            [self._python, *make(processes, at_once), *more],
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
        self,
        runs: int,
        processes: int = 1,
        at_once: int = 1,
        coroutines: bool = False,
        *,
        hubs: int = 1,
        more: Sequence[str] = (),
        of: int = 0,
    ) -> Any:
        """Start workers on a filled queue, and charge their whole trees until all is settled.

        Start-up is excluded: the account begins when the first runs are seen. `servers_us` is what
        RabbitMQ and Redis spent on each run.

        Args:
            runs: How many runs are charged; more or fewer in all make the measurement void.
            processes: How many executor processes.
            at_once: How many tasks at once in each.
            coroutines: Whether the tasks are coroutines.
            hubs: How many workers.
            more: Further options of the worker's command.
            of: How many runs there would be; the rest is left in the queue, uncharged.
        """
        begun = time.perf_counter()
        with ExitStack() as stack:
            roots = [
                stack.enter_context(self.worker(processes, at_once, coroutines, more)).pid
                for _ in range(hubs)
            ]
            self.until(lambda: self.ran() > 0, "the first task", 60)
            first = time.perf_counter()
            base, before_s = self.ran(), self._spent_s(roots)
            servers_s = self._servers.spent_s()
            self.until(lambda: self.ran() >= runs, "all tasks")
            last, done, spent_s = time.perf_counter(), self.ran(), self._spent_s(roots)
            servers_s = self._servers.spent_s() - servers_s
            memory = sum(pss_mb(pids_below(root)) for root in roots)
            if not of:
                spent_s = self._settled(roots)
                done = self.ran()
                if done != runs:
                    raise Void(f"{self.system.name}: {done} runs instead of {runs}")
        left = max(1, done - base)
        return {
            "per_s": round(left / max(1e-6, last - first)),
            "cpu_us": round((spent_s - before_s) / left * 1e6, 1),
            "servers_us": round(servers_s / left * 1e6, 1),
            "memory_mb": round(memory, 1),
            "first_s": round(first - begun, 2),
        }

    def _spent_s(self, roots: Sequence[int]) -> float:
        return sum(cpu_s(pids_below(root)) for root in roots)

    def _settled(self, roots: Sequence[int]) -> float:
        """Return the trees' CPU seconds once they rest: acknowledging outlasts the last run."""
        last = self._spent_s(roots)
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            time.sleep(0.3)
            now = self._spent_s(roots)
            if now - last <= 0.02:
                return last
            last = now
        return last
