"""Draws the last run of a history as SVG for the documentation.

python benchmarks/plot.py [benchmarks/history.json] [docs/performance.svg]
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pygal
from pygal.style import Style
from report import values

CASES = ("no-ops results off", "no-ops results on", "every task fails once")
_ROOT = Path(__file__).parents[1]
_STYLE = Style(
    background="white",
    plot_background="white",
    colors=("#1f6feb", "#8250df", "#bf8700"),
    font_family="sans-serif",
)


def draw(run: dict[str, Any]) -> str:
    """Return a bar chart of the CPU time of a task by system, on a logarithmic scale."""
    rows = run["rows"]
    systems = list(dict.fromkeys(row["system"] for row in rows if row["case"] in CASES))
    chart = pygal.HorizontalBar(
        logarithmic=True,
        style=_STYLE,
        title=f"CPU of the worker's processes per task, µs ({run['at']}, {run['cores']} cores)",
        x_title="µs, logarithmic: shorter is better",
        legend_at_bottom=True,
        print_values=True,
        print_values_position="top",
        width=900,
        height=700,
        js=(),
        disable_xml_declaration=True,
    )
    chart.x_labels = systems
    for case in CASES:
        found = [values(rows, case, system, "cpu_us") for system in systems]
        if any(found):
            chart.add(case, [round(statistics.median(cpu)) if cpu else None for cpu in found])
    drawn: str = chart.render()
    return drawn


def main() -> int:
    """Draw and write; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("history", nargs="?", type=Path, default=_ROOT / "benchmarks/history.json")
    parser.add_argument("svg", nargs="?", type=Path, default=_ROOT / "docs/performance.svg")
    options = parser.parse_args()
    runs = options.history.read_text().splitlines()
    options.svg.write_text(draw(json.loads(runs[-1])) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
