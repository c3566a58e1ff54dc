"""Reads command lines and worker profiles as taskq does, without running anything."""

import runpy
import types
from pathlib import Path
from typing import Any

import click

from taskq.config import WorkerSettings, build

ROOT = Path(__file__).parents[1]


def parse_command(args: list[str]) -> click.Context:
    """Parse the words after `taskq` with the real CLI; a `click.UsageError` if they are wrong."""
    from taskq.cli import main

    command: click.Command = main
    context: click.Context | None = None
    name, rest = "taskq", list(args)
    while True:
        context = command.make_context(name, rest, parent=context)
        if not isinstance(command, click.Group):
            return context
        found, subcommand, rest = command.resolve_command(context, _remaining(context))
        assert found is not None
        assert subcommand is not None
        name, command = found, subcommand


def _remaining(context: click.Context) -> list[str]:
    # click 8.1 has protected_args, later ones a private name and a deprecation.
    state = vars(context)
    return [*(state.get("_protected_args") or state.get("protected_args") or []), *context.args]


def load_profile(path: Path) -> WorkerSettings:
    """Return the settings of a profile: its public names that are no modules."""
    values = {
        name: value
        for name, value in runpy.run_path(str(path)).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    return build(WorkerSettings, [(str(path), values)])


def worker_of(args: list[str]) -> tuple[WorkerSettings, dict[str, Any]]:
    """Return what a `worker --profile ...` command names: its profile's settings, its options."""
    context = parse_command(args)
    assert context.info_name == "worker"
    profile = context.params["profile"]
    assert profile, "the fleet starts workers by profile"
    return load_profile(ROOT / str(profile)), context.params
