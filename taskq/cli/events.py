"""`taskq events` and `taskq history`: what happens, and what happened."""

import contextlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from taskq.app import TaskQ
from taskq.cli.errors import Failure
from taskq.cli.framework import Command, Group, json_option, opened_app
from taskq.cli.output import as_text, paint, say, table, write_json
from taskq.cli.values import SIZE, SPAN
from taskq.events.schema import Event, to_cloudevent
from taskq.events.stream import Reader, make_filter
from taskq.events.windows import Line, TumblingWindows, lines_of

if TYPE_CHECKING:
    from taskq.events.history import History

_POLL_S = 0.5
_COLUMNS = ("start", "task", "sent", "succeeded", "failed", "retried", "dead")


def _moment(time_us: int) -> str:
    moment = datetime.fromtimestamp(time_us / 1e6, UTC).astimezone()
    return moment.strftime("%Y-%m-%d %H:%M:%S.") + f"{time_us // 1000 % 1000:03d}"


def _facts(event: Event) -> str:
    data = event.data
    facts = []
    for name in ("task", "queue", "attempt", "worker", "schedule", "count", "reason", "parent_id"):
        if name in data:
            facts.append(f"{name}={data[name]}")
    if "runtime_us" in data:
        facts.append(f"runtime_s={data['runtime_us'] / 1e6:.6g}")
    error = data.get("error")
    if isinstance(error, dict):
        facts.append(f"error={error.get('type')}: {error.get('message', '')}".rstrip(": "))
    return " ".join(facts)


_COLOURS = {"task.succeeded": "green", "task.failed": "red", "task.retried": "yellow"}


def _show(event: Event, as_json: bool) -> None:
    if as_json:
        click.echo(as_text(to_cloudevent(event)))
        return
    kind = paint(event.type.ljust(18), _COLOURS.get(event.type))
    say(f"{_moment(event.time_us)}  {kind}  {event.subject}  {_facts(event)}")


@click.group(
    cls=Group,
    examples="""
    taskq events tail -A shop:app --state failure
    taskq events record -A shop:app
    taskq events stats -A shop:app --window 60s
    """,
)
def events() -> None:
    """Look at lifecycle events: live, recorded, counted."""


@events.command(
    examples="""
    taskq events tail --task mail.send
    taskq events tail --id 2f9d… --json
    """
)
@click.option("--task", default="", metavar="NAME", help="Only of this task.")
@click.option("--queue", default="", metavar="NAME", help="Only of this queue.")
@click.option("--state", default="", metavar="STATE", help="Only with this state, such as failure.")
@click.option(
    "--id", "task_id", default="", metavar="ID", help="Only of this task and its children."
)
@click.option("--type", "types", multiple=True, metavar="TYPE", help="Only such as task.failed.")
@click.option("--count", type=click.IntRange(1), help="End after so many.")
@json_option
def tail(
    task: str,
    queue: str,
    state: str,
    task_id: str,
    types: tuple[str, ...],
    count: int | None,
    as_json: bool,
) -> None:
    """Print events as they happen, until Ctrl-C; with --json one CloudEvent in each line."""
    wanted = make_filter(types, task, queue, state, task_id)
    shown = 0
    with opened_app() as app, contextlib.closing(app.broker.events()) as feed:
        reader = Reader(feed, wanted)
        while count is None or shown < count:
            for event in reader.read(_POLL_S)[: None if count is None else count - shown]:
                _show(event, as_json)
                shown += 1


def _file_option(command: Any) -> Any:
    text = "The history; beside the embedded file, else ./taskq-history.db."
    return click.option("--file", "path", metavar="PATH", help=text)(command)


@contextlib.contextmanager
def _history(app: TaskQ, path: str | None, **bounds: Any) -> Iterator["History"]:
    # Here, because it brings sqlite3 along.
    from taskq.events.history import History, history_path

    history = History(path or history_path(app.broker.url), **bounds)
    try:
        yield history
    finally:
        history.close()


def _is_embedded(app: TaskQ) -> bool:
    return app.broker.url.startswith("sqlite:")


def _catch_up(app: TaskQ, history: "History") -> None:
    """Bring the history of an embedded broker up to date, and say so when there is none at all."""
    if _is_embedded(app):
        from taskq.events.history import READER

        with contextlib.closing(app.broker.events(READER)) as feed:
            history.catch_up(feed)
    elif not history.count():
        raise Failure(f"{history.path} has no events; keep `taskq events record` running")


@events.command(
    examples="""
    taskq events record --file /var/lib/shop/history.db --max-age 14d
    taskq events record --once
    """
)
@_file_option
@click.option("--max-age", "max_age_s", type=SPAN, default=30 * 86400.0, help="Remove older (30d).")
@click.option(
    "--max-events", type=click.IntRange(1), default=10**7, help="Keep so many (10 million)."
)
@click.option("--max-bytes", type=SIZE, default="10GB", help="Keep the file below (10GB).")
@click.option("--once", is_flag=True, help="Record what waits, then end.")
def record(path: str | None, once: bool, **bounds: Any) -> None:
    """Write events into the history, until Ctrl-C.

    Of several such processes one records and the others stand by. What happens while none runs
    waits in the broker.
    """
    from taskq.events.history import READER

    with (
        opened_app() as app,
        _history(app, path, **bounds) as history,
        contextlib.closing(app.broker.events(READER)) as feed,
    ):
        click.echo(f"recording into {history.path}", err=True)
        while not once:
            history.read(feed, _POLL_S)
        history.catch_up(feed)
        history.prune()


@events.command(examples="taskq events replay --since 1h --json")
@_file_option
@click.option("--since", "since_s", type=SPAN, default=3600.0, help="From so long ago (1h).")
@click.option("--until", "until_s", type=SPAN, default=0.0, help="Until so long ago (now).")
@json_option
def replay(path: str | None, since_s: float, until_s: float, as_json: bool) -> None:
    """Print recorded events again, oldest first; with --json one CloudEvent in each line."""
    now_us = time.time_ns() // 1000
    with opened_app() as app, _history(app, path) as history:
        _catch_up(app, history)
        for event in history.between(now_us - round(since_s * 1e6), now_us - round(until_s * 1e6)):
            _show(event, as_json)


@events.command(
    examples="""
    taskq events stats --window 60s --since 15m
    taskq events stats --window 10s --follow
    """
)
@_file_option
@click.option("--window", "window_s", type=SPAN, default=60.0, help="Length of a window (60s).")
@click.option("--since", "since_s", type=SPAN, default=3600.0, help="From so long ago (1h).")
@click.option("--follow", is_flag=True, help="Count what happens from now on, until Ctrl-C.")
@click.option(
    "--lateness",
    "lateness_s",
    type=SPAN,
    default=5.0,
    help="With --follow: how long a window waits for late events (5s).",
)
@json_option
def stats(
    path: str | None,
    window_s: float,
    since_s: float,
    follow: bool,
    lateness_s: float,
    as_json: bool,
) -> None:
    """Count events and show run times by task and window of time.

    What was recorded is counted whole, in whatever order it came. With --follow a window is
    printed once it is over; events that come later are left out, and their number is told on
    stderr.
    """
    if window_s <= 0:
        raise click.UsageError("--window must be longer than 0")
    with opened_app() as app:
        if follow:
            _follow(app, TumblingWindows(window_s, lateness_s), lateness_s, as_json)
            return
        with _history(app, path) as history:
            _catch_up(app, history)
            now_us = time.time_ns() // 1000
            found = history.between(now_us - round(since_s * 1e6), now_us)
            lines = lines_of(found, window_s)
    if as_json:
        write_json([line.summary() for line in lines])
        return
    headings = [name.upper() for name in _COLUMNS]
    table([*headings, "P50 S", "P95 S", "P99 S"], [_cells(line) for line in lines], "no events")


def _cells(line: Line) -> list[Any]:
    facts = line.summary()
    start = _moment(line.start_us).partition(".")[0]
    times = [facts[f"p{share}_s"] for share in (50, 95, 99)]
    return [start, *(facts[name] for name in _COLUMNS[1:]), *times]


def _follow(app: TaskQ, windows: TumblingWindows, lateness_s: float, as_json: bool) -> None:
    grace_us = round((lateness_s + _POLL_S) * 1e6)
    told = 0
    with contextlib.closing(app.broker.events()) as feed:
        reader = Reader(feed)
        while True:
            lines = [line for event in reader.read(_POLL_S) for line in windows.add(event)]
            # Time goes on without events, too.
            lines += windows.flush(time.time_ns() // 1000 - grace_us)
            for line in lines:
                summary = line.summary()
                say(as_text(summary) if as_json else "  ".join(map(str, _cells(line))))
            if windows.late > told:
                told = windows.late
                click.echo(f"{told} events came after their window was over; not counted", err=True)


@click.command(
    cls=Command,
    examples="""
    taskq history 2f9d6f1e-… -A shop:app
    taskq history 2f9d6f1e-… --json
    """,
)
@click.argument("task_id", metavar="ID")
@_file_option
@json_option
def history(task_id: str, path: str | None, as_json: bool) -> None:
    """Show the life of a task: its attempts, and the tasks that it began."""
    with opened_app() as app, _history(app, path) as book:
        _catch_up(app, book)
        found = book.life(task_id)
    if not found:
        raise Failure(f"no event of task {task_id!r} is in {book.path}")
    if as_json:
        write_json([to_cloudevent(event) for event in found])
        return
    for event in found:
        _show(event, as_json=False)
