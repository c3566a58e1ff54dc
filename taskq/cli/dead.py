"""`taskq dead`: look after dead letters."""

import click

from taskq.cli.dead_change import drop, edit, replay
from taskq.cli.dead_files import export, import_letters
from taskq.cli.dead_look import audit, list_letters, show
from taskq.cli.framework import Group


@click.group(
    cls=Group,
    examples="""
    taskq dead ls
    taskq dead ls --reason failed --since 1h --task 'mail.*'
    taskq dead show 1f0c8c
    taskq dead replay 1f0c8c
    taskq dead replay --exception ConnectionError --rate 50 --yes
    taskq dead edit 1f0c8c --kwargs '{"to": "ann@example.org"}' --replay
    """,
)
def dead() -> None:
    """Look after dead letters: messages that ended for good without success.

    Looking at them never loses or spends them. An ID may be cut to its first 6 characters.

    Reasons: failed, worker_lost, malformed, unknown_task, rejected, unroutable, delivery_limit,
    queue_full, message_ttl.
    """


for _command in (list_letters, show, replay, edit, drop, export, import_letters, audit):
    dead.add_command(_command)
