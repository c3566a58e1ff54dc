"""The examples of messaging patterns are run as their reader runs them, on both kinds of broker."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = [
    "publish_subscribe",
    "topic_routing",
    "headers_routing",
    "request_reply",
    "event_sourcing",
]
TIMEOUT_S = 150


@pytest.mark.parametrize("server", ["memory", "rabbitmq"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_pattern_does_what_it_says(
    name: str, server: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Each checks its own results and ends with 1 when one is off."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    if server == "rabbitmq":
        env["TASKQ_BROKER"] = request.getfixturevalue("rabbitmq_url")

    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / "patterns" / f"{name}.py")],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(tmp_path.iterdir()), "the example left something behind"
