"""Running an example as its reader does: one command, warnings as errors, in an empty directory."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 150


def run_example(
    name: str,
    *words: str,
    servers: Mapping[str, str],
    directory: Path,
    timeout_s: float = TIMEOUT_S,
) -> subprocess.CompletedProcess[str]:
    """Run a file below `examples/` with servers from its environment."""
    return subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / name), *words],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), **servers},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def check_pattern(
    name: str, servers: Mapping[str, str], directory: Path, timeout_s: float = TIMEOUT_S
) -> str:
    """Run an example of `examples/patterns`, which checks its own results; return its stderr."""
    done = run_example(
        f"patterns/{name}.py", servers=servers, directory=directory, timeout_s=timeout_s
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(directory.iterdir()), "the example left something behind"
    return done.stderr
