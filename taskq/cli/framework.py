"""What all commands share: `-A` and `-l` at any depth, examples in the help, `--json`."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from textwrap import dedent
from typing import Any, TypeVar

import click

from taskq.app import TaskQ
from taskq.loading import load_app
from taskq.worker.logs import set_up

_APP = "taskq.app"
_LEVEL = "taskq.level"
_HELP = {"help_option_names": ["-h", "--help"]}
_LEVELS = ("debug", "info", "warning", "error")

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def _remember(key: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    def callback(context: click.Context, _: click.Parameter, value: Any) -> Any:
        # A command's parents are parsed before it: what stands nearest to the command wins.
        if value is not None:
            context.meta[key] = value
        return value

    return callback


def _common_options() -> list[click.Parameter]:
    return [
        click.Option(
            ["-A", "--app"],
            metavar="MODULE:NAME",
            expose_value=False,
            callback=_remember(_APP),
            help="The app, such as shop:app or path/to/shop.py:app; TASKQ_APP by default.",
        ),
        click.Option(
            ["-l", "--log-level", "--loglevel"],
            type=click.Choice(_LEVELS, case_sensitive=False),
            expose_value=False,
            callback=_remember(_LEVEL),
            help="What is logged on stderr; debug also shows tracebacks of errors.",
        ),
    ]


def _epilog(examples: str) -> str | None:
    text = dedent(examples).strip()
    lines = "\n".join(f"  {line}" for line in text.splitlines())
    return f"\b\nExamples:\n{lines}" if text else None


class Command(click.Command):
    """A command with `-A`, `-l` and examples."""

    def __init__(self, name: str | None = None, *, examples: str = "", **kwargs: Any) -> None:
        super().__init__(name, epilog=_epilog(examples), context_settings=_HELP, **kwargs)
        self.params += _common_options()


class Group(click.Group):
    """A group of such commands."""

    command_class = Command
    group_class = type

    def __init__(self, name: str | None = None, *, examples: str = "", **kwargs: Any) -> None:
        super().__init__(name, epilog=_epilog(examples), context_settings=_HELP, **kwargs)
        self.params += _common_options()


def several(*options: Callable[[Any], Any]) -> Callable[[Decorated], Decorated]:
    """Return one decorator for options that several commands share, in their order."""

    def decorate(command: Decorated) -> Decorated:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


why_option = click.option("--why", default="", metavar="TEXT", help="Reason, shown with the pause.")
"""Of everything that can be paused: queues, tasks, schedules."""


def json_option(command: Decorated) -> Decorated:
    """Add `--json` as the argument `as_json`."""
    option = click.option("--json", "as_json", is_flag=True, help="Print only JSON on stdout.")
    return option(command)


def yes_option(command: Decorated) -> Decorated:
    """Add `--yes` as the argument `yes`."""
    return click.option("-y", "--yes", is_flag=True, help="Do not ask.")(command)


def app_place() -> str:
    """Return what `-A` says, at whatever depth, or TASKQ_APP; empty when neither is there."""
    return str(click.get_current_context().meta.get(_APP) or os.environ.get("TASKQ_APP") or "")


def log_level() -> str | None:
    """Return what `-l` says, or None."""
    level = click.get_current_context().meta.get(_LEVEL)
    return None if level is None else str(level)


def import_app(place: str) -> TaskQ:
    """Import an app; what its modules print goes to stderr, away from `--json`.

    Raises:
        ConfigError: If it cannot be imported.
    """
    with contextlib.redirect_stdout(sys.stderr):
        return load_app(place)


@contextlib.contextmanager
def opened_app() -> Iterator[TaskQ]:
    """Give the app of `-A`, or one that knows only broker and results when none is named.

    Raises:
        ConfigError: If it cannot be imported, or a setting cannot be used.
    """
    set_up(log_level() or "error", "text")
    place = app_place()
    with import_app(place) if place else TaskQ("taskq") as app:
        yield app


def confirm(question: str, yes: bool) -> None:
    """Ask before something that cannot be undone.

    Raises:
        click.UsageError: If nobody can be asked.
        click.Abort: If the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} Add --yes, there is no terminal to ask on.")
    click.confirm(question, abort=True, err=True)
