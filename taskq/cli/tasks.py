"""`taskq call` and `taskq result`."""

from typing import TYPE_CHECKING, Any

import click

from taskq import clock, outcome
from taskq.cli.errors import EX_FAILURE, EX_OK, Failure
from taskq.cli.framework import Command, app_place, json_option, opened_app
from taskq.cli.output import as_text, pairs, say, suggestion, write_json
from taskq.cli.values import JSON_LIST, JSON_MAP, MOMENT, SPAN
from taskq.errors import RemoteError, ResultsDisabled, ResultTimeout, TaskqError

if TYPE_CHECKING:
    from taskq.app import TaskQ
    from taskq.result import AsyncResult
    from taskq.results.base import Record

_TIMEOUT_S = 60.0


def wait_options(command: Any) -> Any:
    """Add `--wait` and `--timeout`."""
    timeout = click.option(
        "--timeout",
        "timeout_s",
        type=SPAN,
        default=_TIMEOUT_S,
        metavar="S",
        help=f"How long to wait ({_TIMEOUT_S:g} s by default).",
    )
    return click.option("--wait", is_flag=True, help="Wait until the task has ended.")(
        timeout(command)
    )


@click.command(
    cls=Command,
    examples="""
    taskq call -A shop:app shop.add --args '[2, 3]' --wait
    taskq call -A shop:app mail.send --kwargs '{"to": "ann"}' --countdown 60
    taskq call mail.send --queue mail             by name, without the app
    """,
)
@click.argument("name")
@click.option("--args", type=JSON_LIST, default="[]", metavar="JSON", help="Positional arguments.")
@click.option("--kwargs", type=JSON_MAP, default="{}", metavar="JSON", help="Keyword arguments.")
@click.option("--countdown", type=SPAN, metavar="S", help="Start in so many seconds (or 30m, 12h).")
@click.option("--eta", type=MOMENT, metavar="DATE", help="Start at this moment, in ISO-8601.")
@click.option("--queue", metavar="NAME", help="Queue; by default the task's own, or `default`.")
@click.option("--priority", type=click.IntRange(0, 9), metavar="0-9", help="0 by default.")
@click.option("--expires", type=SPAN, metavar="S", help="Do not start it later than this.")
@click.option("--deadline", type=SPAN, metavar="S", help="It must have ended by then.")
@click.option("--task-id", metavar="ID", help="Id to use; sending it again is safe.")
@wait_options
@json_option
def call(
    name: str,
    args: list[Any],
    kwargs: dict[str, Any],
    wait: bool,
    timeout_s: float,
    as_json: bool,
    **options: Any,
) -> int:
    """Send the task NAME and print its id, or its result with --wait.

    With an app (-A), the name must be one of its tasks, and the arguments must fit. Without one,
    any name is sent.
    """
    with opened_app() as app:
        _refuse_unknown(app, name)
        if wait and app.results is None:
            raise ResultsDisabled(
                "nothing was sent: results are off, so there is nothing to wait for; "
                "set TASKQ_RESULTS or leave --wait out"
            )
        try:
            handle = app.send_task(name, args, kwargs, **options)
        except TypeError as error:
            raise click.UsageError(f"the arguments do not fit {name}: {error}") from error
        if not wait:
            write_json({"id": handle.id}) if as_json else say(handle.id)
            return EX_OK
        return _wait_and_show(handle, timeout_s, as_json)


def _refuse_unknown(app: "TaskQ", name: str) -> None:
    if app_place() and name not in app.tasks:
        raise click.UsageError(
            f"{app.name} has no task {name!r}{suggestion(name, sorted(app.tasks))}; "
            "leave -A out to send it all the same"
        )


def _wait_and_show(handle: "AsyncResult[Any]", timeout_s: float, as_json: bool) -> int:
    try:
        value = handle.get(timeout=timeout_s)
    except ResultTimeout as error:
        raise Failure(f"{error} Look later: taskq result {handle.id}") from error
    except TaskqError as error:
        if as_json:
            _show(handle.id, handle.record(), as_json)
        raise Failure(str(error)) from error
    if as_json:
        _show(handle.id, handle.record(), as_json)
    else:
        say(as_text(value))
    return EX_OK


@click.command(
    cls=Command,
    examples="""
    taskq result 1f0c8c0e-...
    taskq result 1f0c8c0e-... --wait --timeout 30 --json
    """,
)
@click.argument("task_id", metavar="ID")
@wait_options
@json_option
def result(task_id: str, wait: bool, timeout_s: float, as_json: bool) -> int:
    """Show the state of the task ID, and its value or its failure.

    Exit code 0 when it succeeded or has not ended yet, 1 when it failed, was cancelled, has
    expired, is unknown, or has not ended within --wait.
    """
    with opened_app() as app:
        handle = app.result(task_id)
        record = handle.record()
        late = False
        if wait and record is not None and record.state not in outcome.TERMINAL:
            try:
                handle.get(timeout=timeout_s)
            except ResultTimeout:
                late = True
            # How it ended is shown from its record.
            except TaskqError:
                pass
            record = handle.record()
        _show(task_id, record, as_json)
    if record is None:
        raise Failure(
            f"task {task_id} is unknown: never sent, forgotten, or its result has expired; "
            "is this the right results store?"
        )
    if late:
        raise Failure(f"task {task_id} has not ended after {timeout_s:g} s; is a worker running?")
    ended_badly = record.state in outcome.TERMINAL and record.state != outcome.SUCCESS
    return EX_FAILURE if ended_badly else EX_OK


def _show(task_id: str, record: "Record | None", as_json: bool) -> None:
    data = _describe(task_id, record)
    if as_json:
        write_json(data)
        return
    error = data.pop("exception")
    rows = [(name, value) for name, value in data.items() if value not in (None, "")]
    if record is not None and record.state == outcome.SUCCESS:
        rows = [row for row in rows if row[0] != "result"]
        rows.append(("result", as_text(data["result"])))
    if error is not None:
        rows.append(("exception", f"{error['type']}: {error['message']}"))
        rows += [("cause", f"{cause['type']}: {cause['message']}") for cause in error["causes"]]
        if error["traceback"]:
            # With its line end, so that it gets lines of its own.
            rows.append(("traceback", f"{error['traceback']}\n "))
    pairs(rows)


def _describe(task_id: str, record: "Record | None") -> dict[str, Any]:
    if record is None:
        return {"id": task_id, "state": outcome.UNKNOWN, "result": None, "exception": None}
    error = record.error
    cancelled = record.state == outcome.CANCELLED
    return {
        "id": task_id,
        "state": record.state,
        "task": record.task,
        "result": record.result(),
        "exception": None if error is None else _exception(error),
        # A cancel wins over every attempt by a number of its own, which tells nothing.
        "attempt": None if cancelled else record.attempt + 1,
        "worker": record.worker,
        "at": clock.to_iso(record.at_ms) if record.at_ms else None,
        "runtime_s": record.runtime_us / 1e6 if record.runtime_us else None,
    }


def _exception(error: RemoteError) -> dict[str, Any]:
    return {
        "type": error.type,
        "module": error.module,
        "message": error.message,
        "traceback": error.traceback,
        "causes": [{"type": cause.type, "message": cause.message} for cause in error.causes],
    }
