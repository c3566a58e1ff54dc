"""`taskq demo`: what a newcomer sees first."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_user import TIMEOUT_S, User, until


@pytest.fixture
def user(tmp_path: Path) -> User:
    """A user in an empty directory, with a temporary directory of their own."""
    (tmp_path / "here").mkdir()
    (tmp_path / "tmp").mkdir()
    return User(tmp_path / "here", TMPDIR=str(tmp_path / "tmp"))


def processes_of(directory: Path) -> list[int]:
    """Return the processes whose environment names a directory: whatever a demo started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            text = (entry / "environ").read_bytes()
        except OSError:
            continue
        if f"{directory}/taskq-demo-".encode() in text:
            found.append(int(entry.name))
    return found


def test_the_demo_shows_each_kind_of_task_and_leaves_nothing_behind(user: User) -> None:
    """It is the first command of the README, and runs beside whatever is configured already."""
    elsewhere = {"TASKQ_BROKER": "amqp://127.0.0.1:1//", "TASKQ_POOL": "solo", "TASKQ_APP": "x:y"}
    (user.directory / "taskq.toml").write_text("nonsense = 1\n")

    done = user.run("demo", env=elsewhere)

    for line in (
        r"SUCCESS +greet +\"hello world\"",
        r"RETRY +flaky +ConnectionError: attempt 1",
        r"RETRY +flaky +ConnectionError: attempt 2",
        r"SUCCESS +flaky",
        r"SUCCESS +async",
        r"SUCCESS +chain +15",
        r"CANCELLED +cancelled",
        r"FAILURE +stuck +TimeLimitExceeded",
        r"FAILURE +ship +KeyError: 'address'",
        r"stopped +worker +by TERM, exit code 0",
        r"8 tasks in [\d.]+ s, all as expected",
    ):
        assert re.search(line, done.stdout), f"{line} in\n{done.stdout}"
    delayed = re.search(r"([\d.]+) s +SUCCESS +delayed", done.stdout)
    assert delayed is not None
    assert float(delayed[1]) >= 2
    assert "\x1b[" not in done.stdout
    assert os.listdir(user.variables["TMPDIR"]) == []
    assert sorted(os.listdir(user.directory)) == ["shop.py", "taskq.toml"]
    assert processes_of(Path(user.variables["TMPDIR"])) == []


def test_a_kept_demo_can_be_looked_at(user: User) -> None:
    """The commands that it names at its end can be tried on it."""
    kept = user.directory / "kept"
    user.run("demo", "--keep", str(kept))
    url = f"sqlite:///{kept}/demo.db"

    rows = user.run("dead", "ls", "--json", env={"TASKQ_BROKER": url, "TASKQ_RESULTS": url}).json()

    assert {row["task"] for row in rows} == {"stuck", "ship"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_demo_stops_its_worker(user: User, number: int) -> None:
    """A worker that lives on in a deleted directory is found weeks later."""
    process = subprocess.Popen(
        [sys.executable, "-m", "taskq", "demo"],
        cwd=user.directory,
        env=user.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = Path(user.variables["TMPDIR"])
    until(lambda: list(log.glob("taskq-demo-*/worker.log")), "the demo's worker")

    process.send_signal(number)
    _, err = process.communicate(timeout=TIMEOUT_S)

    assert process.returncode != 0
    assert "Traceback" not in err
    # A template whose worker was ended before it could stop it goes a moment later.
    until(lambda: processes_of(log) == [], "the end of all that the demo started")
    assert os.listdir(log) == []


def test_a_demo_that_goes_wrong_says_so(user: User) -> None:
    """Exit code 1 and the worker's log: a demo that always succeeds shows nothing."""
    code = (
        "import taskq.cli.demo as demo; demo._LIMIT_S = 3.0\n"
        "demo._APP = 'no.such.module:app'\n"
        "from taskq.cli import main; main(['demo'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=user.directory,
        env=user.environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )

    assert done.returncode == 1
    assert "no.such.module" in done.stdout
    assert "did not go as it should" in done.stderr
