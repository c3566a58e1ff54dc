"""`taskq cancel`: by id, or by workflow, name and header."""

from typing import Any

import click

from taskq import outcome
from taskq.cancelling import CancelCount
from taskq.cli.errors import EX_OK, Failure
from taskq.cli.framework import Command, json_option, opened_app
from taskq.cli.output import say, write_json
from taskq.cli.values import SPAN


def _headers(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"{text!r} is no header; write NAME=VALUE")
        found[name] = value
    return found


@click.command(
    cls=Command,
    examples="""
    taskq cancel 1f0c8c0e-... 2b7d11aa-...
    taskq cancel --root 1f0c8c0e-...                  a whole workflow
    taskq cancel --task mail.send --dry-run           how many would it be?
    taskq cancel --task mail.send --header tenant=acme
    """,
)
@click.argument("task_ids", metavar="[ID]...", nargs=-1)
@click.option("--root", "root_id", metavar="ID", help="All tasks of the workflow that began so.")
@click.option("--task", metavar="NAME", help="All tasks of this name that were sent before now.")
@click.option(
    "--header",
    "headers",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_headers,
    help="All tasks with this header that were sent before now; may be given more than once.",
)
@click.option("--dry-run", is_flag=True, help="Count what would be cancelled, and change nothing.")
@click.option(
    "--ttl",
    "ttl_s",
    type=SPAN,
    metavar="S",
    help="How long a cancel without ID is remembered (367d by default, longer than any delay).",
)
@json_option
def cancel(
    task_ids: tuple[str, ...],
    root_id: str | None,
    task: str | None,
    headers: dict[str, str],
    dry_run: bool,
    ttl_s: float | None,
    as_json: bool,
) -> int:
    """Cancel tasks: they never start, even if no worker is alive now, and running ones are ended.

    A running task is asked to end, and stopped after the worker's cancel_grace_s. Of --root, --task
    and --header, what is given must all be so. Exit code 1 when a task ID has ended already or is
    unknown.
    """
    by_rule = bool(root_id or task or headers)
    if by_rule == bool(task_ids):
        raise click.UsageError("name tasks by ID, or by --root, --task and --header")
    if not by_rule:
        return _by_id(task_ids, dry_run, as_json)
    options = {} if ttl_s is None else {"ttl_s": round(ttl_s)}
    with opened_app() as app:
        counted = app.cancel_all(
            root_id=root_id, task=task, headers=headers or None, dry_run=dry_run, **options
        )
    if as_json:
        write_json(
            {
                "dry_run": dry_run,
                "running": counted.running,
                "held": counted.held,
                "waiting": counted.waiting,
                "workers": counted.workers,
            }
        )
    else:
        say(_sentence(counted, dry_run))
    return EX_OK


def _sentence(counted: CancelCount, dry_run: bool) -> str:
    begin = "would cancel" if dry_run else "cancelled"
    running = f"{counted.running:,} running ({counted.workers} workers answered)"
    if counted.waiting is not None:
        return f"{begin} {counted.waiting:,} waiting tasks, {running}"
    return (
        f"{begin} {counted.held:,} tasks in workers' hands, {running}, and what waits in the "
        "queues: this broker cannot look into them, workers cancel it when they meet it"
    )


def _by_id(task_ids: tuple[str, ...], dry_run: bool, as_json: bool) -> int:
    rows: list[dict[str, Any]] = []
    with opened_app() as app:
        if dry_run and app.results is None:
            # The same answer as without --dry-run.
            app.cancel(task_ids[0])
        for task_id in task_ids:
            done = not dry_run and app.cancel(task_id)
            state = outcome.CANCELLED if done else app.result(task_id).state
            possible = state == outcome.CANCELLED or state not in (
                outcome.UNKNOWN,
                *outcome.TERMINAL,
            )
            answer = possible if dry_run else done
            rows.append({"id": task_id, "cancelled": answer, "state": state})
    if dry_run:
        for row in rows:
            row["dry_run"] = True
    if as_json:
        write_json(rows)
    for row in rows:
        if row["cancelled"] and not as_json:
            say(f"{row['id']} " + ("would be cancelled" if dry_run else "cancelled"))
    bad = [f"{row['id']} is {row['state']}" for row in rows if not row["cancelled"]]
    if bad:
        raise Failure(f"not cancelled: {', '.join(bad)}; only what has not ended can be")
    return EX_OK
