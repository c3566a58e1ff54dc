"""What all commands share: lazy loading, `-A` at any depth, errors, tables, JSON."""

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from taskq import errors

if TYPE_CHECKING:
    from taskq.app import TaskQ

Command = TypeVar("Command", bound=Callable[..., Any])
EX_FAILURE, EX_UNAVAILABLE, EX_CONFIG = 1, 69, 78


def remember_app(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    """Keep `-A` for the command that runs, wherever it was given."""
    if value:
        context.find_root().meta["taskq.app"] = value


def app_option(command: Command) -> Command:
    """Add `-A/--app` to a command; it may stand before, between and after subcommands."""
    return click.option(
        "-A",
        "--app",
        metavar="MODULE:NAME",
        expose_value=False,
        callback=remember_app,
        help="The app, as package.module:name or path/to/file.py (or set TASKQ_APP).",
    )(command)


def json_option(command: Command) -> Command:
    """Add `--json` to a command."""
    return click.option("--json", "as_json", is_flag=True, help="Only JSON on standard output.")(
        command
    )


class AppGroup(click.Group):
    """A group whose commands are imported when they are used, and that takes `-A`."""

    def __init__(
        self, *args: Any, commands_by_name: Mapping[str, tuple[str, str]] | None = None, **kw: Any
    ) -> None:
        super().__init__(*args, **kw)
        self._by_name = dict(commands_by_name or {})
        app_option(self)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return [*self._by_name, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command by name."""
        if cmd_name in self._by_name:
            module, attribute = self._by_name[cmd_name]
            found: click.Command = getattr(importlib.import_module(module), attribute)
            return found
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or suggest the nearest."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from taskq.config import nearest

            hint = nearest(args[0], self.list_commands(ctx)) if args else ""
            raise click.UsageError(f"{error.format_message()}{hint}", ctx) from None


def app_place() -> str | None:
    """Return what `-A` or TASKQ_APP names, or None."""
    context = click.get_current_context()
    return context.find_root().meta.get("taskq.app") or os.environ.get("TASKQ_APP")


@contextmanager
def open_app(required: bool = False) -> Iterator["TaskQ"]:
    """Yield the app that `-A` names; without one, an app made of the settings alone.

    Args:
        required: Whether there must be one.

    Raises:
        ConfigError: If it is missing and required, or cannot be imported.
    """
    from taskq.app import TaskQ
    from taskq.loading import load_app

    place = app_place()
    if place is None and required:
        raise errors.ConfigError("which app? use -A module:name, or set TASKQ_APP")
    app = load_app(place) if place else TaskQ("taskq")
    try:
        yield app
    finally:
        app.close()


def exit_code_of(error: BaseException) -> int:
    """Return the exit code of an exception: 78 configuration, 69 unreachable, else 1."""
    if isinstance(error, errors.ConfigError):
        return EX_CONFIG
    if isinstance(error, errors.BrokerUnavailable | errors.ResultsUnavailable):
        return EX_UNAVAILABLE
    if isinstance(error, errors.PublishError):
        return EX_UNAVAILABLE if error.reason in ("unavailable", "timeout", "blocked") else 1
    return EX_FAILURE


def report(error: BaseException) -> None:
    """Say on standard error what happened."""
    click.echo(f"Error: {_text(error)}", err=True)


def _text(error: BaseException) -> str:
    if isinstance(error, errors.TaskqError | OSError):
        return str(error) or type(error).__name__
    return f"{type(error).__name__}: {error}"


def print_json(value: Any) -> None:
    """Print one JSON document; what JSON does not know becomes text."""
    click.echo(json.dumps(value, indent=2, default=str, ensure_ascii=False))


def print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], empty: str) -> None:
    """Print rows as aligned text, cut to the terminal's width; `empty` when there are none."""
    if not rows:
        click.echo(empty)
        return
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [
        max(len(column), *(len(line[index]) for line in cells))
        for index, column in enumerate(columns)
    ]
    heading = "  ".join(c.upper().ljust(w) for c, w in zip(columns, widths, strict=True))
    click.secho(heading.rstrip(), bold=True)
    for line in cells:
        click.echo("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return " ".join(str(value).split())[:80]


def confirm(question: str, yes: bool) -> None:
    """Ask before something is lost; without a terminal `--yes` is needed.

    Raises:
        click.UsageError: If nobody can be asked.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} Say --yes to do it without being asked.")
    click.confirm(question, abort=True)


def parse_json(text: str, what: str, kind: type) -> Any:
    """Return a JSON option's value.

    Raises:
        click.BadParameter: If it is not JSON of this kind.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"{what} is not JSON: {error}") from None
    if not isinstance(value, kind):
        wanted = "a list, such as [2, 3]" if kind is list else 'a map, such as {"x": 2}'
        raise click.BadParameter(f"{what} must be {wanted}")
    return value
