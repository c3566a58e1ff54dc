"""`taskq dead`."""

import re
import sys
from collections.abc import Callable
from typing import Any

import click

from taskq.cli.base import (
    AppGroup,
    Command,
    app_option,
    confirm,
    json_option,
    open_app,
    print_json,
    print_table,
)
from taskq.deadletters import Filter, drop, find, replay

_COLUMNS = ("id", "task", "queue", "reason", "exception", "attempts", "failed_at")
_SPAN = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def _since(_context: click.Context, _parameter: click.Parameter, value: str | None) -> float:
    if value is None:
        return 0.0
    match = _SPAN.fullmatch(value)
    if match is None:
        raise click.BadParameter(f"{value!r} is no time span; write 30m, 12h or 7d")
    return float(match[1]) * _UNITS_S[match[2]]


def filter_options(command: Command) -> Command:
    """Add the options that choose letters."""
    for decorate in (
        click.argument("ids", metavar="[ID]...", nargs=-1),
        click.option("--task", default="", metavar="NAME", help="Only letters of this task."),
        click.option("--queue", default="", metavar="QUEUE", help="Only letters of this queue."),
        click.option("--reason", default="", metavar="REASON", help="Only letters dead for this."),
        click.option(
            "--exception", default="", metavar="TYPE", help="Exception type or fingerprint."
        ),
        click.option("--since", callback=_since, metavar="SPAN", help="Newer than 30m, 12h, 7d."),
    ):
        command = decorate(command)
    return command


def _filter(options: dict[str, Any]) -> Filter:
    return Filter(
        ids=options["ids"],
        task=options["task"],
        queue=options["queue"],
        reason=options["reason"],
        exception=options["exception"],
        newer_than_s=options["since"],
    )


@click.group(cls=AppGroup)
def dead() -> None:
    """Look at dead letters, send them again, or drop them."""


@dead.command(
    name="ls",
    epilog="""\b
Examples:
  taskq dead ls -A shop.tasks:app
  taskq dead ls --reason worker_lost --since 1h --json""",
)
@app_option
@filter_options
@click.option("--limit", type=int, default=0, metavar="N", help="At most N, the oldest first.")
@json_option
def list_letters(limit: int, as_json: bool, **options: Any) -> None:
    """List dead letters, oldest first; listing loses and spends none."""
    with open_app() as app:
        rows = [letter.to_json() for letter in find(app.broker, _filter(options), limit)]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        row["exception"] = row["exception"]["type"] or None
    print_table(rows, _COLUMNS, "no dead letters")


@dead.command(
    epilog="""\b
Example:
  taskq dead show 5f0c21"""
)
@app_option
@click.argument("task_id", metavar="ID")
@json_option
def show(task_id: str, as_json: bool) -> int:
    """Show everything about a dead letter: arguments, traceback, attempts, headers."""
    with open_app() as app:
        found = find(app.broker, Filter(ids=(task_id,)))
    if not found:
        click.echo(f"Error: no dead letter {task_id}; see `taskq dead ls`", err=True)
        return 1
    details = [letter.details() for letter in found]
    if as_json:
        print_json(details[0] if len(details) == 1 else details)
        return 0
    for detail in details:
        _print_details(detail)
    return 0


def _print_details(detail: dict[str, Any]) -> None:
    exception = detail.pop("exception")
    traceback = detail.pop("traceback")
    history = detail.pop("history")
    for name, value in detail.items():
        click.echo(f"{click.style(name.ljust(10), bold=True)} {value}")
    if exception["type"]:
        click.echo(
            f"{click.style('exception'.ljust(10), bold=True)} {exception['type']}: "
            f"{exception['message']} (fingerprint {exception['fingerprint']})"
        )
    for row in history:
        click.echo(f"  attempt {row['attempt']} at {row['at']}: {row['type']}: {row['message']}")
    if traceback:
        click.echo(traceback.rstrip())


def _change(
    word: str, yes: bool, everything: bool, which: Filter, act: Callable[..., int], as_json: bool
) -> int:
    chosen = which != Filter(_now_ms=which._now_ms)
    if not chosen and not everything:
        raise click.UsageError(f"Say which letters to {word}: an ID, a filter, or --all.")
    with open_app() as app:
        count = len(find(app.broker, which))
        if not count:
            click.echo("Error: no dead letter matches; nothing was changed", err=True)
            return 1
        confirm(f"{word.capitalize()} {count} dead letters?", yes)

        def progress(done: int) -> None:
            if done % 500 == 0:
                click.echo(f"{word}: {done} of {count}", err=True)

        changed = act(app.broker, progress)
    if as_json:
        print_json({"matched": count, word: changed})
    else:
        click.echo(f"{word}: {changed} letters")
    if changed < count and word == "replay":
        click.echo("letters that name no queue stayed; say where with --to", err=True)
    sys.stdout.flush()
    return 0


@dead.command(
    name="replay",
    epilog="""\b
Examples:
  taskq dead replay 5f0c21
  taskq dead replay --task mail.send --since 1d --yes""",
)
@app_option
@filter_options
@click.option("--to", default="", metavar="QUEUE", help="Send them to this queue instead.")
@click.option("--all", "everything", is_flag=True, help="All of them.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def replay_letters(to: str, everything: bool, yes: bool, as_json: bool, **options: Any) -> int:
    """Send dead letters to their queues again, with fresh attempts."""
    from taskq.brokers.base import check_queue_name

    if to:
        check_queue_name(to)
    which = _filter(options)
    return _change(
        "replay",
        yes or bool(options["ids"]),
        everything,
        which,
        lambda broker, progress: replay(broker, which, to, progress),
        as_json,
    )


@dead.command(
    name="drop",
    epilog="""\b
Example:
  taskq dead drop --reason malformed --yes""",
)
@app_option
@filter_options
@click.option("--all", "everything", is_flag=True, help="All of them.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def drop_letters(everything: bool, yes: bool, as_json: bool, **options: Any) -> int:
    """Delete dead letters for good."""
    which = _filter(options)
    return _change(
        "drop",
        yes,
        everything,
        which,
        lambda broker, progress: drop(broker, which, progress),
        as_json,
    )
