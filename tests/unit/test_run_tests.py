"""The script that runs the tests: a failure beside others is run again, alone, and named."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ONCE = """
import pathlib
def test_first_time():
    flag = pathlib.Path(__file__).with_name("flag")
    seen = flag.exists()
    flag.write_text("x")
    assert seen
def test_good(): pass
"""


def run_tests(directory: Path, source: str) -> "subprocess.CompletedProcess[str]":
    (directory / "test_some.py").write_text(source)
    (directory / "pytest.ini").write_text("[pytest]\n")
    # The summary that the script reads is written by the conftest of these tests.
    environment = {
        **{name: text for name, text in os.environ.items() if not name.startswith("PYTEST_")},
        "PYTHONPATH": os.pathsep.join((str(ROOT / "tests"), str(ROOT))),
        "PYTEST_ADDOPTS": "-p conftest -c pytest.ini --rootdir .",
    }
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts/run_tests.py"), "-n", "0"],
        env=environment,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_what_fails_beside_others_and_passes_alone_is_named(tmp_path: Path) -> None:
    done = run_tests(tmp_path, ONCE)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "tests: 2 passed, 0 failed, 0 skipped; passed only alone: 1" in done.stdout
    assert "passed alone: test_some.py::test_first_time" in done.stdout


@pytest.mark.parametrize(
    "source", ["def test_bad(): assert False", "def test_bad(missing): pass", "import nothing_here"]
)
def test_what_fails_alone_too_fails_the_run(tmp_path: Path, source: str) -> None:
    """A test, a fixture, a module that cannot be imported."""
    done = run_tests(tmp_path, source)

    assert done.returncode not in (0, None), done.stdout + done.stderr
    assert "tests: " in done.stdout
