"""`taskq queues`."""

import click

from taskq.cli.base import (
    AppGroup,
    app_option,
    confirm,
    json_option,
    open_app,
    print_json,
    print_table,
)

_COLUMNS = ("queue", "ready", "unsettled", "delayed", "consumers")


@click.group(cls=AppGroup)
def queues() -> None:
    """Look at queues, and empty them."""


@queues.command(
    name="ls",
    epilog="""\b
Example:
  taskq queues ls -A shop.tasks:app""",
)
@app_option
@click.argument("names", metavar="[QUEUE]...", nargs=-1)
@json_option
def list_queues(names: tuple[str, ...], as_json: bool) -> None:
    """List queues with what waits in them: those named, or all that are known."""
    from taskq.brokers.base import DEAD_QUEUE
    from taskq.worker.manifest import make_manifest

    with open_app() as app:
        wanted = names or tuple(
            dict.fromkeys([*make_manifest(app).queues(), *app.broker.known_queues(), DEAD_QUEUE])
        )
        depths = app.broker.depths(wanted)
    rows = [
        {
            "queue": name,
            "exists": depth is not None,
            "ready": None if depth is None else depth.ready,
            "unsettled": _known(depth.unsettled if depth else None),
            "delayed": _known(depth.delayed if depth else None),
            "consumers": _known(depth.consumers if depth else None),
        }
        for name, depth in depths.items()
    ]
    if as_json:
        print_json(rows)
    else:
        print_table(rows, _COLUMNS, "no queues")


def _known(count: int | None) -> int | None:
    return None if count is None or count < 0 else count


@queues.command(
    epilog="""\b
Example:
  taskq queues purge mail --yes"""
)
@app_option
@click.argument("name", metavar="QUEUE")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def purge(name: str, yes: bool, as_json: bool) -> None:
    """Delete every message that is ready in QUEUE; they are gone for good."""
    from taskq.errors import ConfigError

    with open_app() as app:
        depth = app.broker.depths([name])[name]
        if depth is None:
            raise ConfigError(f"there is no queue {name!r}; see `taskq queues ls`")
        confirm(f"Delete {depth.ready} messages of queue {name}?", yes)
        count = app.broker.purge(name)
    if as_json:
        print_json({"queue": name, "purged": count})
    else:
        click.echo(f"deleted {count} messages")
