"""`taskq inspect`."""

from typing import Any

import click

from taskq.cli.base import (
    EX_UNAVAILABLE,
    AppGroup,
    app_option,
    json_option,
    open_app,
    print_json,
    print_table,
)

_TABLES = {
    "workers": ("worker", "app", "pool", "slots", "running", "queues", "state", "uptime_s"),
    "active": ("worker", "id", "task", "queue", "attempt", "runtime_s", "pid"),
    "registered": ("worker", "task", "queue", "max_retries"),
    "stats": ("worker", "received", "endings", "held", "prefetch", "uptime_s"),
    "unknown": ("worker", "task", "id", "age_s"),
    "ping": ("worker", "ok"),
}


@click.group(cls=AppGroup)
def inspect() -> None:
    """Ask running workers what they do; exit code 69 when none answers."""


def _ask(command: str, worker: str | None, timeout_s: float, as_json: bool) -> int:
    request = {"command": command, **({"worker": worker} if worker else {})}
    with open_app() as app:
        answers = sorted(app.broker.ask(request, timeout_s), key=lambda row: str(row["worker"]))
    if as_json:
        print_json(answers)
    elif answers:
        rows: list[dict[str, Any]] = []
        for answer in answers:
            tasks = answer.get("tasks")
            rows += [answer] if tasks is None else [{**answer, **task} for task in tasks]
        print_table(rows, _TABLES[command], f"{len(answers)} workers answered: nothing to show")
    if not answers:
        click.echo(f"Error: no worker answered within {timeout_s:g} s; is one running?", err=True)
        return EX_UNAVAILABLE
    return 0


def _command(name: str, text: str) -> None:
    @inspect.command(name=name, help=text, epilog=f"\b\nExample:\n  taskq inspect {name} --json")
    @app_option
    @click.option("--worker", metavar="NAME", help="Only this worker.")
    @click.option("--timeout", type=float, default=1.0, metavar="S", help="Collect for S (1).")
    @json_option
    def ask(worker: str | None, timeout: float, as_json: bool) -> int:
        return _ask(name, worker, timeout, as_json)


_command("workers", "List workers: pool, slots, queues, state.")
_command("active", "List running tasks.")
_command("registered", "List the tasks that workers know.")
_command("stats", "Show counters of each worker.")
_command("unknown", "List parked tasks that no asked worker knows.")
_command("ping", "See which workers answer.")


@inspect.command(epilog="\b\nExample:\n  taskq inspect delayed")
@app_option
@json_option
def delayed(as_json: bool) -> None:
    """Count messages that wait for their time, by how far ahead that is."""
    horizons = {"10 s": 10.0, "1 min": 60.0, "10 min": 600.0, "1 h": 3600.0, "1 day": 86400.0}
    with open_app() as app:
        rows = [
            {"due_within": name, "messages": app.broker.due_within(span_s)}
            for name, span_s in horizons.items()
        ]
    if as_json:
        print_json(rows)
    else:
        print_table(rows, ("due_within", "messages"), "nothing is delayed")
