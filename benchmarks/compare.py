"""Compares taskq with Celery, Dramatiq, TaskIQ and Huey, interleaved in one run on this machine.

    python benchmarks/compare.py --peers VENV [--cases on,idle] [--minutes 11] [--json FILE]

A measurement whose tasks did not all execute is void, shown as such, and counts for nothing. Cases
run in order of worth until the minutes are over; what there was no time for is named at the end.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cases import CASES, coroutines, later
from report import machine, tables, usual_per_s
from stage import Servers, Stage, Void
from systems import SYSTEMS, System

Row = dict[str, Any]
_QUICK = 5


def measure(
    case: str, system: System, servers: Servers, peers: Path, scale: float, rows: Sequence[Row]
) -> dict[str, float] | None:
    """Run one case of one system.

    Args:
        case: Its name.
        system: Which system.
        servers: Where it runs.
        peers: Environment of the peers.
        scale: How many tasks, relative to the usual.
        rows: What was measured so far.

    Returns:
        What was measured, or None when it is void or the system has no such case.
    """
    chosen = CASES[case]
    if chosen.own and not system.own:
        return None
    if chosen.run is coroutines and system.coroutines is None:
        return None
    if chosen.run is later and not system.delays:
        return None
    if case == "sends of 100 coroutines" and not system.sends_from_coroutines:
        return None
    try:
        stage = Stage(system, servers, peers, chosen.results, chosen.env)
        stage.usual_per_s = usual_per_s(rows, system.name)
        return chosen.run(stage, scale)
    except Void as reason:
        print(f"void: {case}: {reason}", file=sys.stderr, flush=True)
        return None


def order(cases: Sequence[str], rounds: int) -> list[tuple[int, str]]:
    """Return (round, case), the rounds of the repeated cases first: they are what is compared."""
    steps = [
        (number, case) for number in range(rounds) for case in cases if number < CASES[case].rounds
    ]
    return sorted(steps, key=lambda step: CASES[step[1]].rounds == 1)


def likely_s(case: str, took_s: Mapping[str, float]) -> float:
    """Return how long a case will take: as long as last time, or as the others on average."""
    if case in took_s or not took_s:
        return took_s.get(case, 0.0)
    return statistics.mean(took_s.values())


def run(options: argparse.Namespace, cases: Sequence[str], systems: Sequence[System]) -> list[Row]:
    """Measure until all is done or the time is over."""
    rows: list[Row] = []
    left_out: list[str] = []
    ends_s = time.monotonic() + options.minutes * 60
    took_s: dict[str, float] = {}
    scale = 1 / _QUICK if options.quick else 1.0
    steps = order(cases, 1 if options.quick else options.rounds)
    with tempfile.TemporaryDirectory() as name, Servers(Path(name)) as servers:
        for number, case in steps:
            begun_s = time.monotonic()
            if begun_s + likely_s(case, took_s) > ends_s:
                left_out.append(f"{case} ({number + 1})")
                continue
            # Side by side: what slows the machine down for a minute slows all of them down.
            for system in systems:
                peers = options.peers or Path()
                load = os.getloadavg()[0]
                found = measure(case, system, servers, peers, scale, rows)
                if found is not None:
                    rows.append({"case": case, "system": system.name, "measured": found})
                    told = "  ".join(f"{key}={value}" for key, value in found.items())
                    print(f"{case} ({number + 1}): {system.name}: {told}  [load {load:.1f}]")
                    sys.stdout.flush()
            took_s[case] = time.monotonic() - begun_s
    if left_out:
        print(f"\nno time in {options.minutes:g} minutes for: {', '.join(left_out)}")
        print("give them some: --minutes 60, or --cases NAME")
    return rows


def main() -> int:
    """Run the comparison and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, help="virtual environment of the peers")
    parser.add_argument("--rounds", type=int, default=3, help="at most so many of each case")
    parser.add_argument(
        "--minutes", type=float, default=11, help="begin no case after so many; 11 by default"
    )
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
    rows = run(options, cases, systems)
    print(tables(rows))
    if options.json:
        with options.json.open("a") as file:
            file.write(json.dumps({**machine(), "rows": rows}) + "\n")
    return 0


def _wanted(name: str, parts: str) -> bool:
    return not parts or any(part.strip() in name for part in parts.split(","))


if __name__ == "__main__":
    sys.exit(main())
