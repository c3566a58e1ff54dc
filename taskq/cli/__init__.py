"""The command line: one console script, one file per group of commands, imported when used."""

import sys
from typing import Any

import click

from taskq._version import __version__
from taskq.cli.base import AppGroup, exit_code_of, report

_COMMANDS = {
    "worker": ("taskq.cli.work", "worker"),
    "call": ("taskq.cli.tasks", "call"),
    "result": ("taskq.cli.tasks", "result"),
    "cancel": ("taskq.cli.tasks", "cancel"),
    "queues": ("taskq.cli.queues", "queues"),
    "dead": ("taskq.cli.dead", "dead"),
    "inspect": ("taskq.cli.inspect", "inspect"),
    "doctor": ("taskq.cli.examine", "doctor"),
    "demo": ("taskq.cli.demo", "demo"),
    "completion": ("taskq.cli.completion", "completion"),
    "version": ("taskq.cli.completion", "version"),
}


@click.group(
    cls=AppGroup,
    commands_by_name=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": None},
    epilog="""\b
Examples:
  taskq demo                                 see it work, nothing to set up
  taskq worker -A shop.tasks:app             run tasks
  taskq call -A shop.tasks:app shop.tasks.add --args '[2,3]' --wait""",
)
@click.version_option(__version__, prog_name="taskq")
def group() -> None:
    """Send tasks, run workers, look at queues, results and dead letters."""


class _Main:
    """The console script; a click group that never lets a traceback out."""

    def __init__(self, command: click.Group) -> None:
        self.command = command

    def __call__(self, args: list[str] | None = None) -> None:
        try:
            code = self.command.main(args, prog_name="taskq", standalone_mode=False)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except (KeyboardInterrupt, click.Abort):
            click.echo("interrupted", err=True)
            sys.exit(130)
        except BrokenPipeError:
            # Whoever read our output has enough; nothing may be written at exit either.
            sys.stdout = None
            sys.exit(0)
        # Named errors become one line and an exit code; anything else is a defect and says so.
        except Exception as error:
            report(error)
            sys.exit(exit_code_of(error))
        sys.exit(code if isinstance(code, int) else 0)


class MainGroup(AppGroup):
    """The top-level group: calling it runs the command line to its exit code."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line; ends the process with its exit code."""
        _Main(self)(*args, **kwargs)


main = group
main.__class__ = MainGroup
