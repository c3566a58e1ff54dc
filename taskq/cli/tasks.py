"""`taskq call`, `taskq result`, `taskq cancel`."""

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from taskq.cli.base import app_option, json_option, open_app, parse_json, print_json

if TYPE_CHECKING:
    from taskq.result import AsyncResult


@click.command(
    epilog="""\b
Examples:
  taskq call -A shop.tasks:app shop.tasks.add --args '[2, 3]' --wait
  taskq call mail.send --kwargs '{"to": "a@b.c"}' --countdown 60"""
)
@app_option
@click.argument("name")
@click.option("--args", "args_json", default="[]", metavar="JSON", help="Positional arguments.")
@click.option("--kwargs", "kwargs_json", default="{}", metavar="JSON", help="Keyword arguments.")
@click.option("--countdown", type=float, metavar="S", help="Start in so many seconds.")
@click.option("--eta", metavar="ISO", help="Start at this moment, with offset.")
@click.option("--expires", type=float, metavar="S", help="Start within so many seconds.")
@click.option("--queue", metavar="NAME", help="Queue; the task's own by default.")
@click.option("--priority", type=int, metavar="0..9")
@click.option("--task-id", metavar="ID", help="Id to use.")
@click.option("--wait", is_flag=True, help="Wait for the result and print it.")
@click.option("--timeout", type=float, default=60.0, metavar="S", help="Wait at most (60).")
@json_option
def call(
    name: str,
    args_json: str,
    kwargs_json: str,
    eta: str | None,
    wait: bool,
    timeout: float,
    as_json: bool,
    **options: Any,
) -> None:
    """Send the task NAME; prints its id, or its result with --wait."""
    args = parse_json(args_json, "--args", list)
    kwargs = parse_json(kwargs_json, "--kwargs", dict)
    try:
        moment = datetime.fromisoformat(eta) if eta else None
    except ValueError:
        raise click.BadParameter(f"--eta {eta!r} is not an ISO-8601 date") from None
    with open_app() as app:
        if app.tasks:
            from taskq.app import find_task

            find_task(app, name)
        try:
            handle = app.send_task(name, args, kwargs, eta=moment, **options)
        except TypeError as error:
            raise click.UsageError(str(error)) from None
        if wait:
            _show(handle, timeout, as_json)
        elif as_json:
            print_json({"id": handle.id})
        else:
            click.echo(handle.id)


def _show(handle: "AsyncResult[Any]", timeout_s: float, as_json: bool) -> None:
    value = handle.get(timeout=timeout_s)
    if as_json:
        print_json({"id": handle.id, "state": "SUCCESS", "result": value})
    else:
        click.echo(value if isinstance(value, str) else repr(value))


@click.command(
    epilog="""\b
Example:
  taskq result 5f0c... --wait --timeout 30"""
)
@app_option
@click.argument("task_id", metavar="ID")
@click.option("--wait", is_flag=True, help="Wait until the task has ended.")
@click.option("--timeout", type=float, default=60.0, metavar="S", help="Wait at most (60).")
@json_option
def result(task_id: str, wait: bool, timeout: float, as_json: bool) -> int:
    """Print how the task ID stands; exit code 1 unless it succeeded or is on its way."""
    from taskq import outcome
    from taskq.errors import TaskqError

    with open_app() as app:
        handle = app.result(task_id)
        record = handle.record()
        if wait and record is not None and record.state not in outcome.TERMINAL:
            try:
                handle.get(timeout=timeout)
            except TaskqError as error:
                click.echo(f"Error: {error}", err=True)
            record = handle.record()
    if record is None:
        click.echo(f"Error: task {task_id} is unknown: never sent, or its result expired", err=True)
        return 1
    failure = record.error
    value = record.result() if record.state == outcome.SUCCESS else None
    if as_json:
        print_json(
            {
                "id": task_id,
                "task": record.task,
                "state": record.state,
                "attempt": record.attempt + 1,
                "result": value,
                "exception": (
                    {"type": failure.type, "message": failure.message} if failure else None
                ),
                "runtime_s": record.runtime_us / 1e6,
                "worker": record.worker,
            }
        )
    else:
        click.echo(record.state)
        if record.state == outcome.SUCCESS:
            click.echo(repr(value))
        elif failure is not None:
            click.echo(f"{failure.type}: {failure.message}")
            click.echo(failure.traceback.rstrip())
    return 1 if record.state in (outcome.FAILURE, outcome.CANCELLED, outcome.EXPIRED) else 0


@click.command(
    epilog="""\b
Example:
  taskq cancel 5f0c..."""
)
@app_option
@click.argument("task_ids", metavar="ID...", nargs=-1, required=True)
@json_option
def cancel(task_ids: tuple[str, ...], as_json: bool) -> int:
    """Cancel tasks that have not started; they never will, even without a worker alive now."""
    rows = []
    with open_app() as app:
        for task_id in task_ids:
            done = app.cancel(task_id)
            state = "CANCELLED" if done else app.result(task_id).state
            rows.append({"id": task_id, "cancelled": done, "state": state})
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            word = "cancelled" if row["cancelled"] else f"not cancelled: it is {row['state']}"
            click.echo(f"{row['id']} {word}")
    return 0 if all(row["cancelled"] for row in rows) else 1
