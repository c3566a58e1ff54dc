"""`taskq` itself: its commands by name, and what becomes of errors."""

import importlib
import sys
from collections.abc import Sequence
from typing import Any, Final

import click

from taskq import __version__
from taskq.cli.errors import run_guarded
from taskq.cli.framework import Group
from taskq.config import nearest

COMMANDS: Final = {
    "worker": ("taskq.cli.worker", "Run tasks."),
    "scheduler": ("taskq.cli.scheduler", "Send what is due."),
    "schedules": ("taskq.cli.schedules", "Look after scheduled tasks."),
    "call": ("taskq.cli.tasks:call", "Send a task by name."),
    "result": ("taskq.cli.tasks:result", "Show state, value or failure of a task."),
    "cancel": ("taskq.cli.cancel", "Cancel tasks by id, workflow, name or header."),
    "queues": ("taskq.cli.queues", "Look at queues, pause them, and empty them."),
    "tasks": ("taskq.cli.pauses:tasks", "Look at tasks, pause and resume them."),
    "dead": ("taskq.cli.dead", "Look after dead letters."),
    "limits": ("taskq.cli.limits", "Look at limits and circuit breakers, and change them."),
    "inspect": ("taskq.cli.inspect", "Ask running workers."),
    "events": ("taskq.cli.events", "Look at lifecycle events: live, recorded, counted."),
    "history": ("taskq.cli.events:history", "Show the life of a task."),
    "bridge": ("taskq.cli.bridge", "Carry lifecycle events to Kafka."),
    "doctor": ("taskq.cli.doctor", "Examine configuration and servers."),
    "demo": ("taskq.cli.demo", "Show tasks of each kind with a real worker."),
    "torture": ("taskq.cli.torture", "Cause faults under load, and count what is lost."),
    "completion": ("taskq.cli.completion", "Print a completion script for a shell."),
    "version": ("taskq.cli.version", "Print the versions."),
}
"""Name to (where the command is: module, and attribute where it is not the name; help)."""


class Root(Group):
    """The group `taskq`; it imports a command when somebody asks for it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute or cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is named, or suggest the nearest."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"no command {args[0]!r}{nearest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command line; see `click.Group.main`. Errors become one line and an exit code."""
        name = prog_name or "taskq"

        def run() -> Any:
            return super(Root, self).main(args, name, complete_var, False, **extra)

        if not standalone_mode:
            return run()
        sys.exit(run_guarded(run))


@click.group(
    cls=Root,
    examples="""
    taskq demo                                        see it at work
    taskq worker -A shop:app                          run the tasks of shop.py
    taskq call -A shop:app shop.add --args '[2, 3]' --wait
    taskq dead ls                                     what failed for good
    """,
)
@click.version_option(__version__, prog_name="taskq", message="%(prog)s %(version)s")
def main() -> None:
    """A distributed task queue: nothing is lost.

    Broker and results come from the app (-A), TASKQ_BROKER and TASKQ_RESULTS, or taskq.toml; by
    default they are the file taskq.db in the working directory.
    """
