"""What was measured as tables: one for each case, and one of all for the README."""

import os
import platform
import statistics
import time
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def machine() -> Row:
    """Return when and on what a run was made."""
    return {
        "at": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "system": platform.system(),
    }


def values(rows: Sequence[Row], case: str, system: str, key: str) -> list[float]:
    """Return what was measured of one thing, round by round."""
    return [
        row["measured"][key]
        for row in rows
        if row["case"] == case and row["system"] == system and key in row["measured"]
    ]


def usual_per_s(rows: Sequence[Row], system: str) -> int:
    """Return how many no-ops with results a system ran in a second, 0 when it was not measured."""
    found = values(rows, "no-ops results on", system, "per_s")
    return round(statistics.median(found)) if found else 0


def tables(rows: Sequence[Row]) -> str:
    """Return a table for each case, then the ones for the README, as Markdown."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    parts = [_case_table(rows, case) for case in cases]
    parts += ["\n## For the README\n", readme_table(rows), "\n### Ratios\n", ratio_table(rows)]
    return "\n".join(parts)


def _systems(rows: Sequence[Row], case: str = "") -> list[str]:
    return list(dict.fromkeys(row["system"] for row in rows if case in ("", row["case"])))


def _case_table(rows: Sequence[Row], case: str) -> str:
    """Return medians with their ranges, and the ratio of each system's CPU to taskq's."""
    keys = list(dict.fromkeys(k for r in rows if r["case"] == case for k in r["measured"]))
    lines = [f"\n### {case}\n", "| system | " + " | ".join(keys) + " | CPU ratio |"]
    lines.append("|---" * (len(keys) + 2) + "|")
    base = 0.0
    for system in _systems(rows, case):
        cells = [_spread(values(rows, case, system, key)) for key in keys]
        cpu = values(rows, case, system, "cpu_us")
        base = base or (statistics.median(cpu) if cpu else 0.0)
        ratio = f"{statistics.median(cpu) / base:.1f}" if cpu and base else ""
        lines.append(f"| {system} | " + " | ".join(cells) + f" | {ratio} |")
    return "\n".join(lines)


def _spread(found: Sequence[float]) -> str:
    if not found:
        return ""
    middle = statistics.median(found)
    return f"{middle:g}" if len(found) == 1 else f"{middle:g} ({min(found):g}..{max(found):g})"


_FORMS = (
    ("per_s", "cpu_us", "{:,.0f}/s · {:,.0f} µs"),
    ("p50_ms", "p99_ms", "{:.1f} / {:.1f} ms"),
    ("wait_p50_ms", "wait_p99_ms", "{:,.0f} / {:,.0f} ms"),
    ("late_p50_ms", "late_p99_ms", "{:,.0f} / {:,.0f} ms late"),
    ("idle_percent", "memory_mb", "{:.1f} % · {:.0f} MB"),
)


def _cell(rows: Sequence[Row], case: str, system: str) -> str:
    for first, second, form in _FORMS:
        one, two = (values(rows, case, system, key) for key in (first, second))
        if one and two:
            return form.format(statistics.median(one), statistics.median(two))
    rate = values(rows, case, system, "per_s")
    return f"{statistics.median(rate):,.0f}/s" if rate else ""


def readme_table(rows: Sequence[Row]) -> str:
    """Return all cases by system: medians of tasks/s and CPU, or of p50 and p99."""
    systems = _systems(rows)
    lines = ["| case | " + " | ".join(systems) + " |", "|---" * (len(systems) + 1) + "|"]
    for case in dict.fromkeys(row["case"] for row in rows):
        cells = [_cell(rows, case, system) for system in systems]
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratio_table(rows: Sequence[Row]) -> str:
    """Return how many times taskq's CPU per task each peer takes: lowest, median and highest."""
    ours = "taskq"
    lines = ["| case | " + " | ".join(_systems(rows)) + " |"]
    lines.append("|---" * (len(_systems(rows)) + 1) + "|")
    for case in dict.fromkeys(row["case"] for row in rows):
        base = values(rows, case, ours, "cpu_us")
        if not base:
            continue
        cells = []
        for system in _systems(rows):
            found = values(rows, case, system, "cpu_us")
            # Round by round: both sides of a ratio met the same minute of the machine.
            ratios = [theirs / own for theirs, own in zip(found, base, strict=False) if own]
            cells.append(_times(ratios))
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _times(ratios: Sequence[float]) -> str:
    if not ratios:
        return ""
    middle = f"{statistics.median(ratios):.1f} ×"  # noqa: RUF001
    return middle if len(ratios) == 1 else f"{middle} ({min(ratios):.1f}..{max(ratios):.1f})"
