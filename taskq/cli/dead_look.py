"""`taskq dead ls`, `show` and `audit`."""

from collections.abc import Mapping, Sequence
from typing import Any

import click

from taskq.app import TaskQ
from taskq.cli.dead_options import choosing, filter_of, journals_of, letters_of, no_letter
from taskq.cli.framework import Command, json_option, opened_app
from taskq.cli.output import as_text, pairs, progress, say, short_id, table, write_json
from taskq.dead import DeadLetter, Filter, Journal
from taskq.dead.edit import parameter_names
from taskq.errors import ConfigError
from taskq.redact import Redactor

_SIZE = 50


@click.command(
    name="ls",
    cls=Command,
    examples="""
    taskq dead ls
    taskq dead ls --task 'mail.*' --since 2h --json
    taskq dead ls --fingerprint 3fa1                 failures at one place of the code
    taskq dead ls --limit 50                         the newest 50
    taskq dead ls --limit 50 --page 2                the 50 before them
    """,
)
@choosing
@click.option(
    "--limit", type=click.IntRange(0), default=0, metavar="N", help="Only the newest N; 0 for all."
)
@click.option(
    "--page",
    type=click.IntRange(1),
    default=1,
    metavar="P",
    help="Pages of --limit letters (50 by default); page 1, the newest, makes the index anew.",
)
@json_option
def list_letters(limit: int, page: int, as_json: bool, **which: Any) -> None:
    """List dead letters, oldest first.

    With --limit an index of them is made in the user's state directory, so that the pages behind
    the first come at once, however many letters there are, and fit together.
    """
    wanted = filter_of(which)
    footer = ""
    with opened_app() as app:
        if limit or page > 1:
            letters, footer = _page(app, wanted, page, limit or _SIZE)
        else:
            with progress("dead letters read:") as count:
                letters = letters_of(app).list(wanted, 0, count)
        _hint(app)
    if as_json:
        write_json([letter.to_json() for letter in letters])
        return
    columns = ("ID", "TASK", "QUEUE", "REASON", "RUNS", "FAILED AT", "EXCEPTION")
    table(columns, [_row(letter) for letter in letters], "no dead letters")
    if footer:
        click.echo(footer, err=True)


def _page(app: TaskQ, wanted: Filter, number: int, size: int) -> tuple[Sequence[DeadLetter], str]:
    from taskq import clock
    from taskq.dead.snapshot import Snapshot

    snapshot = Snapshot(app.broker, app.settings.state_dir)
    if number == 1 or not snapshot.exists:
        with progress("dead letters read:") as count:
            snapshot.take(letters_of(app), count)
    page = snapshot.page(wanted, number, size)
    if page.pages < 2:
        return page.letters, ""
    moment = clock.to_iso(page.at_ms)[:19].replace("T", " ")
    more = f"; older ones: --page {number + 1}" if number < page.pages else ""
    return page.letters, (
        f"page {number} of {page.pages:,}, {page.total:,} letters as of {moment} UTC{more}"
    )


def _hint(app: TaskQ) -> None:
    try:
        cut_off = journals_of(app).unfinished(app.broker.url, app.broker.options.prefix)
    except (ConfigError, OSError):
        return
    for journal in cut_off:
        if not journal.running:
            click.echo(
                f"a replay was cut off; go on with it: taskq dead replay --resume {journal.job}",
                err=True,
            )


def _row(letter: DeadLetter) -> Sequence[Any]:
    error = letter.exception
    what = f"{error.type}: {error.message}" if error.type else error.message
    when = letter.failed_at[:19].replace("T", " ")
    return (
        short_id(letter.id),
        letter.task or "?",
        letter.queue or "?",
        letter.reason,
        letter.attempts,
        when or "?",
        what.partition("\n")[0],
    )


@click.command(
    cls=Command,
    examples="""
    taskq dead show 1f0c8c0e --json
    taskq dead show -A shop:app 1f0c8c0e               hides secret positional arguments too
    """,
)
@click.argument("letter_id", metavar="ID")
@click.option("--reveal", is_flag=True, help="Hide no arguments and headers.")
@json_option
def show(letter_id: str, reveal: bool, as_json: bool) -> None:
    """Show all that is known of a dead letter: arguments, traceback, earlier attempts, headers.

    Arguments and headers whose name sounds like a secret (the setting `redact`) are shown as ***.
    """
    with opened_app() as app:
        with progress("dead letters read:") as count:
            letters = letters_of(app).list(Filter(ids=(letter_id,)), 0, count)
        if not letters:
            raise no_letter(letter_id)
        redactor = Redactor(() if reveal else app.settings.redact)
        found = [
            letter.to_json(True, redactor, parameter_names(app.tasks.get(letter.task)))
            for letter in letters
        ]
    if as_json:
        write_json(found[0] if len(found) == 1 else found)
        return
    for number, data in enumerate(found):
        if number:
            say()
        pairs(_lines(data))


def _lines(data: dict[str, Any]) -> list[tuple[str, Any]]:
    error = data.pop("exception")
    history, traceback, headers = (data.pop(name) for name in ("history", "traceback", "headers"))
    args, kwargs = data.pop("args"), data.pop("kwargs")
    rows = [(name, value) for name, value in data.items() if value not in ("", None)]
    if args is not None:
        rows += [("args", as_text(args)), ("kwargs", as_text(kwargs))]
    rows += [(f"header {name}", as_text(value)) for name, value in headers.items()]
    rows.append(("exception", f"{error['type']}: {error['message']}"))
    rows.append(("fingerprint", error["fingerprint"]))
    if history:
        lines = [f"{a['attempt']}  {a['at']}  {a['type']}: {a['message']}" for a in history]
        rows.append(("earlier attempts", "\n".join([*lines, " "])))
    if traceback:
        rows.append(("traceback", f"{traceback}\n "))
    return rows


@click.command(
    cls=Command,
    examples="""
    taskq dead audit
    taskq dead audit --json                          with the ids of all letters
    """,
)
@json_option
def audit(as_json: bool) -> None:
    """List what this user did to dead letters on this machine: replays, edits, drops, imports."""
    with opened_app() as app:
        rows = [_job(journal) for journal in journals_of(app).all()]
    if as_json:
        write_json(rows)
        return
    columns = ("JOB", "ACTION", "AT", "USER", "BROKER", "CHOSEN", "DONE", "STATE")
    names = ("job", "action", "at", "user", "broker", "chosen", "done", "state")
    table(columns, [[row[name] for name in names] for row in rows], "nothing yet")


def _job(journal: Journal) -> Mapping[str, Any]:
    head, ended = journal.head, journal.ended
    state = "ended" if ended is not None else "running" if journal.running else "cut off"
    return {
        "job": journal.job,
        **{name: head.get(name) for name in ("action", "at", "user", "host", "broker", "prefix")},
        "filter": head.get("filter") or {},
        "to": head.get("to") or head.get("queue") or None,
        "chosen": head.get("chosen"),
        "done": len(set(journal.sent)) if ended is None else ended.get("ended"),
        "state": "failed" if ended is not None and "error" in ended else state,
        "error": None if ended is None else ended.get("error"),
        "ids": sorted(key[0] for key in journal.keys),
    }
