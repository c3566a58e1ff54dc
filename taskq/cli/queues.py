"""`taskq queues`."""

from typing import Any

import click

from taskq.app import TaskQ
from taskq.brokers.base import DEAD_QUEUE, QueueDepth
from taskq.cli.errors import Failure
from taskq.cli.framework import Group, confirm, json_option, opened_app, yes_option
from taskq.cli.output import say, suggestion, table, write_json
from taskq.cli.pauses import (
    app_queues,
    ask_workers,
    drain,
    pause,
    pause_fields,
    pause_text,
    pauses_by_name,
    resume,
)
from taskq.cli.shards import reshard


@click.group(
    cls=Group,
    examples="""
    taskq queues ls
    taskq queues pause mail --for 10m --why 'the relay is being moved'
    taskq queues purge mail
    """,
)
def queues() -> None:
    """Look at queues, pause them, and empty them."""


for _command in (pause, resume, drain, reshard):
    queues.add_command(_command)


@queues.command(
    name="ls",
    examples="""
    taskq queues ls -A shop:app
    taskq queues ls mail reports --json
    """,
)
@click.argument("names", metavar="[QUEUE]...", nargs=-1)
@json_option
def list_queues(names: tuple[str, ...], as_json: bool) -> None:
    """List queues and what waits in them.

    Without names: the queues of the app, those that running workers consume, and all others where
    the broker can list them (embedded); at the end the dead letters. A `-` stands for what the
    broker does not tell.
    """
    with opened_app() as app:
        wanted = names or _known(app)
        depths = app.broker.depths(wanted)
        paused = pauses_by_name(app, "queue")
    rows = [_row(name, depths[name]) for name in wanted]
    if as_json:
        write_json([{**row, "paused": pause_fields(paused.get(row["queue"]))} for row in rows])
        return
    columns: tuple[str, ...] = ("queue", "ready", "unsettled", "delayed", "consumers")
    cells = [[row[name] for name in columns] for row in rows]
    if paused:
        columns = (*columns, "paused")
        for line in cells:
            line.append(pause_text(paused.get(line[0])))
    for row, line in zip(rows, cells, strict=True):
        if not row["exists"]:
            line[0] = f"{row['queue']} (not made yet)"
    table([name.upper() for name in columns], cells, "no queues")


def _known(app: TaskQ) -> tuple[str, ...]:
    broker = app.broker
    listed = broker.known_queues()
    found = dict.fromkeys([*app_queues(app), *listed])
    if not listed:
        for answer in ask_workers(app, "workers"):
            found.update(dict.fromkeys(str(name) for name in answer.get("queues") or ()))
    found.pop(DEAD_QUEUE, None)
    return (*found, DEAD_QUEUE)


def _row(name: str, depth: QueueDepth | None) -> dict[str, Any]:
    row: dict[str, Any] = {"queue": name, "exists": depth is not None}
    for field in ("ready", "unsettled", "delayed", "consumers"):
        value = -1 if depth is None else getattr(depth, field)
        row[field] = value if value >= 0 else None
    return row


@queues.command(
    examples="""
    taskq queues purge mail
    taskq queues purge mail reports --yes
    """
)
@click.argument("names", metavar="QUEUE...", nargs=-1, required=True)
@yes_option
@json_option
def purge(names: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Delete the messages that are ready in queues; they are gone for good.

    What workers have in hand, and what is delayed, stays. Dead letters are deleted by
    `taskq dead drop --all`.
    """
    if DEAD_QUEUE in names:
        raise click.UsageError("dead letters are deleted by `taskq dead drop --all`")
    rows = []
    with opened_app() as app:
        depths = app.broker.depths(names)
        missing = [name for name in names if depths[name] is None]
        if missing:
            known = [name for name in _known(app) if name != DEAD_QUEUE]
            raise Failure(f"there is no queue {missing[0]!r}{suggestion(missing[0], known)}")
        count = sum(depth.ready for depth in depths.values() if depth is not None)
        confirm(f"Delete {count} messages from {', '.join(names)}?", yes)
        for name in names:
            purged = app.broker.purge(name)
            rows.append({"queue": name, "purged": purged})
            app.events.announce("queue.purged", {"queue": name, "count": purged})
    if as_json:
        write_json(rows)
        return
    for row in rows:
        say(f"deleted {row['purged']} messages from {row['queue']}")
