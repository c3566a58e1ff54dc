"""`taskq limits`."""

from typing import Any

import click

from taskq.cli.errors import Failure
from taskq.cli.framework import Group, json_option, opened_app
from taskq.cli.output import say, suggestion, table, write_json
from taskq.limits import KINDS, RESET_BY_DEFAULT, list_limits, reset_limits, set_limit


@click.group(
    cls=Group,
    examples="""
    taskq limits ls -A shop:app
    taskq limits set -A shop:app mail.send --rate 50/m
    taskq limits reset mail.send --kind breaker
    """,
)
def limits() -> None:
    """Look at rate and concurrency limits, unique keys and circuit breakers; change them."""


def show_limits(task: str, as_json: bool) -> None:
    """Print what limits there are, and what is held now."""
    with opened_app() as app:
        rows = list_limits(app, task)
    if as_json:
        write_json(rows)
        return
    cells = [
        [
            row["kind"],
            row["task"],
            "" if row["key"] is None else row["key"] or "-",
            row["limit"],
            row["state"],
            _detail(row["detail"]),
        ]
        for row in rows
    ]
    table(("KIND", "TASK", "KEY", "LIMIT", "STATE", "DETAIL"), cells, "no limits")


def _detail(detail: dict[str, Any]) -> str:
    shown = {name: value for name, value in detail.items() if name not in ("holders", "running")}
    return " ".join(f"{name}={value}" for name, value in shown.items())


@limits.command(
    name="ls",
    examples="""
    taskq limits ls -A shop:app
    taskq limits ls mail.send --json
    """,
)
@click.argument("task", metavar="[TASK]", default="")
@json_option
def list_them(task: str, as_json: bool) -> None:
    """List what tasks declare (with -A), and what is held and waited for in the store."""
    show_limits(task, as_json)


@limits.command(
    name="set",
    examples="""
    taskq limits set -A shop:app mail.send --rate 50/m
    taskq limits set -A shop:app reports.build --concurrency 2
    """,
)
@click.argument("task", metavar="TASK")
@click.option("--rate", metavar="RATE", help="Starts per period, such as 100/m.")
@click.option("--burst", type=int, metavar="N", help="Starts that may follow each other at once.")
@click.option("--concurrency", type=int, metavar="N", help="Runs at one time, for each key.")
def set_them(task: str, rate: str | None, burst: int | None, concurrency: int | None) -> None:
    """Change a limit that TASK declares, for all workers at once, until it is reset.

    What waits already is reached within about a minute, or halfway of its wait.
    """
    with opened_app() as app:
        if task not in app.tasks:
            raise Failure(
                f"no task {task!r} here{suggestion(task, sorted(app.tasks))}; name its app with -A"
            )
        set_limit(app, task, rate=rate, burst=burst, concurrency=concurrency)
    say(f"set the limits of {task}")


@limits.command(
    examples="""
    taskq limits reset mail.send
    taskq limits reset reports.build --kind unique --key '"sales"'
    """,
)
@click.argument("task", metavar="TASK")
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice(sorted(KINDS.values())),
    help=f"What to forget; {', '.join(RESET_BY_DEFAULT)} by default.",
)
@click.option("--key", metavar="KEY", help="Only this key, as `taskq limits ls` shows it.")
def reset(task: str, kinds: tuple[str, ...], key: str | None) -> None:
    """Forget what was set for TASK, and the state of its limits: an open breaker is closed.

    Forgetting concurrency, unique or idempotency may let tasks run that were held back.
    """
    with opened_app() as app:
        count = reset_limits(app, task, kinds=kinds or RESET_BY_DEFAULT, key=key)
    say(f"forgot the state of {count} limits of {task}")
