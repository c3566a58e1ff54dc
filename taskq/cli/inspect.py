"""`taskq inspect`: what running workers answer."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import click

from taskq.cli.errors import EX_UNAVAILABLE, Failure
from taskq.cli.framework import Group, json_option, opened_app
from taskq.cli.output import table, write_json
from taskq.cli.values import SPAN

_TIMEOUT_S: Final = 1.0
_TABLES: Final = {
    "workers": (
        "List workers: pool, slots, queues, state.",
        (
            "worker",
            "app",
            "pool",
            "running",
            "slots",
            "state",
            "queues",
            "paused",
            "pid",
            "uptime_s",
        ),
    ),
    "active": (
        "List the tasks that run now.",
        ("worker", "id", "task", "queue", "attempt", "runtime_s", "pid"),
    ),
    "registered": (
        "List the tasks that workers know.",
        ("worker", "task", "queue", "max_retries"),
    ),
    "stats": (
        "Show what workers did since their start.",
        ("worker", "received", "endings", "held", "unsettled", "prefetch", "runtime_s", "uptime_s"),
    ),
    "unknown": (
        "List parked messages whose task no worker that got them knows.",
        ("worker", "task", "id", "age_s"),
    ),
    "ping": ("See which workers answer.", ("worker", "ok")),
}
"""Command to (help, columns of its table)."""
_PER_TASK: Final = frozenset({"active", "registered", "unknown"})
_HORIZONS: Final = (("1 minute", 60), ("1 hour", 3600), ("1 day", 86400), ("1 year", 366 * 86400))


@click.group(
    cls=Group,
    examples="""
    taskq inspect workers
    taskq inspect active --json
    taskq inspect ping --worker web-1-4711
    """,
)
def inspect() -> None:
    """Ask running workers; exit code 69 when none answers."""


def _add(name: str, text: str, columns: Sequence[str]) -> None:
    @inspect.command(name=name, help=text, examples=f"taskq inspect {name} --json")
    @click.option("--worker", metavar="NAME", help="Ask only the worker of this name.")
    @click.option(
        "--timeout",
        "timeout_s",
        type=SPAN,
        default=_TIMEOUT_S,
        metavar="S",
        help=f"How long to collect answers ({_TIMEOUT_S:g} s by default).",
    )
    @json_option
    def ask(worker: str | None, timeout_s: float, as_json: bool) -> None:
        _ask(name, columns, worker, timeout_s, as_json)


def _ask(
    name: str, columns: Sequence[str], worker: str | None, timeout_s: float, as_json: bool
) -> None:
    request = {"command": name, **({"worker": worker} if worker else {})}
    with opened_app() as app:
        answers = app.broker.ask(request, timeout_s)
    answers.sort(key=lambda answer: str(answer.get("worker")))
    rows = list(_rows(answers)) if name in _PER_TASK else answers
    if as_json:
        write_json(rows)
    elif answers:
        cells = [[_cell(row.get(column)) for column in columns] for row in rows]
        headings = [column.upper() for column in columns]
        table(headings, cells, f"none ({len(answers)} answered)")
    if not answers:
        who = f"worker {worker!r} did not answer" if worker else "no worker answered"
        raise Failure(
            f"{who} within {timeout_s:g} s; is one running on this broker, or is it too busy "
            "(--timeout)?",
            EX_UNAVAILABLE,
        )


def _rows(answers: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    return [
        {"worker": answer.get("worker"), **task}
        for answer in answers
        for task in answer.get("tasks") or ()
    ]


def _cell(value: Any) -> Any:
    if isinstance(value, dict):
        return " ".join(f"{key}={number}" for key, number in value.items()) or "-"
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


for _name, (_text, _columns) in _TABLES.items():
    _add(_name, _text, _columns)


@inspect.command(examples="taskq inspect delayed --json")
@json_option
def delayed(as_json: bool) -> None:
    """Count the messages that wait for their time, by how soon they are due.

    Asks the broker, no worker. RabbitMQ counts those of every application on its virtual host.
    """
    with opened_app() as app:
        count: Callable[[float], int] = app.broker.due_within
        rows = [
            {"within": text, "within_s": horizon_s, "messages": count(horizon_s)}
            for text, horizon_s in _HORIZONS
        ]
    if as_json:
        write_json(rows)
    else:
        table(("DUE WITHIN", "MESSAGES"), [(row["within"], row["messages"]) for row in rows])


@inspect.command(examples="taskq inspect limits -A shop:app --json")
@json_option
def limits(as_json: bool) -> None:
    """Show limits, claims and circuit breakers, as `taskq limits ls` does.

    Asks the store that all workers share, no worker.
    """
    from taskq.cli.limits import show_limits

    show_limits("", as_json)
