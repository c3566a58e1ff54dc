"""`taskq schedules`."""

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from taskq import clock
from taskq.cli.framework import (
    Group,
    app_place,
    confirm,
    json_option,
    opened_app,
    several,
    why_option,
    yes_option,
)
from taskq.cli.output import say, table, write_json
from taskq.cli.values import JSON_LIST, JSON_MAP, MOMENT, SPAN
from taskq.errors import ConfigError
from taskq.schedules import Schedule, crontab, every, once
from taskq.schedules.words import describe

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from taskq.app import TaskQ
    from taskq.schedules.info import ScheduleInfo
    from taskq.schedules.words import Preview


_FIELDS = ("task", "args", "kwargs", "catch_up", "max_age_s", "overlap", "max_runs", "source")
_when_options = several(
    click.option("--crontab", "expression", metavar="FIELDS", help="Five fields, or six."),
    click.option("--tz", default="UTC", metavar="ZONE", help="Of --crontab; UTC by default."),
    click.option("--every", "interval_s", type=SPAN, metavar="S", help="Such as 30, 15m, 1d."),
    click.option("--anchor", type=MOMENT, metavar="DATE", help="Of --every: due at this moment."),
    click.option("--jitter", "jitter_s", type=SPAN, default=0.0, metavar="S", help="Of --every."),
    click.option("--once", "at", type=MOMENT, metavar="DATE", help="Due at this moment."),
)


def _app() -> "AbstractContextManager[TaskQ]":
    if not app_place():
        raise ConfigError("whose schedules? use -A module:name, or set TASKQ_APP")
    return opened_app()


@click.group(
    cls=Group,
    examples="""
    taskq schedules ls -A shop:app
    taskq schedules preview --crontab '30 2 * * mon-fri' --tz Europe/Berlin
    taskq schedules add -A shop:app report shop.report --every 15m
    """,
)
def schedules() -> None:
    """Look after scheduled tasks; `taskq scheduler` sends them."""


@schedules.command(name="ls", examples="taskq schedules ls -A shop:app --json")
@json_option
def list_schedules(as_json: bool) -> None:
    """List the stored schedules, when each is due next, and what became of its ticks."""
    with _app() as app:
        found = app.schedules.ls()
    if as_json:
        write_json([_row(info) for info in found])
        return
    cells = [
        [
            info.name,
            _state(info),
            info.next_at and info.next_at.isoformat(timespec="seconds"),
            *(info.fired, info.skipped, info.missed),
            info.trouble or (describe(info.entry.schedule) if info.entry else ""),
        ]
        for info in found
    ]
    headings = ["NAME", "STATE", "NEXT", "FIRED", "SKIPPED", "MISSED", "WHEN"]
    table(headings, cells, "no schedules; those in code are stored when a scheduler starts")


def _state(info: "ScheduleInfo") -> str:
    if info.trouble:
        return "broken"
    if info.paused:
        return "paused"
    return "active" if info.next_at else "finished"


def _row(info: "ScheduleInfo") -> dict[str, Any]:
    entry = info.entry
    row: dict[str, Any] = {"name": info.name, "state": _state(info), "trouble": info.trouble}
    for name in _FIELDS:
        row[name] = None if entry is None else getattr(entry, name)
    row["schedule"] = None if entry is None else entry.schedule.to_wire()
    row["text"] = None if entry is None else describe(entry.schedule)
    for name in ("next_at", "last_at"):
        row[name] = _iso(getattr(info, name))
    for name in ("last_id", "fired", "skipped", "missed", "why"):
        row[name] = getattr(info, name)
    for name in ("starting_at", "until"):
        moment_ms = 0 if entry is None else getattr(entry, f"{name}_ms")
        row[name] = clock.to_iso(moment_ms) if moment_ms else None
    return row


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _schedule(
    expression: str | None,
    tz: str,
    interval_s: float | None,
    anchor: datetime | None,
    jitter_s: float,
    at: datetime | None,
) -> Schedule:
    given = [value for value in (expression, interval_s, at) if value is not None]
    if len(given) != 1:
        raise click.UsageError("give exactly one of --crontab, --every and --once")
    if expression is not None:
        return crontab(expression, tz)
    if at is not None:
        return once(at)
    return every(interval_s or 0.0, anchor=anchor, jitter_s=jitter_s)


@schedules.command(
    examples="""
    taskq schedules add -A shop:app nightly shop.report --crontab '30 2 * * *' --tz Europe/Berlin
    taskq schedules add -A shop:app poll shop.poll --every 30 --args '["eu"]' --overlap skip
    """
)
@click.argument("name")
@click.argument("task")
@_when_options
@click.option("--args", type=JSON_LIST, default="[]", metavar="JSON", help="Positional arguments.")
@click.option("--kwargs", type=JSON_MAP, default="{}", metavar="JSON", help="Keyword arguments.")
@click.option("--queue", metavar="NAME", help="Queue; by default the task's own.")
@click.option("--priority", type=click.IntRange(0, 9), metavar="0-9", help="0 by default.")
@click.option(
    "--catch-up",
    type=click.Choice(["all", "last", "skip"]),
    default="all",
    help="Ticks while no scheduler ran; all by default.",
)
@click.option("--max-age", "max_age_s", type=SPAN, default=60.0, metavar="S", help="Of such ticks.")
@click.option(
    "--overlap",
    type=click.Choice(["allow", "skip", "queue_one", "cancel_running"]),
    default="allow",
    help="A tick while the run before it has not ended.",
)
@click.option("--starting-at", type=MOMENT, metavar="DATE", help="No tick before.")
@click.option("--until", type=MOMENT, metavar="DATE", help="No tick after.")
@click.option("--max-runs", type=click.IntRange(0), default=0, help="At most so many ticks.")
@click.option("--replace", is_flag=True, help="Replace one of that name.")
@json_option
def add(
    name: str,
    task: str,
    expression: str | None,
    tz: str,
    interval_s: float | None,
    anchor: datetime | None,
    jitter_s: float,
    at: datetime | None,
    as_json: bool,
    **rest: Any,
) -> None:
    """Add the dynamic schedule NAME of TASK; running schedulers know of it within a second."""
    schedule = _schedule(expression, tz, interval_s, anchor, jitter_s, at)
    with _app() as app:
        app.schedules.add(name, task, schedule, dynamic=True, **rest)
        info = app.schedules.get(name)
    if as_json:
        write_json(_row(info))
    else:
        say(f"added {name}: {describe(schedule)}")


@schedules.command(examples="taskq schedules pause -A shop:app nightly --why 'warehouse is down'")
@click.argument("name")
@why_option
@json_option
def pause(name: str, why: str, as_json: bool) -> None:
    """Let a schedule rest until it is resumed, across restarts and deploys."""
    with _app() as app:
        app.schedules.pause(name, why)
        _tell(app, name, "paused", as_json)


@schedules.command(examples="taskq schedules resume -A shop:app nightly")
@click.argument("name")
@json_option
def resume(name: str, as_json: bool) -> None:
    """Resume a schedule; what was due meanwhile is not made up for."""
    with _app() as app:
        app.schedules.resume(name)
        _tell(app, name, "resumed", as_json)


def _tell(app: "TaskQ", name: str, what: str, as_json: bool) -> None:
    info = app.schedules.get(name)
    if as_json:
        write_json(_row(info))
    else:
        say(f"{what} {name}")


@schedules.command(examples="taskq schedules remove -A shop:app poll --yes")
@click.argument("name")
@yes_option
@json_option
def remove(name: str, yes: bool, as_json: bool) -> None:
    """Remove a dynamic schedule. One that code declares would come back: pause that."""
    with _app() as app:
        app.schedules.get(name)
        confirm(f"Remove the schedule {name}?", yes)
        app.schedules.remove(name)
    if as_json:
        write_json({"name": name, "removed": True})
    else:
        say(f"removed {name}")


@schedules.command(examples="taskq schedules run -A shop:app nightly")
@click.argument("name")
@json_option
def run(name: str, as_json: bool) -> None:
    """Send a schedule's task now, besides its ticks, and print the task's id."""
    with _app() as app:
        handle = app.schedules.run(name)
    if as_json:
        write_json({"name": name, "id": handle.id})
    else:
        say(handle.id)


@schedules.command(
    examples="""
    taskq schedules preview -A shop:app nightly -n 10
    taskq schedules preview --crontab '30 2 * * *' --tz Europe/Berlin --after 2026-10-24
    """
)
@click.argument("name", required=False)
@_when_options
@click.option("-n", "--count", type=click.IntRange(1, 1000), default=5, help="How many ticks.")
@click.option("--after", type=MOMENT, metavar="DATE", help="Ticks after this; now by default.")
@json_option
def preview(
    name: str | None,
    expression: str | None,
    tz: str,
    interval_s: float | None,
    anchor: datetime | None,
    jitter_s: float,
    at: datetime | None,
    count: int,
    after: datetime | None,
    as_json: bool,
) -> None:
    """Say in words when a schedule is due, and list its next ticks.

    NAME is one of the app's; without it, the options say when.
    """
    if name is None:
        schedule = _schedule(expression, tz, interval_s, anchor, jitter_s, at)
        with opened_app() as app:
            shown = app.schedules.preview(schedule, count, after)
    else:
        with _app() as app:
            shown = app.schedules.preview(name, count, after)
    _show(shown, as_json)


def _show(shown: "Preview", as_json: bool) -> None:
    if as_json:
        write_json(
            {
                "text": shown.text,
                "zone": shown.zone,
                "ticks": [tick.isoformat() for tick in shown.ticks],
                "notes": shown.notes,
            }
        )
        return
    say(shown.text)
    for tick in shown.ticks:
        say(f"  {tick:%a} {tick.isoformat(sep=' ', timespec='seconds')} {tick.tzname()}")
    if not shown.ticks:
        say("  never again")
    for note in shown.notes:
        say(f"note: {note}")
