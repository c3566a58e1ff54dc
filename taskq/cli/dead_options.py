"""What the commands of `taskq dead` share: which letters, and the words about them."""

from typing import Any, TypeVar

import click

from taskq.app import TaskQ
from taskq.cli.errors import Failure
from taskq.cli.framework import several
from taskq.cli.output import progress
from taskq.cli.values import SINCE
from taskq.dead import Chosen, DeadLetters, Filter, Journals, same_id
from taskq.resend import REASONS

Decorated = TypeVar("Decorated", bound=Any)


choosing = several(
    click.argument("ids", metavar="[ID]...", nargs=-1),
    click.option("--task", default="", metavar="NAME", help="Of this task; * and ? match."),
    click.option("--queue", default="", metavar="NAME", help="That came from this queue."),
    click.option("--reason", type=click.Choice(REASONS), metavar="REASON", help="Dead for this."),
    click.option(
        "--since",
        "since_ms",
        default=0,
        type=SINCE,
        metavar="WHEN",
        help="Dead since then: 30m, 12h, 7d ago, or a date.",
    ),
    click.option(
        "--before",
        "before_ms",
        default=0,
        type=SINCE,
        metavar="WHEN",
        help="Dead before then: 30m, 12h, 7d ago, or a date.",
    ),
    click.option("--exception", default="", metavar="TYPE", help="With this exception type."),
    click.option("--fingerprint", default="", metavar="HEX", help="With this fingerprint."),
    click.option(
        "--attempts",
        default=0,
        type=click.IntRange(0),
        metavar="N",
        help="Started at least N times.",
    ),
)
"""Adds what says which letters."""


def all_option(command: Decorated) -> Decorated:
    """Add `--all` as the argument `everything`."""
    option = click.option("--all", "everything", is_flag=True, help="Every dead letter.")
    changed: Decorated = option(command)
    return changed


def filter_of(which: dict[str, Any]) -> Filter:
    """Return the filter that options of `choosing` make."""
    return Filter(**{name: value for name, value in which.items() if value})


def letters_of(app: TaskQ) -> DeadLetters:
    """Return the dead letters of an app, with the journals of this user."""
    return DeadLetters(app.broker, app.results, journals_of(app))


def journals_of(app: TaskQ) -> Journals:
    """Return the journals of this user."""
    return Journals(app.settings.state_dir)


def no_letter(letter_id: str) -> Failure:
    """Return the failure to find a letter."""
    return Failure(f"there is no dead letter {letter_id!r}; `taskq dead ls` lists all")


def choose(letters: DeadLetters, word: str, everything: bool, wanted: Filter) -> Chosen:
    """Choose letters as the command line says.

    Args:
        letters: The letters.
        word: What is to be done to them, for the error.
        everything: Whether all are meant.
        wanted: Which are meant.

    Raises:
        click.UsageError: If it does not say which.
        Failure: If there is no letter of an id, several of a shortened one, or none at all.
    """
    if wanted == Filter() and not everything:
        raise click.UsageError(f"which letters? Give IDs, filters, or --all to {word} every one.")
    with progress("dead letters read:") as count:
        chosen = letters.choose(wanted, count)
    for one in wanted.ids:
        named = {letter_id for letter_id in chosen.ids if same_id(letter_id, one)}
        if not named:
            raise no_letter(one)
        if len(named) > 1 and one not in named:
            raise Failure(f"{one!r} is the end of {len(named)} ids; give one in full")
    if not chosen.ids and wanted != Filter():
        raise Failure("no dead letter matches; nothing was changed. `taskq dead ls` lists all")
    return chosen
