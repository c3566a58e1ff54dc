"""`taskq completion` and `taskq version`."""

import click
from click.shell_completion import get_completion_class

from taskq._version import __version__


@click.command(
    epilog="""\b
Examples:
  taskq completion bash >> ~/.bashrc
  taskq completion fish > ~/.config/fish/completions/taskq.fish"""
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes taskq's commands in your shell."""
    from taskq.cli import main

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(kind(main, {}, "taskq", "_TASKQ_COMPLETE").source())


@click.command()
def version() -> None:
    """Print the version."""
    click.echo(__version__)
