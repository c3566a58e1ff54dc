"""`taskq demo`: real tasks on an embedded queue, run by a real worker, told as it happens."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from taskq import outcome
from taskq.cli.errors import Failure
from taskq.cli.framework import Command
from taskq.cli.leaving import end_in_order
from taskq.cli.output import STATE_COLOURS, as_text, clean, paint, say, short_id, table
from taskq.dead import DeadLetter, DeadLetters
from taskq.results.base import Record, decode_record

if TYPE_CHECKING:
    from taskq.app import TaskQ
    from taskq.result import AsyncResult

_APP: Final = "taskq.cli.demo_app:app"
_LIMIT_S: Final = 25.0
_POLL_S: Final = 0.02
_STOP_S: Final = 10.0
_DEAD: Final = {"stuck": "TimeLimitExceeded", "ship": "KeyError"}


@dataclass(slots=True)
class Step:
    """One task of the demo.

    Attributes:
        name: Shown for it.
        what: What it shows.
        send: Sends it.
        state: How it has to end.
        value: Its value, or the type of its exception; None where there is neither.
        handle: Set when it was sent.
        seen: Its last record, as bytes.
        ended_s: When it ended, in seconds after the start.
    """

    name: str
    what: str
    send: Callable[[], "AsyncResult[Any]"]
    state: str
    value: Any
    handle: "AsyncResult[Any] | None" = None
    seen: bytes | None = None
    ended_s: float = 0.0

    def record(self) -> Record | None:
        """Return its last record."""
        return None if self.seen is None else decode_record(self.seen)

    def as_expected(self) -> bool:
        """Return whether it ended as it has to."""
        record = self.record()
        if record is None or record.state != self.state:
            return False
        found = record.result() if record.error is None else record.error.type
        return bool(found == self.value)


def _steps() -> list[Step]:
    from taskq.cli.demo_app import add, fetch, flaky, greet, ship, stuck

    def cancelled() -> "AsyncResult[Any]":
        handle = greet.apply_async(("nobody",), countdown=60)
        handle.cancel()
        return handle

    order = {"item": "book"}
    done, failed = outcome.SUCCESS, outcome.FAILURE
    return [
        Step("greet", "succeeds", lambda: greet.delay("world"), done, "hello world"),
        Step("async", "is an async def", lambda: fetch.delay(0.3), done, "waited 0.3 s"),
        Step(
            "flaky",
            "fails twice, is retried, succeeds",
            lambda: flaky.delay(2),
            done,
            "worked at attempt 3",
        ),
        Step(
            "delayed",
            "waits 2 s in the broker",
            lambda: greet.apply_async(("later",), countdown=2),
            done,
            "hello later",
        ),
        Step(
            "chain",
            "add(2, 3) | add(10): each gets the last one's value",
            lambda: (add.s(2, 3) | add.s(10)).delay(),
            done,
            15,
        ),
        Step("cancelled", "is cancelled before it starts", cancelled, outcome.CANCELLED, None),
        Step(
            "stuck",
            "hangs; killed at its time limit of 1 s",
            stuck.delay,
            failed,
            _DEAD["stuck"],
        ),
        Step("ship", "fails for good", lambda: ship.delay(order), failed, _DEAD["ship"]),
    ]


@click.command(
    cls=Command,
    examples="""
    taskq demo
    taskq demo --keep /tmp/demo        keep the queue there, to look around in it
    """,
)
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Leave the queue in this directory; by default nothing is left behind.",
)
def demo(keep: Path | None) -> None:
    """Run real tasks of each kind with a real worker, and show what happens; about 4 s.

    Needs no server and no configuration: the queue is a file in a temporary directory.
    """
    with contextlib.ExitStack() as stack:
        end_in_order(stack)
        if keep is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="taskq-demo-")))
        else:
            directory = keep.absolute()
            directory.mkdir(parents=True, exist_ok=True)
        stack.enter_context(_isolated(directory))
        from taskq.cli.demo_app import app

        stack.enter_context(app)
        ok = _play(app, directory)
        if keep is not None:
            url = app.settings.broker
            say(f"\nKept; look around with\n  export TASKQ_BROKER={url} TASKQ_RESULTS={url}")
    if not ok:
        raise Failure("the demo did not go as it should; please report what is above")


@contextlib.contextmanager
def _isolated(directory: Path) -> Iterator[None]:
    """Hide the user's own settings: the demo's tasks must not go to a real broker."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("TASKQ_")]:
        del os.environ[name]
    url = f"sqlite:///{directory}/demo.db"
    empty = directory / "taskq.toml"
    empty.touch()
    os.environ.update(
        TASKQ_BROKER=url,
        TASKQ_RESULTS=url,
        TASKQ_CONFIG=str(empty),
        # The worker finds this very copy of taskq, installed or not.
        PYTHONPATH=os.pathsep.join(
            [str(Path(__file__).parents[2]), *filter(None, [before.get("PYTHONPATH")])]
        ),
    )
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _play(app: "TaskQ", directory: Path) -> bool:
    began_s = time.monotonic()

    def tell(word: str, name: str, text: str = "") -> None:
        at_s = time.monotonic() - began_s
        shown = paint(word.ljust(9), STATE_COLOURS.get(word))
        say(f"{at_s:6.2f} s  {shown}  {name.ljust(10)}  {clean(text)}".rstrip())

    say(f"A queue in the file {directory}/demo.db, a worker, and a task of each kind.\n")
    log = directory / "worker.log"
    with _worker(log, tell) as worker:
        steps = _steps()
        for step in steps:
            step.handle = step.send()
            tell("sent", step.name, step.what)
        in_time = _follow(app, steps, began_s, tell)
        letters = _dead_letters(app) if in_time else []
    code = worker.returncode
    _sum_up(steps, letters)
    good = in_time and code == 0 and _dead_as_expected(letters)
    good = good and all(step.as_expected() for step in steps)
    took_s = time.monotonic() - began_s
    if good:
        say(paint(f"\n{len(steps)} tasks in {took_s:.1f} s, all as expected.", "green"))
        return True
    say(f"\nThe worker ended with exit code {code}; its log:")
    say(clean(log.read_text(errors="replace"), lines=True))
    return False


@contextlib.contextmanager
def _worker(
    log: Path, tell: Callable[[str, str, str], None]
) -> Iterator["subprocess.Popen[bytes]"]:
    words = ["worker", "-A", _APP, "-c", "4", "-n", "demo"]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "taskq", *words],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    tell("started", "worker", f"taskq {' '.join(words)}   (pid {process.pid})")
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    tell("stopped", "worker", f"by TERM, exit code {process.returncode}")


def _follow(
    app: "TaskQ", steps: Sequence[Step], began_s: float, tell: Callable[[str, str, str], None]
) -> bool:
    """Tell every change of a task's state; return whether all ended in time."""
    store = app.results
    waiting = [step for step in steps if step.handle is not None]
    while store is not None and waiting and time.monotonic() - began_s < _LIMIT_S:
        records = store.fetch([step.handle.id for step in waiting if step.handle is not None])
        for step, data in zip(waiting, records, strict=True):
            if data is not None and data != step.seen:
                step.seen = data
                _tell_change(step, decode_record(data), tell)
                step.ended_s = time.monotonic() - began_s
        waiting = [step for step in waiting if not _has_ended(step)]
        time.sleep(_POLL_S)
    return not waiting


def _has_ended(step: Step) -> bool:
    record = step.record()
    return record is not None and record.state in outcome.TERMINAL


def _tell_change(step: Step, record: Record, tell: Callable[[str, str, str], None]) -> None:
    if record.state == outcome.PENDING:
        return
    text = ""
    if record.error is not None:
        text = f"{record.error.type}: {record.error.message}"
    elif record.state == outcome.SUCCESS:
        text = as_text(record.result())
    elif record.state == outcome.CANCELLED:
        text = "it never starts, even with no worker alive"
    tell(record.state, step.name, text)


def _dead_letters(app: "TaskQ") -> Sequence[DeadLetter]:
    """Return the dead letters; a state may be seen just before its letter."""
    letters = DeadLetters(app.broker)
    deadline_s = time.monotonic() + 5
    while len(letters.list()) < len(_DEAD) and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
    return letters.list()


def _dead_as_expected(letters: Sequence[DeadLetter]) -> bool:
    found = sorted((letter.task, letter.exception.type) for letter in letters)
    return found == sorted(_DEAD.items())


def _sum_up(steps: Sequence[Step], letters: Sequence[DeadLetter]) -> None:
    rows = []
    for step in steps:
        record = step.record()
        state = outcome.PENDING if record is None else record.state
        attempts = None if record is None or state == outcome.CANCELLED else record.attempt + 1
        verdict = "yes" if step.as_expected() else "NO"
        rows.append((step.name, step.what, state, attempts, f"{step.ended_s:.2f} s", verdict))
    say()
    table(("TASK", "WHAT IT SHOWS", "STATE", "ATTEMPTS", "AFTER", "AS EXPECTED"), rows)
    say("\nWhat failed for good is not lost; it is among the dead letters:\n")
    table(
        ("ID", "TASK", "REASON", "EXCEPTION"),
        [
            (short_id(letter.id), letter.task, letter.reason, letter.exception.type)
            for letter in letters
        ],
    )
    say("\n  taskq dead ls          lists them")
    say("  taskq dead show ID     shows arguments, traceback and attempts")
    say("  taskq dead replay ID   sends one again")
