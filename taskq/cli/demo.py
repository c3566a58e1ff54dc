"""`taskq demo`: real tasks on an embedded queue, run by a real worker, shown as they go."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from taskq.app import TaskQ
    from taskq.result import AsyncResult

_LIMIT_S = 25.0
_TERMINAL = ("SUCCESS", "FAILURE", "CANCELLED", "EXPIRED")
_COLOURS = {"SUCCESS": "green", "FAILURE": "red", "RETRY": "yellow"}


@click.command(
    epilog="""\b
Example:
  taskq demo"""
)
@click.pass_context
def demo(context: click.Context) -> int:
    """Run real tasks of each kind on an embedded queue and show what happens; about 5 s."""
    with tempfile.TemporaryDirectory(prefix="taskq-demo-") as name:
        # Whatever is configured outside must not send the demo's tasks elsewhere.
        for variable in [key for key in os.environ if key.startswith("TASKQ_")]:
            del os.environ[variable]
        url = f"sqlite:///{name}/demo.db"
        os.environ.update({"TASKQ_BROKER": url, "TASKQ_RESULTS": url})
        from taskq.cli.demo_app import app

        click.echo(f"queue   {url}")
        with _worker(Path(name)) as process:
            click.echo(f"worker  taskq worker -A taskq.cli.demo_app:app -c 2   (pid {process.pid})")
            ok = _run(app)
        click.echo(f"worker  stopped with exit code {process.returncode}")
        app.close()
    return 0 if ok and process.returncode == 0 else 1


@contextmanager
def _worker(directory: Path) -> Iterator["subprocess.Popen[bytes]"]:
    log = (directory / "worker.log").open("wb")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "taskq", "worker"),
            *("-A", "taskq.cli.demo_app:app", "-c", "2", "-n", "demo"),
        ],
        stderr=log,
        stdin=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()
        if process.returncode:
            click.echo((directory / "worker.log").read_text(errors="replace"), err=True)


def _send(started: float) -> dict[str, tuple[str, "AsyncResult[Any]", str]]:
    """Send one task of each kind; returns label to (what it shows, handle, expected end)."""
    from taskq.canvas import chain
    from taskq.cli.demo_app import add, broken, fetch, flaky, stuck

    sent: dict[str, tuple[str, AsyncResult[Any], str]] = {
        "add(2, 3)": ("succeeds", add.delay(2, 3), "SUCCESS"),
        "fetch(0.5)": ("async def, succeeds", fetch.delay(0.5), "SUCCESS"),
        "flaky(2)": ("fails twice, is retried, succeeds", flaky.delay(2), "SUCCESS"),
        "add(1, 1)": ("delayed by 2 s", add.apply_async((1, 1), countdown=2), "SUCCESS"),
        "add(1, 2) | add(10)": (
            "a chain: the second gets the first's result",
            chain(add.s(1, 2), add.s(10)).delay(),
            "SUCCESS",
        ),
        "stuck()": ("passes its time limit of 1 s", stuck.delay(), "FAILURE"),
        "broken(42)": ("fails for good, becomes a dead letter", broken.delay(42), "FAILURE"),
    }
    for label, (text, handle, _) in sent.items():
        _say(started, "sent", label, f"{text}   {handle.id[:8]}")
    return sent


def _say(started: float, state: str, label: str, detail: str = "") -> None:
    shown = click.style(state.ljust(8), fg=_COLOURS.get(state), bold=state in _TERMINAL)
    click.echo(f"{time.monotonic() - started:6.2f} s  {shown} {label.ljust(20)} {detail}".rstrip())


def _run(app: "TaskQ") -> bool:
    started = time.monotonic()
    sent = _send(started)
    seen = dict.fromkeys(sent, "PENDING")
    while any(state not in _TERMINAL for state in seen.values()):
        if time.monotonic() - started > _LIMIT_S:
            click.echo(f"Error: not finished after {_LIMIT_S:g} s", err=True)
            return False
        for label, (_, handle, _) in sent.items():
            if seen[label] in _TERMINAL:
                continue
            state = handle.state
            if state != seen[label]:
                seen[label] = state
                _say(started, state, label, _detail(handle))
        time.sleep(0.02)
    return _summary(app, sent, seen)


def _detail(handle: "AsyncResult[Any]") -> str:
    record = handle.record()
    if record is None:
        return ""
    if record.error is not None:
        return f"{record.error.type}: {record.error.message}"
    return f"= {record.result()!r}" if record.state == "SUCCESS" else ""


def _summary(
    app: "TaskQ", sent: dict[str, tuple[str, "AsyncResult[Any]", str]], seen: dict[str, str]
) -> bool:
    from taskq.cli.base import print_table
    from taskq.deadletters import Filter, find

    as_expected = all(seen[label] == expected for label, (_, _, expected) in sent.items())
    # The state is stored before the dead letter is confirmed.
    deadline = time.monotonic() + 5
    letters = find(app.broker, Filter())
    while len(letters) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
        letters = find(app.broker, Filter())
    click.echo(
        "\nDead letters (see them with `taskq dead ls`, send again with `taskq dead replay`)"
    )
    rows = [
        {**letter.to_json(), "exception": letter.exception_type, "id": letter.id[:8]}
        for letter in letters
    ]
    print_table(rows, ("id", "task", "reason", "exception", "attempts"), "none")
    good = sum(state == "SUCCESS" for state in seen.values())
    click.echo(f"\n{len(sent)} tasks: {good} succeeded, {len(sent) - good} failed as they should")
    if not as_expected or len(letters) != 2:
        click.echo("Error: not what was expected", err=True)
        return False
    click.echo("all as expected; nothing was lost")
    return True
