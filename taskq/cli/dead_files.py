"""`taskq dead export` and `import`."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import click

from taskq.brokers.base import Verdict
from taskq.cli.dead_options import all_option, choosing, filter_of, letters_of
from taskq.cli.errors import EX_OK, Failure
from taskq.cli.framework import Command, json_option, opened_app
from taskq.cli.output import progress, say, write_json
from taskq.dead import DeadLetter, Filter
from taskq.dead.files import read_letters, write_letter


@contextmanager
def _new_file(name: str) -> Iterator[TextIO]:
    """Give a file that only its owner can read, and that has its name when it is complete."""
    path = Path(name)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except OSError as error:
        raise Failure(f"cannot write {path}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


@click.command(
    cls=Command,
    examples="""
    taskq dead export --all -o letters.jsonl
    taskq dead export --task mail.send --since 1d | jq .exception.message
    """,
)
@choosing
@click.option("-o", "--output", default="-", metavar="FILE", help="Where to; - is stdout.")
@all_option
def export(output: str, everything: bool, **which: Any) -> int:
    """Write dead letters as JSON lines, exact to the byte; they stay where they are.

    The lines hold the tasks' arguments, nothing hidden.
    """
    wanted = filter_of(which)
    if wanted == Filter() and not everything:
        raise click.UsageError("which letters? Give IDs, filters, or --all to export every one.")
    written = 0

    def write(letter: DeadLetter, stream: TextIO) -> Verdict:
        nonlocal written
        if wanted.matches(letter):
            written += 1
            stream.write(write_letter(letter) + "\n")
        return "keep"

    with opened_app() as app, progress("dead letters read:") as count:
        letters = letters_of(app)
        if output == "-":
            for letter in letters.list(wanted, 0, count):
                write(letter, sys.stdout)
        else:
            with _new_file(output) as stream:
                letters.walk(lambda letter: write(letter, stream), count)
                if not written and not everything:
                    raise Failure("no dead letter matches; nothing was written")
    if not written and not everything:
        raise Failure("no dead letter matches; nothing was written")
    click.echo(f"exported {written:,} dead letters", err=True)
    return EX_OK


@click.command(
    name="import",
    cls=Command,
    examples="""
    taskq dead import letters.jsonl
    ssh other taskq dead export --all | taskq dead import -
    """,
)
@click.argument("file", metavar="FILE")
@json_option
def import_letters(file: str, as_json: bool) -> int:
    """Add dead letters that were exported; FILE is - for stdin.

    All lines are read before the first letter is added. Letters that are there already are left
    out, so an import that was cut off can be repeated.
    """
    letters = _read(file)
    if not letters:
        raise Failure(f"{file} holds no dead letters; nothing was imported")
    with opened_app() as app:
        added = letters_of(app).bury(letters)
    if as_json:
        write_json({"read": len(letters), "imported": list(added)})
    else:
        there = len(letters) - len(added)
        say(f"imported {len(added):,} dead letters; {there:,} were there already")
    return EX_OK


def _read(file: str) -> list[DeadLetter]:
    try:
        if file == "-":
            return read_letters(sys.stdin, "stdin")
        with Path(file).open(encoding="utf-8") as stream:
            return read_letters(stream, file)
    except OSError as error:
        raise Failure(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Failure(f"{file} is no text of JSON lines; nothing was imported") from error
