"""Compares taskq with Celery, Dramatiq, TaskIQ and Huey, interleaved in one run on this machine.

    python benchmarks/compare.py --peers VENV [--cases on,idle] [--rounds 3] [--json FILE]

A measurement whose tasks did not all execute is void, shown as such, and counts for nothing.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stage import Servers, Stage, Void
from systems import SYSTEMS, System
from tree import cpu_s, pids_below, pss_mb

Measured = dict[str, float]
_QUICK = 5


def _drain(processes: int, task: str = "noop") -> Callable[[Stage, float], Measured]:
    def case(stage: Stage, scale: float) -> Measured:
        count = _count(stage, scale)
        fill = stage.send("fill", task, count)
        return {**stage.drain(count, processes), "fill_per_s": fill["per_s"]}

    return case


def _count(stage: Stage, scale: float) -> int:
    """Return how many tasks make a run of some seconds for this system."""
    fast = 60_000 if stage.system.broker != "sqlite" else 30_000
    return round((fast if stage.system.own else 3_000) * scale)


def _payload(size: int, share: float) -> Callable[[Stage, float], Measured]:
    def case(stage: Stage, scale: float) -> Measured:
        count = max(50, round(_count(stage, scale) * share))
        stage.send("fill", count=count, size=size)
        measured: Measured = stage.drain(count)
        return measured

    return case


def _fail_once(stage: Stage, scale: float) -> Measured:
    count = round(_count(stage, scale) / 4)
    stage.send("fill", "fail_once", count)
    measured: Measured = stage.drain(2 * count)
    return measured


def _threads(stage: Stage, scale: float) -> Measured:
    count = round(6_000 * scale)
    stage.send("fill", "io", count)
    measured: Measured = stage.drain(count, at_once=100)
    return measured


def _coroutines(stage: Stage, scale: float) -> Measured:
    count = round(6_000 * scale)
    stage.send("fill", "aio", count)
    measured: Measured = stage.drain(count, at_once=100, coroutines=True)
    return measured


def _round_trip(stage: Stage, scale: float) -> Measured:
    with stage.worker():
        measured: Measured = stage.send("round-trip", count=round(300 * scale))
        return measured


def _single(stage: Stage, scale: float) -> Measured:
    measured: Measured = stage.send("single", count=round(500 * scale))
    return measured


def _idle(stage: Stage, scale: float) -> Measured:
    with stage.worker() as process:
        stage.send("round-trip", count=10)
        time.sleep(2)
        pids = pids_below(process.pid)
        before_s, seconds = cpu_s(pids), max(2.0, 10 * scale)
        time.sleep(seconds)
        return {
            "idle_percent": round((cpu_s(pids) - before_s) / seconds * 100, 2),
            "memory_mb": round(pss_mb(pids), 1),
        }


def _sending_threads(stage: Stage, scale: float) -> Measured:
    measured: Measured = stage.send("threads", count=round(2_000 * scale))
    return measured


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        run: What is done on a stage, scaled.
        results: Whether results are kept.
        own: Whether only taskq has it.
        env: Further environment of worker and senders.
    """

    run: Callable[[Stage, float], Measured]
    results: bool = True
    own: bool = False
    env: dict[str, str] = field(default_factory=dict)


CASES: dict[str, Case] = {
    "no-ops, results off": Case(_drain(1), results=False),
    "no-ops, results on": Case(_drain(1)),
    "no-ops, results on, 2 processes": Case(_drain(2)),
    "no-ops, results on, events off": Case(_drain(1), own=True, env={"BENCH_EVENTS": "off"}),
    "no-ops with rate limit and slots": Case(_drain(1, "limited"), own=True),
    "no-ops with all limits": Case(_drain(1, "all_limits"), own=True),
    "1 KB argument, results on": Case(_payload(1_000, 0.5)),
    "100 KB argument, results on": Case(_payload(100_000, 0.02)),
    "every task fails once, results on": Case(_fail_once),
    "10 ms in 100 threads": Case(_threads, results=False),
    "10 ms in 100 coroutines": Case(_coroutines, results=False),
    "round trip, idle": Case(_round_trip),
    "idle worker": Case(_idle),
    "one send": Case(_single, results=False),
    "sends of 8 threads": Case(_sending_threads, results=False),
}


def measure(
    case: str, system: System, servers: Servers, peers: Path, scale: float
) -> Measured | None:
    """Run one case on one system; None where it has no such thing or the run is void."""
    chosen = CASES[case]
    if chosen.own and not system.own:
        return None
    if chosen.run is _coroutines and system.coroutines is None:
        return None
    try:
        stage = Stage(system, servers, peers, chosen.results, chosen.env)
        return chosen.run(stage, scale)
    except Void as reason:
        print(f"void: {case}: {reason}", file=sys.stderr, flush=True)
        return None


def table(rows: list[dict[str, Any]]) -> str:
    """Return the medians as Markdown, with the ratio of each system's CPU to taskq's."""
    lines = []
    for case in dict.fromkeys(row["case"] for row in rows):
        lines += [f"\n### {case}\n"]
        keys = list(dict.fromkeys(k for r in rows if r["case"] == case for k in r["measured"]))
        lines.append("| system | " + " | ".join(keys) + " | CPU ratio |")
        lines.append("|---" * (len(keys) + 2) + "|")
        base: float | None = None
        for system in dict.fromkeys(row["system"] for row in rows if row["case"] == case):
            runs = [r["measured"] for r in rows if r["case"] == case and r["system"] == system]
            cells = [_spread([run[key] for run in runs if key in run]) for key in keys]
            cpu = [run["cpu_us"] for run in runs if "cpu_us" in run]
            base = statistics.median(cpu) if cpu and base is None else base
            ratio = f"{statistics.median(cpu) / base:.1f}" if cpu and base else ""
            lines.append(f"| {system} | " + " | ".join(cells) + f" | {ratio} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    middle = statistics.median(values)
    return f"{middle:g}" if len(values) == 1 else f"{middle:g} ({min(values):g}..{max(values):g})"


def main() -> int:
    """Run the comparison and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, help="virtual environment of the peers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round with a fifth of the tasks")
    parser.add_argument("--cases", default="", help="only cases whose names contain one of these")
    parser.add_argument(
        "--systems", default="", help="only systems whose names contain one of these"
    )
    parser.add_argument("--json", type=Path, help="append the run to this file, one line")
    options = parser.parse_args()
    cases = [name for name in CASES if _wanted(name, options.cases)]
    systems = [s for s in SYSTEMS if _wanted(s.name, options.systems) and (s.own or options.peers)]
    if not cases or not systems:
        parser.error("no case or system has such a name")
    scale, rounds = (1 / _QUICK, 1) if options.quick else (1.0, options.rounds)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, Servers(Path(name)) as servers:
        for number in range(rounds):
            for case in cases:
                # Side by side: what slows the machine down for a minute slows all of them down.
                for system in systems:
                    found = measure(case, system, servers, options.peers or Path(), scale)
                    if found is not None:
                        rows.append({"case": case, "system": system.name, "measured": found})
                        told = "  ".join(f"{key}={value}" for key, value in found.items())
                        print(f"{number + 1}/{rounds} {case}: {system.name}: {told}", flush=True)
    print(table(rows))
    if options.json:
        record = {
            "at": time.strftime("%Y-%m-%d"),
            "python": platform.python_version(),
            "rows": rows,
        }
        with options.json.open("a") as file:
            file.write(json.dumps(record) + "\n")
    return 0


def _wanted(name: str, parts: str) -> bool:
    return not parts or any(part.strip() in name for part in parts.split(","))


if __name__ == "__main__":
    sys.exit(main())
