"""`taskq doctor`."""

import click

from taskq.brokers.base import Check
from taskq.cli.errors import EX_FAILURE, EX_OK
from taskq.cli.framework import Command, app_place, import_app, json_option, log_level
from taskq.cli.output import STATE_COLOURS, clean, paint, say, write_json
from taskq.doctor import examine, worst
from taskq.worker.logs import set_up

_WIDTH = len("settings.environment")


@click.command(
    cls=Command,
    examples="""
    taskq doctor
    taskq doctor -A shop:app
    taskq doctor -A shop:app --json
    """,
)
@json_option
def doctor(as_json: bool) -> int:
    """Examine environment, settings, app, broker and results store.

    One line for each check: ok, warning or failed, what was found, and what to do about it. Exit
    code 1 when a check failed. On the broker it makes what a worker would make: missing queues, or
    the embedded file.
    """
    set_up(log_level() or "error", "text")
    found: list[Check] = []
    for check in examine(app_place(), import_app):
        found.append(check)
        if not as_json:
            _print(check)
    if as_json:
        write_json(
            [
                {
                    "name": check.name,
                    "status": check.status,
                    "detail": check.detail,
                    "advice": check.advice,
                }
                for check in found
            ]
        )
    else:
        _sum_up(found)
    return EX_FAILURE if worst(found) == "failed" else EX_OK


def _print(check: Check) -> None:
    status = paint(check.status.ljust(7), STATE_COLOURS.get(check.status))
    say(f"{status}  {check.name.ljust(_WIDTH)}  {clean(check.detail)}")
    if check.advice:
        say(f"{' ' * (_WIDTH + 11)}-> {clean(check.advice)}")


def _sum_up(found: list[Check]) -> None:
    counts = dict.fromkeys(("ok", "warning", "failed"), 0)
    for check in found:
        counts[check.status] += 1
    say()
    summary = ", ".join(f"{count} {status}" for status, count in counts.items())
    say(f"{len(found)} checks: {summary}")
