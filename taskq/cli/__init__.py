"""The command line: one console script, one file per group of commands.

A command's file is imported when the command is used, so that `taskq --help` costs nothing.
"""

from taskq.cli.root import main

__all__ = ["main"]
