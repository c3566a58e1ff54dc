"""`taskq queues pause|resume|drain` and `taskq tasks`."""

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Final

import click

from taskq import clock
from taskq.app import TaskQ
from taskq.cli.errors import EX_FAILURE, Failure
from taskq.cli.framework import Command, Group, json_option, opened_app, several, why_option
from taskq.cli.output import say, suggestion, table, write_json
from taskq.cli.values import MOMENT, SPAN
from taskq.errors import TaskqError
from taskq.pauses import Kind, Pause

_ASK_S: Final = 0.5
_DRAIN_S: Final = 300.0

NAMES: Final = {"queue": "QUEUE...", "task": "TASK..."}


def pause_fields(pause: Pause | None) -> dict[str, Any] | None:
    """Return a pause as `--json` prints it; None for none."""
    if pause is None:
        return None
    return {
        "since": clock.to_iso(pause.since_ms),
        "until": clock.to_iso(pause.until_ms) if pause.until_ms else None,
        "by": pause.by,
        "why": pause.why,
    }


def pause_text(pause: Pause | None) -> str | None:
    """Return a pause in a few words for a table; None for none."""
    if pause is None:
        return None
    until = ""
    if pause.until_ms:
        left_s = max(0, pause.until_ms - clock.now_ms()) / 1000
        until = f" for {_span(left_s)} more"
    return f"paused{until} by {pause.by}" + (f": {pause.why}" if pause.why else "")


def _span(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def pauses_by_name(app: TaskQ, kind: Kind) -> dict[str, Pause]:
    """Return the pauses of a kind by name; none where results are off."""
    if app.results is None:
        return {}
    return {pause.name: pause for pause in app.pauses.list() if pause.kind == kind}


def ask_workers(app: TaskQ, command: str) -> list[dict[str, Any]]:
    """Return what workers answer in half a second; nothing when they cannot be asked."""
    try:
        return app.broker.ask({"command": command}, _ASK_S)
    # What workers would add is a convenience.
    except TaskqError:
        return []


_pause_options = several(
    click.option("--for", "for_s", type=SPAN, metavar="S", help="Resume by itself after this."),
    click.option("--until", type=MOMENT, metavar="DATE", help="Resume by itself then."),
    why_option,
    click.option("--by", metavar="NAME", help="Who pauses; user@host by default."),
    click.option("--force", is_flag=True, help="Also a name that nothing knows."),
)


def _refuse_unknown(kind: Kind, names: Sequence[str], known: Iterable[str], force: bool) -> None:
    """Refuse a misspelt name: its pause would stop nothing, and nobody would notice.

    Raises:
        Failure: If a name is not known.
    """
    listed = sorted(set(known))
    for name in names:
        if name not in listed and not force:
            raise Failure(
                f"there is no {kind} {name!r}{suggestion(name, listed)}; --force pauses it anyway"
            )


def _queues_of(app: TaskQ, names: Sequence[str]) -> list[str]:
    there = [name for name, depth in app.broker.depths(names).items() if depth is not None]
    consumed = [str(name) for one in ask_workers(app, "workers") for name in one.get("queues", ())]
    return [*app_queues(app), *there, *consumed]


def app_queues(app: TaskQ) -> tuple[str, ...]:
    """Return the queues that a worker of an app consumes by default."""
    from taskq.worker.manifest import make_manifest

    return make_manifest(app).queues()


def _tasks_of(app: TaskQ) -> list[str]:
    answers = ask_workers(app, "registered")
    return [*app.tasks, *(str(one["task"]) for answer in answers for one in answer["tasks"])]


def _pause(
    kind: Kind,
    names: Sequence[str],
    known: Callable[[TaskQ], Iterable[str]],
    *,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    with opened_app() as app:
        pause = app.pauses.pause_queue if kind == "queue" else app.pauses.pause_task
        # Before anything is asked of workers: without a store nothing can be paused.
        app.pauses.list()
        _refuse_unknown(kind, names, () if force else known(app), force)
        made = [pause(name, **options) for name in names]
    if as_json:
        write_json([{kind: one.name, "paused": pause_fields(one)} for one in made])
        return
    for one in made:
        say(f"{kind} {one.name} {pause_text(one)}")


def _resume(kind: Kind, names: Sequence[str], as_json: bool) -> int:
    with opened_app() as app:
        resume = app.pauses.resume_queue if kind == "queue" else app.pauses.resume_task
        rows = [{kind: name, "resumed": resume(name)} for name in names]
    if as_json:
        write_json(rows)
    else:
        for row in rows:
            say(f"{kind} {row[kind]} {'goes on' if row['resumed'] else 'was not paused'}")
    return 0 if all(row["resumed"] for row in rows) else EX_FAILURE


@click.command(
    cls=Command,
    examples="""
    taskq queues pause mail --for 10m --why 'the relay is being moved'
    taskq queues pause mail reports --until 2030-01-31T06:00:00+01:00
    """,
)
@click.argument("names", metavar=NAMES["queue"], nargs=-1, required=True)
@_pause_options
@json_option
def pause(names: tuple[str, ...], **options: Any) -> None:
    """Pause queues: no worker starts anything of them until they are resumed.

    It holds for all workers, those that start later included, within a second. What runs goes on,
    what waits in workers goes back to its queue, and sending goes on. Needs a results store.
    """
    _pause("queue", names, lambda app: _queues_of(app, names), **options)


@click.command(cls=Command, examples="taskq queues resume mail")
@click.argument("names", metavar=NAMES["queue"], nargs=-1, required=True)
@json_option
def resume(names: tuple[str, ...], as_json: bool) -> int:
    """Resume paused queues; exit code 1 when one was not paused."""
    return _resume("queue", names, as_json)


@click.command(
    cls=Command,
    examples="""
    taskq queues drain mail --why 'schema change'
    taskq queues drain mail --timeout 30m && ./migrate && taskq queues resume mail
    """,
)
@click.argument("name", metavar="QUEUE")
@click.option(
    "--timeout",
    "timeout_s",
    type=SPAN,
    default=_DRAIN_S,
    metavar="S",
    help=f"How long to wait for what runs ({_span(_DRAIN_S)} by default).",
)
@_pause_options
@json_option
def drain(
    name: str,
    timeout_s: float,
    for_s: float | None,
    until: datetime | None,
    why: str,
    by: str | None,
    force: bool,
    as_json: bool,
) -> int:
    """Pause a queue and wait until no worker runs or holds anything of it.

    What waits in the queue stays there. Exit code 1 when something still runs after the timeout;
    the queue stays paused then.
    """
    with opened_app() as app:
        app.pauses.list()
        _refuse_unknown("queue", [name], () if force else _queues_of(app, [name]), force)
        made = app.pauses.pause_queue(name, for_s=for_s, until=until, why=why, by=by)
        deadline = time.monotonic() + timeout_s
        while left := _left_of(app, name):
            if time.monotonic() >= deadline:
                break
            time.sleep(0.1)
    if as_json:
        row = {"queue": name, "drained": not left, "left": left or None}
        write_json({**row, "paused": pause_fields(made)})
    elif not left:
        say(f"queue {name} is drained, and {pause_text(made)}")
    if left and not as_json:
        raise Failure(f"after {timeout_s:g} s {left}; queue {name} stays paused")
    return EX_FAILURE if left else 0


def _left_of(app: TaskQ, name: str) -> str:
    """Return what workers still have of a queue, or an empty text."""
    answers = app.broker.ask({"command": "held"}, _ASK_S)
    for answer in answers:
        count = answer.get("queues", {}).get(name, 0)
        if count:
            return f"worker {answer['worker']} holds {count} tasks of it"
        unaware = name in answer.get("consumes", ()) and name not in answer.get("paused", ())
        if unaware:
            return f"worker {answer['worker']} has not seen the pause yet"
    depth = app.broker.depths([name])[name]
    if depth is None:
        return ""
    if depth.unsettled > 0:
        return f"{depth.unsettled} tasks of it are in workers' hands"
    if depth.unsettled < 0 < depth.consumers:
        return f"{depth.consumers} consumers are still on it"
    return ""


@click.group(
    cls=Group,
    examples="""
    taskq tasks ls -A shop:app
    taskq tasks pause mail.send --for 10m --why 'the relay is down'
    taskq tasks resume mail.send
    """,
)
def tasks() -> None:
    """Look at tasks, pause and resume them."""


@tasks.command(
    name="ls",
    examples="""
    taskq tasks ls -A shop:app
    taskq tasks ls --json
    """,
)
@json_option
def list_tasks(as_json: bool) -> None:
    """List the tasks of the app and of running workers, and which are paused."""
    with opened_app() as app:
        rows = _task_rows(app)
    if as_json:
        write_json([{**row, "paused": pause_fields(row["paused"])} for row in rows])
        return
    cells = [(row["task"], row["queue"], row["workers"], pause_text(row["paused"])) for row in rows]
    table(("TASK", "QUEUE", "WORKERS", "PAUSED"), cells, "no tasks; name an app with -A?")


def _task_rows(app: TaskQ) -> list[dict[str, Any]]:
    from taskq.worker.manifest import make_manifest

    paused = pauses_by_name(app, "task")
    found: dict[str, tuple[str | None, int]] = {
        info.name: (info.queue, 0) for info in make_manifest(app).tasks.values()
    }
    for answer in ask_workers(app, "registered"):
        for one in answer.get("tasks") or ():
            _, count = found.get(one["task"], ("", 0))
            found[str(one["task"])] = str(one["queue"]), count + 1
    for name in paused:
        found.setdefault(name, (None, 0))
    return [
        {"task": name, "queue": queue, "workers": count, "paused": paused.get(name)}
        for name, (queue, count) in sorted(found.items())
    ]


@tasks.command(
    name="pause",
    examples="""
    taskq tasks pause mail.send --for 10m --why 'the relay is down'
    taskq tasks pause reports.build --until 2030-01-31T06:00:00+01:00
    """,
)
@click.argument("names", metavar=NAMES["task"], nargs=-1, required=True)
@_pause_options
@json_option
def pause_tasks(names: tuple[str, ...], **options: Any) -> None:
    """Pause tasks by name, whatever their queue: their messages wait without an attempt spent.

    It holds for all workers within a second. What runs goes on, and sending goes on. Needs a
    results store.
    """
    _pause("task", names, _tasks_of, **options)


@tasks.command(name="resume", examples="taskq tasks resume mail.send")
@click.argument("names", metavar=NAMES["task"], nargs=-1, required=True)
@json_option
def resume_tasks(names: tuple[str, ...], as_json: bool) -> int:
    """Resume paused tasks; exit code 1 when one was not paused."""
    return _resume("task", names, as_json)
