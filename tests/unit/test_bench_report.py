"""The comparison's tables and its plan; the measurements themselves are not tests."""

import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "report", raising=False)


def row(case: str, system: str, **measured: float) -> dict[str, Any]:
    return {"case": case, "system": system, "measured": measured}


def test_ratios_compare_runs_of_the_same_round() -> None:
    """A minute in which everything was slow must not make a peer look fast."""
    import report

    rows = [
        row("drain", "taskq", cpu_us=10),
        row("drain", "Peer", cpu_us=100),
        row("drain", "taskq", cpu_us=20),
        row("drain", "Peer", cpu_us=200),
    ]

    table = report.ratio_table(rows)

    assert table.splitlines()[-1].endswith("(10.0..10.0) |")


def test_one_table_has_all_cases_and_leaves_void_ones_empty() -> None:
    import report

    rows = [
        row("drain", "taskq", per_s=34_600, cpu_us=28.9),
        row("drain", "Peer", per_s=1_379, cpu_us=757),
        row("round trip", "taskq", p50_ms=1.7, p99_ms=4.04),
    ]

    lines = report.readme_table(rows).splitlines()

    assert lines[0] == "| case | taskq | Peer |"
    assert lines[2] == "| drain | 34,600/s · 29 µs | 1,379/s · 757 µs |"
    assert lines[3] == "| round trip | 1.7 / 4.0 ms |  |"


def test_medians_are_shown_with_their_range() -> None:
    import report

    rows = [row("drain", "taskq", per_s=value) for value in (3, 1, 2)]

    assert "2 (1..3)" in report.tables(rows)
