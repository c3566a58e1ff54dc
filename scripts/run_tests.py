"""Run pytest in parallel, and what failed there once more, one test after the other.

Many of the tests drive real servers and processes, and beside others on a small machine one of them
now and then waits longer than it is ready to. Such a failure is told apart from a defect by running
it alone; it is named at the end all the same, so that nobody overlooks it.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MOST_AGAIN = 30
"""More failures than that are no accident: nothing is run again."""

_FAILED = 1


def run(arguments: Sequence[str], summary: Path) -> tuple[int, dict[str, Any]]:
    """Run pytest with signals handed on; return its exit code and what `conftest.py` summed up."""
    environment = {**os.environ, "TESTS_SUMMARY": str(summary)}
    child = subprocess.Popen([sys.executable, "-m", "pytest", *arguments], env=environment)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda got, _: child.send_signal(got))
    # The terminal's Ctrl-C reaches pytest by itself; it ends the servers, and then this ends.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    code = child.wait()
    # Restored, or the second pytest would start with Ctrl-C ignored, and its tests of it fail.
    signal.signal(signal.SIGINT, before)
    try:
        found: dict[str, Any] = json.loads(summary.read_text())
    except (OSError, ValueError):
        found = {}
    return code, found


def main(arguments: Sequence[str]) -> int:
    """Run the tests and return the exit code of the whole."""
    with tempfile.TemporaryDirectory() as directory:
        code, first = run(arguments, Path(directory) / "first.json")
        failed = first.get("failed", [])
        if code != _FAILED or not 0 < len(failed) <= MOST_AGAIN:
            print(f"tests: {_counts(first, code)}", flush=True)
            return code
        print(f"\n{len(failed)} failed beside others; once more, alone:", flush=True)
        alone = ["-n", "0", *failed]
        code, second = run(alone, Path(directory) / "second.json")
    passed = first["passed"] + second.get("passed", 0)
    rest = {**first, "passed": passed, "failed": second.get("failed", failed)}
    print(f"tests: {_counts(rest, code)}; passed only alone: {len(failed) - len(rest['failed'])}")
    for name in failed:
        print(f"  {'FAILED TWICE' if name in rest['failed'] else 'passed alone'}: {name}")
    return code


def _counts(summary: dict[str, Any], code: int) -> str:
    if not summary:
        return f"pytest ended with code {code}"
    return (
        f"{summary['passed']} passed, {len(summary['failed'])} failed, {summary['skipped']} skipped"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
