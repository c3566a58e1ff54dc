"""`taskq dead`: list, show, replay and drop dead letters."""

from collections.abc import Sequence
from typing import Any, TypeVar

import click

from taskq.app import TaskQ
from taskq.brokers.base import check_queue_name
from taskq.cli.errors import EX_FAILURE, EX_OK, Failure
from taskq.cli.framework import Group, confirm, json_option, opened_app, yes_option
from taskq.cli.output import as_text, pairs, progress, say, short_id, table, write_json
from taskq.cli.values import SINCE
from taskq.deadletters import Chosen, DeadLetter, DeadLetters, Filter, same_id
from taskq.resend import REASONS

Decorated = TypeVar("Decorated", bound=Any)


def _choosing(command: Decorated) -> Decorated:
    """Add what says which letters."""
    options = (
        click.argument("ids", metavar="[ID]...", nargs=-1),
        click.option("--task", default="", metavar="NAME", help="Of this task; * and ? match."),
        click.option("--queue", default="", metavar="NAME", help="That came from this queue."),
        click.option(
            "--reason", type=click.Choice(REASONS), metavar="REASON", help="Dead for this."
        ),
        click.option(
            "--since",
            "since_ms",
            default=0,
            type=SINCE,
            metavar="WHEN",
            help="Dead since then: 30m, 12h, 7d, or a date.",
        ),
        click.option("--exception", default="", metavar="TYPE", help="With this exception type."),
        click.option("--fingerprint", default="", metavar="HEX", help="With this fingerprint."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _filter(which: dict[str, Any]) -> Filter:
    return Filter(**{name: value for name, value in which.items() if value})


def _letters(app: TaskQ) -> DeadLetters:
    return DeadLetters(app.broker, app.results)


@click.group(
    cls=Group,
    examples="""
    taskq dead ls
    taskq dead ls --reason failed --since 1h --task 'mail.*'
    taskq dead show 1f0c8c
    taskq dead replay 1f0c8c
    taskq dead replay --exception ConnectionError --yes
    """,
)
def dead() -> None:
    """Look after dead letters: messages that ended for good without success.

    Looking at them never loses or spends them. An ID may be cut to its first 6 characters.

    Reasons: failed, worker_lost, malformed, unknown_task, rejected, unroutable, delivery_limit.
    """


@dead.command(
    name="ls",
    examples="""
    taskq dead ls
    taskq dead ls --task 'mail.*' --since 2h --json
    taskq dead ls --fingerprint 3fa1                 failures at one place of the code
    """,
)
@_choosing
@click.option(
    "--limit", type=click.IntRange(0), default=0, metavar="N", help="Only the newest N; 0 for all."
)
@json_option
def list_letters(limit: int, as_json: bool, **which: Any) -> None:
    """List dead letters, oldest first."""
    with opened_app() as app, progress("dead letters read:") as count:
        letters = _letters(app).list(_filter(which), limit, count)
    if as_json:
        write_json([letter.to_json() for letter in letters])
        return
    columns = ("ID", "TASK", "QUEUE", "REASON", "RUNS", "FAILED AT", "EXCEPTION")
    table(columns, [_row(letter) for letter in letters], "no dead letters")


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


@dead.command(examples="taskq dead show 1f0c8c --json")
@click.argument("letter_id", metavar="ID")
@json_option
def show(letter_id: str, as_json: bool) -> None:
    """Show all that is known of a dead letter: arguments, traceback, earlier attempts, headers."""
    with opened_app() as app, progress("dead letters read:") as count:
        letters = _letters(app).list(Filter(ids=(letter_id,)), 0, count)
    if not letters:
        raise _no_letter(letter_id)
    if as_json:
        found = [letter.to_json(full=True) for letter in letters]
        write_json(found[0] if len(found) == 1 else found)
        return
    for number, letter in enumerate(letters):
        if number:
            say()
        pairs(_lines(letter))


def _no_letter(letter_id: str) -> Failure:
    return Failure(f"there is no dead letter {letter_id!r}; `taskq dead ls` lists all")


def _lines(letter: DeadLetter) -> list[tuple[str, Any]]:
    data = letter.to_json(full=True)
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


def _chosen(dead_letters: DeadLetters, word: str, everything: bool, which: Filter) -> Chosen:
    """Choose letters as the command line says.

    Raises:
        click.UsageError: If it does not say which.
        Failure: If there is no letter of an id that was given.
    """
    if which == Filter() and not everything:
        raise click.UsageError(f"which letters? Give IDs, filters, or --all to {word} every one.")
    with progress("dead letters read:") as count:
        chosen = dead_letters.choose(which, count)
    for wanted in which.ids:
        if not any(same_id(letter_id, wanted) for letter_id in chosen.ids):
            raise _no_letter(wanted)
    return chosen


def _all_option(command: Decorated) -> Decorated:
    option = click.option("--all", "everything", is_flag=True, help="Every dead letter.")
    changed: Decorated = option(command)
    return changed


@dead.command(
    examples="""
    taskq dead replay 1f0c8c
    taskq dead replay --task mail.send --since 1d
    taskq dead replay --all --yes
    """
)
@_choosing
@click.option("--to", default="", metavar="QUEUE", help="Send them to this queue instead.")
@_all_option
@yes_option
@json_option
def replay(to: str, everything: bool, yes: bool, as_json: bool, **which: Any) -> int:
    """Send dead letters to their queues again, with the attempts at 0.

    A letter is removed once the broker has confirmed its message. The recorded failure is
    forgotten, so that `taskq result` shows the new run.
    """
    if to:
        check_queue_name(to)
    wanted = _filter(which)
    with opened_app() as app:
        dead_letters = _letters(app)
        chosen = _chosen(dead_letters, "replay", everything, wanted)
        if chosen.ids:
            confirm(f"Replay {len(chosen.ids)} dead letters?", yes or bool(wanted.ids))
        with progress("dead letters replayed or passed:") as count:
            sent = dead_letters.replay(chosen, to, count) if chosen.ids else []
    kept = [] if to else chosen.homeless
    if as_json:
        write_json({"chosen": len(chosen.ids), "replayed": sent, "kept": kept})
    else:
        say(f"replayed {len(sent)} of {len(chosen.ids)} dead letters")
    if kept:
        raise Failure(
            f"kept {', '.join(kept[:5])}{' and more' if kept[5:] else ''}: nobody knows their "
            "queue; say where with --to"
        )
    return EX_OK if len(sent) >= len(chosen.ids) else EX_FAILURE


@dead.command(
    examples="""
    taskq dead drop 1f0c8c
    taskq dead drop --reason malformed --yes
    taskq dead drop --all
    """
)
@_choosing
@_all_option
@yes_option
@json_option
def drop(everything: bool, yes: bool, as_json: bool, **which: Any) -> int:
    """Delete dead letters for good."""
    wanted = _filter(which)
    with opened_app() as app:
        dead_letters = _letters(app)
        chosen = _chosen(dead_letters, "drop", everything, wanted)
        if chosen.ids:
            confirm(f"Delete {len(chosen.ids)} dead letters for good?", yes or bool(wanted.ids))
        with progress("dead letters dropped or passed:") as count:
            gone = dead_letters.drop(chosen, count) if chosen.ids else []
    if as_json:
        write_json({"chosen": len(chosen.ids), "dropped": gone})
    else:
        say(f"dropped {len(gone)} of {len(chosen.ids)} dead letters")
    return EX_OK if len(gone) >= len(chosen.ids) else EX_FAILURE
