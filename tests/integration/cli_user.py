"""A user at a shell: runs `taskq` in a directory of their own, with an app and a worker."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from taskq.doctor import CHECKS

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60

SHOP = """
import os
import time

from taskq import Reject, RetryPolicy, TaskQ

print("imported the shop")
app = TaskQ("shop")


@app.task
def add(x, y):
    return x + y


@app.task(max_retries=1, retry=RetryPolicy(base_s=0))
def fail(word):
    raise ValueError(word)


@app.task(queue="slow")
def nap(seconds):
    time.sleep(seconds)
    return b"rested"


@app.task(queue="slow")
def wait(path):
    end = time.monotonic() + 60
    while not os.path.exists(path) and time.monotonic() < end:
        time.sleep(0.02)
    return b"rested"


@app.task
def refuse():
    raise Reject("not today")


@app.task(time_limit=7200)
def long():
    pass
"""


class Ended(subprocess.CompletedProcess[str]):
    """A command that ended."""

    def json(self) -> Any:
        """Return what it printed, which must be one JSON document."""
        return json.loads(self.stdout)


class User:
    """Runs commands; the embedded file `taskq.db` of the directory is the default, as ever."""

    def __init__(self, directory: Path, **variables: str) -> None:
        self.directory = directory
        self.variables = variables
        (directory / "shop.py").write_text(SHOP)

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return what a command's process gets."""
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            **self.variables,
            **(extra or {}),
        }

    def run(self, *words: str, code: int | None = 0, env: Mapping[str, str] | None = None) -> Ended:
        """Run a command and check its exit code, and that no traceback escapes."""
        done = subprocess.run(
            [sys.executable, "-m", "taskq", *words],
            cwd=self.directory,
            env=self.environment(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert code is None or done.returncode == code, f"{words}: {done}"
        if "debug" not in words:
            assert "Traceback" not in done.stderr, done.stderr
        return Ended(done.args, done.returncode, done.stdout, done.stderr)

    @contextlib.contextmanager
    def worker(self, *words: str) -> Iterator["subprocess.Popen[str]"]:
        """Run a worker beside; it is stopped warm, and must end well."""
        log = self.directory / "worker.log"
        with log.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "taskq", "worker", "-A", "shop:app", "-c", "2", *words],
                cwd=self.directory,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stderr=stream,
                text=True,
            )
        try:
            until(lambda: "consuming queues=" in log.read_text(), f"a worker: {log.read_text()}")
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(TIMEOUT_S)
            finally:
                process.kill()
        assert process.returncode == 0, log.read_text()

    def call(self, name: str, *words: str) -> str:
        """Send a task and return its id."""
        return self.run("call", "-A", "shop:app", name, *words).stdout.strip()

    def fail_for_good(self, *words: str) -> str:
        """Send a task that fails, work the queue empty, and return its id."""
        task_id = self.call("shop.fail", "--args", json.dumps(list(words or ("broken",))))
        self.run("worker", "-A", "shop:app", "--burst", "-c", "1")
        return task_id


def until(condition: Callable[[], Any], what: str, timeout_s: float = 30.0) -> Any:
    """Return the first true value of `condition`; fail naming `what` after the deadline."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s:g} s"
        time.sleep(0.02)
    return value


def examine(user: User, *words: str, code: int | None = 0, **env: str) -> dict[str, dict[str, Any]]:
    """Run `taskq doctor` and return its checks by name."""
    rows = user.run("doctor", *words, "--json", code=code, env=env).json()
    for row in rows:
        assert set(row) == {"name", "status", "detail", "advice"}
        assert row["name"] in CHECKS, f"{row['name']} is not in the table"
        assert row["advice"] or row["status"] == "ok", row
    return {row["name"]: row for row in rows}
