"""`taskq queues reshard`."""

import click

from taskq.cli.errors import Failure
from taskq.cli.framework import Command, json_option, opened_app
from taskq.cli.output import say, suggestion, write_json


@click.command(
    cls=Command,
    examples="""
    taskq queues reshard -A shop:app orders
    """,
)
@click.argument("name", metavar="QUEUE")
@json_option
def reshard(name: str, as_json: bool) -> None:
    """Move what waits in a queue's shards into the number of them that the app declares.

    Stop the workers and senders of the queue before, and start those of the new declaration after:
    equal keys keep their order then. Nothing is lost at any point; what was cut off goes on when it
    is run again.
    """
    with opened_app() as app:
        if name not in app.queues or not app.queues[name].shape.shards:
            known = [shape.name for shape in app.queues.shapes if shape.shards]
            raise Failure(
                f"the app declares no shards of a queue {name!r}{suggestion(name, known)}; "
                "name the app with -A"
            )
        count = app.queues[name].shape.shards
        moved = app.broker.reshard(name, count)
    if as_json:
        write_json({"queue": name, "shards": count, "moved": moved})
    else:
        say(f"queue {name} has {count} shards; moved {moved} messages")
