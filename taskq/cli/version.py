"""`taskq version`."""

import platform

import click

from taskq import __version__
from taskq.cli.framework import Command, json_option
from taskq.cli.output import say, write_json


@click.command(cls=Command, examples="taskq version --json")
@json_option
def version(as_json: bool) -> None:
    """Print the versions of taskq and Python."""
    if as_json:
        write_json(
            {
                "taskq": __version__,
                "python": platform.python_version(),
                "platform": platform.platform(),
            }
        )
    else:
        say(f"taskq {__version__} (Python {platform.python_version()}, {platform.system()})")
