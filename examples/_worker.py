"""Starts the worker beside an example, so that one command shows everything.

In a project of your own you start it yourself: `taskq worker -A shop:app`.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path


class Worker:
    """A running `taskq worker`."""

    def __init__(self, app: str, *options: str) -> None:
        # A session of its own: Ctrl-C reaches the example alone, which stops the worker in order.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "taskq", "worker", "-A", app, "-l", "warning", *options],
            start_new_session=True,
        )

    def is_running(self) -> bool:
        """Return whether it has not ended by itself."""
        return self._process.poll() is None

    def stop(self) -> int:
        """Stop it as an operator does, and return its exit code."""
        self._process.terminate()
        try:
            return self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


@contextlib.contextmanager
def worker_beside(file: str, *options: str) -> Iterator[Worker]:
    """Run `taskq worker -A <file> <options>` while the block lasts.

    With TASKQ_BROKER set, everything happens there. Without, it happens on the embedded queue in
    a temporary directory, which is the working directory for the while.

    Args:
        file: The example; its app is found there.
        *options: Such as `"-c", "4"`.

    Raises:
        SystemExit: If the worker did not end as it should.
    """
    # A checkout that is not installed must be found from the other directory too.
    os.environ["PYTHONPATH"] = os.pathsep.join(os.path.abspath(place) for place in sys.path)
    with contextlib.ExitStack() as stack:
        app = str(Path(file).resolve())
        if not os.environ.get("TASKQ_BROKER"):
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="taskq-example-"))
            stack.enter_context(contextlib.chdir(directory))
        worker = Worker(app, *options)
        try:
            yield worker
        finally:
            code = worker.stop()
        if code != 0:
            raise SystemExit(f"the worker ended with exit code {code}")


def taskq(*words: str) -> str:
    """Run a `taskq` command and return what it prints.

    Raises:
        SystemExit: If the command failed; its exit code says why.
    """
    command = [sys.executable, "-m", "taskq", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.returncode)
    return done.stdout
