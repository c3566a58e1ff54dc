"""One fault after the other under load, each with its account."""

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from taskq.app import TaskQ
from taskq.errors import WorkerLost
from taskq.torture.account import Account, settle, until
from taskq.torture.faults import Bench, Fault
from taskq.torture.load import Load
from taskq.torture.place import forget

_DRAIN_S: Final = 180.0
_FLAT_S: Final = 15.0
_SPARE_FILES: Final = 12
_SPARE_MB: Final = 60.0


@dataclass(slots=True, kw_only=True)
class Row:
    """What became of one fault.

    Attributes:
        fault: Its name.
        strikes: How often it was caused.
        account: What became of the tasks.
        memory_mb: Most resident memory of a hub afterwards, in MB.
        growth: What grew and should not have, in words; empty when nothing did.
        files_grown: Most files that the client, or a hub that lived through it, has open more than
            before; below zero when all have fewer.
        memory_grown_mb: Most resident memory that a hub which lived through it has more than
            before, in MB; None when no hub did.
    """

    fault: str
    strikes: int
    account: Account
    memory_mb: float
    growth: str
    files_grown: int = 0
    memory_grown_mb: float | None = None

    @property
    def failures(self) -> list[str]:
        """What is wrong, in words; empty when all guarantees held."""
        account = self.account
        found = []
        if account.lost:
            found.append(f"lost {len(account.lost)}, such as {account.lost[0]}")
        if account.early:
            found.append(f"{len(account.early)} early, such as {account.early[0]}")
        if account.late:
            found.append(f"a send took {account.slowest_send_s:.1f} s")
        if account.queued:
            found.append(f"{account.queued} messages were still queued at the end")
        if self.growth:
            found.append(self.growth)
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        account = self.account
        return {
            "fault": self.fault,
            "strikes": self.strikes,
            "confirmed": account.confirmed,
            "unconfirmed": account.unconfirmed,
            "completed": account.completed,
            "queued": account.queued,
            "dead": account.dead,
            "lost": len(account.lost),
            "duplicated": account.duplicated,
            "early": len(account.early),
            "slowest_send_s": round(account.slowest_send_s, 3),
            "drained_s": round(account.drained_s, 1),
            "memory_mb": round(self.memory_mb, 1),
            "files_grown": self.files_grown,
            "memory_grown_mb": None
            if self.memory_grown_mb is None
            else round(self.memory_grown_mb, 1),
            "failures": self.failures,
        }


def run_fault(
    bench: Bench, fault: Fault, seconds: float, rate: float, drain_s: float = _DRAIN_S
) -> Row:
    """Cause one fault again and again under load, then count.

    Args:
        bench: What it acts on.
        fault: Which.
        seconds: How long the load lasts, in seconds.
        rate: Tasks a second.
        drain_s: How long everything may take to end afterwards, in seconds.

    Raises:
        WorkerLost: If a worker does not come up again.
        TaskqError: If a server does not come back, or the fault cannot be caused.
    """
    bench.fleet.fill()
    watch = _Watch(bench)
    load = Load(bench.app, rate, bench.rng)
    load.start()
    strikes = 0
    try:
        end_s = time.monotonic() + seconds
        while True:
            pause_s = min(bench.rng.uniform(*fault.pause_s), seconds / 3)
            time.sleep(max(0.0, min(pause_s, end_s - time.monotonic())))
            if time.monotonic() >= end_s:
                break
            fault.strike(bench)
            strikes += 1
    finally:
        load.stop()
    bench.fleet.fill()
    account = settle(bench.app, load, bench.fleet.runs_path, drain_s)
    forget(bench.app, [*load.confirmed, *load.doubtful])
    growth = watch.growth()
    files_grown, memory_grown_mb = watch.grown()
    return Row(
        fault=fault.name,
        strikes=strikes,
        account=account,
        memory_mb=max(worker.memory_mb() for worker in bench.fleet.workers),
        growth=growth,
        files_grown=files_grown,
        memory_grown_mb=memory_grown_mb,
    )


class _Watch:
    """What is open and used before a fault, to find out what has grown after it."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._files = self._own_files()
        self._hubs = {
            worker.pid: (worker.descriptors(), worker.memory_mb()) for worker in bench.fleet.workers
        }

    def _own_files(self) -> int:
        try:
            # The proxies are in this process too.
            return len(os.listdir("/proc/self/fd")) - sum(2 * p.open for p in self._bench.proxies)
        except OSError:
            return 0

    def growth(self) -> str:
        """Return what has grown, in words, and does not shrink again within some seconds."""
        until(lambda: not self._found(), _FLAT_S)
        return self._found()

    def grown(self) -> tuple[int, float | None]:
        """Return how many files more are open, and how much memory more a hub uses, in MB."""
        files = [self._own_files() - self._files]
        memory_mb: list[float] = []
        for worker in self._bench.fleet.workers:
            if worker.pid in self._hubs:
                files_before, before_mb = self._hubs[worker.pid]
                files.append(worker.descriptors() - files_before)
                memory_mb.append(worker.memory_mb() - before_mb)
        return max(files), max(memory_mb, default=None)

    def _found(self) -> str:
        files = self._own_files()
        if files > self._files + _SPARE_FILES:
            return f"the client has {files} open files, {self._files} before"
        for worker in self._bench.fleet.workers:
            if worker.pid not in self._hubs:
                continue
            files, memory_mb = self._hubs[worker.pid]
            if worker.descriptors() > files + _SPARE_FILES:
                return f"a hub has {worker.descriptors()} open files, {files} before"
            if worker.memory_mb() > memory_mb + _SPARE_MB:
                return f"a hub uses {worker.memory_mb():.0f} MB, {memory_mb:.0f} before"
        return ""


@contextmanager
def isolated(directory: Path, settings: dict[str, str]) -> Iterator[None]:
    """Replace every `TASKQ_*` variable by these settings, and hide `taskq.toml`."""
    empty = directory / "taskq.toml"
    empty.touch()
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("TASKQ_")]:
        del os.environ[name]
    os.environ.update(settings, TASKQ_CONFIG=str(empty))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def run_campaign(
    bench: Bench,
    faults: list[Fault],
    seconds: float,
    rate: float,
    tell: Callable[[Row], None],
) -> list[Row]:
    """Run all faults.

    Args:
        bench: What they act on.
        faults: Which, in order.
        seconds: How long all of their loads last together, in seconds.
        rate: Tasks a second.
        tell: Called with each row.

    Raises:
        TaskqError: See `run_fault`.
    """
    rows = []
    for fault in faults:
        row = run_fault(bench, fault, seconds / len(faults), rate)
        rows.append(row)
        tell(row)
    _check_end(bench)
    return rows


def _check_end(bench: Bench) -> None:
    """Stop the workers in order: one that has run through all this must still do so.

    Raises:
        WorkerLost: If it does not.
    """
    for worker in bench.fleet.workers:
        code = worker.stop()
        if code:
            raise WorkerLost(f"a worker ended with {code}:\n{worker.log()[-2000:]}")


def make_client(broker: str, results: str, prefix: str) -> TaskQ:
    """Return the app that sends and counts.

    Args:
        broker: URL.
        results: URL.
        prefix: Of all names on the broker.
    """
    return TaskQ("torture", broker=broker, results=results, prefix=prefix, default_queue="torture")


def make_random(seed: int | None) -> tuple[random.Random, int]:
    """Return a generator and its seed, a new one when none is given."""
    seed = random.SystemRandom().randrange(2**32) if seed is None else seed
    return random.Random(seed), seed
