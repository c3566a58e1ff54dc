"""`taskq completion`."""

import click
from click.shell_completion import get_completion_class

from taskq.cli.framework import Command

VARIABLE = "_TASKQ_COMPLETE"


@click.command(
    cls=Command,
    examples="""
    eval "$(taskq completion bash)"                              in ~/.bashrc
    eval "$(taskq completion zsh)"                               in ~/.zshrc
    taskq completion fish > ~/.config/fish/completions/taskq.fish
    """,
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script that completes taskq's commands and options in a shell."""
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"this version of click completes nothing in {shell}")
    made = kind(context.find_root().command, {}, "taskq", VARIABLE)
    # Not source(): that runs the shell to look at its version, where it may not be installed.
    click.echo(made.source_template % made.source_vars())
