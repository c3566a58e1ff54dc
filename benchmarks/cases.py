"""The cases of the comparison: what is done on a stage, and what is measured."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from stage import Stage, Void
from tree import cpu_s, pids_below, pss_mb

Measured = dict[str, float]
_RATE_OF_PEERS = 300
_SHORT_TASKS = 250


def _count(stage: Stage, scale: float) -> int:
    """Return how many tasks make a run of some seconds for this system."""
    fast = 60_000 if stage.system.broker != "sqlite" else 30_000
    return round((fast if stage.system.own else 2_000) * scale)


def _drain(processes: int, task: str = "noop", hubs: int = 1) -> Callable[[Stage, float], Measured]:
    def case(stage: Stage, scale: float) -> Measured:
        count = _count(stage, scale)
        fill = stage.send("fill", task, count)
        return {**stage.drain(count, processes, hubs=hubs), "fill_per_s": fill["per_s"]}

    return case


def _queues(queues: int) -> Callable[[Stage, float], Measured]:
    def case(stage: Stage, scale: float) -> Measured:
        count = _count(stage, scale)
        stage.send("fill", count=count, number=queues)
        names = ",".join(f"q{number}" for number in range(queues))
        measured: Measured = stage.drain(count, more=("-Q", names))
        return measured

    return case


def _waiting(stage: Stage, scale: float) -> Measured:
    count = _count(stage, scale)
    stage.send("fill", count=count)
    with stage.sending("wait", 200) as client:
        if client.stdout is None or not client.stdout.readline():
            raise Void("the waiting clients did not start")
        time.sleep(3)
        measured: Measured = stage.drain(count)
        return measured


def _depth(queued: int) -> Callable[[Stage, float], Measured]:
    """Drain the same number of tasks from queues of any depth."""

    def case(stage: Stage, scale: float) -> Measured:
        runs = min(queued, round(20_000 * scale))
        stage.send("fill", count=queued)
        measured: Measured = stage.drain(runs, of=0 if runs == queued else queued)
        return measured

    return case


def _payload(size: int, share: float) -> Callable[[Stage, float], Measured]:
    def case(stage: Stage, scale: float) -> Measured:
        count = max(20, round(_count(stage, scale) * share))
        stage.send("fill", count=count, size=size)
        measured: Measured = stage.drain(count)
        return measured

    return case


def _fail_once(stage: Stage, scale: float) -> Measured:
    count = round(_count(stage, scale) / 4)
    stage.send("fill", "fail_once", count)
    measured: Measured = stage.drain(2 * count)
    # Of each task, not of each run.
    return {
        **measured,
        "per_s": round(measured["per_s"] / 2),
        "cpu_us": round(measured["cpu_us"] * 2, 1),
        "servers_us": round(measured["servers_us"] * 2, 1),
    }


def _threads(stage: Stage, scale: float) -> Measured:
    count = round(6_000 * scale)
    stage.send("fill", "io", count)
    measured: Measured = stage.drain(count, at_once=100)
    return measured


def coroutines(stage: Stage, scale: float) -> Measured:
    """Run 100 waits of 10 ms at once on one loop."""
    count = round(6_000 * scale)
    stage.send("fill", "aio", count)
    measured: Measured = stage.drain(count, at_once=100, coroutines=True)
    return measured


def later(stage: Stage, scale: float) -> Measured:
    """Send tasks that are all due at one moment; measure how late they start."""
    count = round(500 * scale)
    with stage.worker() as process:
        stage.send("round-trip", count=1)
        before, before_s = stage.ran(), cpu_s(pids_below(process.pid))
        spare_s = stage.send("later", count=count, number=6)["spare_s"]
        if spare_s < 0.5:
            raise Void(f"{stage.system.name}: sending took until the tasks were due")
        stage.until(lambda: stage.ran() >= before + count, "all delayed tasks", 60)
        spent_s = cpu_s(pids_below(process.pid)) - before_s
    waits = stage.waits_s()
    return {
        "late_p50_ms": round(waits[len(waits) // 2] * 1000),
        "late_p99_ms": round(waits[int(len(waits) * 0.99)] * 1000),
        "cpu_us": round(spent_s / count * 1e6, 1),
    }


def _mixed(stage: Stage, scale: float) -> Measured:
    """Send short tasks beside one of a minute, to two processes; measure how long they wait."""
    count = max(50, round(_SHORT_TASKS * scale))
    with stage.worker(2) as process:
        stage.send("round-trip", count=1)
        before = stage.ran()
        stage.send("mixed", count=count)
        start = time.perf_counter()
        while stage.ran() < before + count and time.perf_counter() - start < 10:
            time.sleep(0.05)
        # A stop in order would wait for the long one.
        for pid in reversed(pids_below(process.pid)):
            os.kill(pid, signal.SIGKILL)
        waits = stage.waits_s()
        late = count - len(waits)
        # What has not started yet has waited for ten seconds at the least.
        waits += [10.0] * late
    return {
        "wait_p50_ms": round(waits[len(waits) // 2] * 1000, 1),
        "wait_p99_ms": round(waits[int(len(waits) * 0.99)] * 1000, 1),
        "over_10_s": late,
    }


def _round_trip(stage: Stage, scale: float) -> Measured:
    with stage.worker():
        measured: Measured = stage.send("round-trip", count=round(300 * scale))
        return measured


def _half_load(stage: Stage, scale: float) -> Measured:
    rate = stage.usual_per_s // 2 if stage.usual_per_s else _RATE_OF_PEERS
    # One sender of no-ops cannot send more than this beside the measured one.
    rate = min(rate, 3_000)
    with stage.worker(), stage.sending("load", number=rate):
        time.sleep(2)
        measured = stage.send("round-trip", count=round(200 * scale))
    return {**measured, "load_per_s": rate}


def _send(command: str, count: int) -> Callable[[Stage, float], Measured]:
    def case(stage: Stage, scale: float) -> Measured:
        measured: Measured = stage.send(command, count=round(count * scale))
        return measured

    return case


def _idle(stage: Stage, scale: float) -> Measured:
    with stage.worker() as process:
        stage.send("round-trip", count=10)
        time.sleep(2)
        pids = pids_below(process.pid)
        before_s, seconds = cpu_s(pids), max(2.0, 6 * scale)
        time.sleep(seconds)
        return {
            "idle_percent": round((cpu_s(pids) - before_s) / seconds * 100, 2),
            "memory_mb": round(pss_mb(pids), 1),
        }


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        run: What is done on a stage, scaled.
        results: Whether results are kept.
        own: Whether only taskq has it.
        rounds: How often it is run when there is time.
        env: Further environment of worker and senders.
    """

    run: Callable[[Stage, float], Measured]
    results: bool = True
    own: bool = False
    rounds: int = 1
    env: dict[str, str] = field(default_factory=dict)


CASES: dict[str, Case] = {
    "no-ops results off": Case(_drain(1), results=False, rounds=3),
    "no-ops results on": Case(_drain(1), rounds=3),
    "every task fails once": Case(_fail_once),
    "round trip idle": Case(_round_trip),
    "one send": Case(_send("single", 300), results=False),
    "idle worker": Case(_idle),
    "10 ms in 100 threads": Case(_threads, results=False),
    "10 ms in 100 coroutines": Case(coroutines, results=False),
    "no-ops events off": Case(_drain(1), own=True, env={"BENCH_EVENTS": "off"}),
    "no-ops 2 processes": Case(_drain(2)),
    "sends of 8 threads": Case(_send("threads", 1_000), results=False),
    "sends of 100 coroutines": Case(_send("together", 1_000), results=False),
    "round trip half load": Case(_half_load),
    "1 KB argument": Case(_payload(1_000, 0.5)),
    "100 KB argument": Case(_payload(100_000, 0.02)),
    "1 MB argument": Case(_payload(1_000_000, 0.003)),
    "delayed tasks": Case(later),
    "a minute beside short tasks": Case(_mixed),
    "no-ops 4 processes": Case(_drain(4), own=True),
    "no-ops 2 hubs": Case(_drain(1, hubs=2), own=True),
    "no-ops 4 hubs": Case(_drain(1, hubs=4), own=True),
    "no-ops from 10 queues": Case(_queues(10), own=True),
    "no-ops from 50 queues": Case(_queues(50), own=True),
    "no-ops beside 200 waiting clients": Case(_waiting, own=True),
    "no-ops with rate limit and slots": Case(_drain(1, "limited"), own=True),
    "no-ops with all limits": Case(_drain(1, "all_limits"), own=True),
    "10 queued": Case(_depth(10), own=True, results=False),
    "10k queued": Case(_depth(10_000), own=True, results=False),
    "1M queued": Case(_depth(1_000_000), own=True, results=False),
}
"""In order of worth: what there is no time for is left out from the end."""
