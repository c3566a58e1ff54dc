"""From a call with options to the message that is sent: defaults, checks, due time, ids."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from taskq import clock
from taskq.body import Embed, encode_call
from taskq.brokers.base import Outgoing
from taskq.brokers.shapes import check_queue_name
from taskq.canvas import Chain, Signature
from taskq.config import Settings, nearest
from taskq.errors import ConfigError
from taskq.ids import new_id
from taskq.message import DEADLINE, DUE, SENT
from taskq.queues import FROM_BEFORE, Queues
from taskq.request import Request
from taskq.request import current as current_request
from taskq.retry import MAX_DELAY_S
from taskq.routes import Routes
from taskq.timelimits import call_limits

OPTIONS: Final = frozenset(
    {
        "countdown",
        "eta",
        "expires",
        "deadline",
        "idempotency_key",
        "queue",
        "priority",
        "task_id",
        "headers",
        "serializer",
        "time_limit",
        "soft_time_limit",
        "ignore_result",
        "link",
        "link_error",
    }
)
"""What `apply_async` takes besides arguments."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A call ready to be sent.

    Attributes:
        outgoing: The message, where it goes and when.
        ids: Ids of all steps, the first one's first.
        delay_s: How far ahead it is due, in seconds.
    """

    outgoing: Outgoing
    ids: list[str]
    delay_s: float


def prepare(
    call: Signature[Any] | Chain,
    defaults: Callable[[str], Mapping[str, Any]],
    settings: Settings,
    routes: Routes | None = None,
    queues: Queues | None = None,
) -> Prepared:
    """Build the message of a call or of a chain's first step.

    Args:
        call: What to send.
        defaults: Gives the options that a task declares, by its name.
        settings: The app's settings.
        routes: Where calls go that name no queue, of tasks that declare none.
        queues: The app's declared queues; a call to a sharded one goes to its shard.

    Raises:
        ConfigError: For an unknown or unusable option.
        EncodeError: If the arguments have no form on the wire.
    """
    steps = call.steps if isinstance(call, Chain) else (call,)
    merged = [_with_defaults(step, defaults, settings, routes) for step in steps]
    if queues:
        for number, (step, options) in enumerate(zip(steps, merged, strict=True)):
            before = (FROM_BEFORE,) if number and not step.immutable else ()
            queues.place(options, (*before, *step.args), step.kwargs)
    ids = [options.get("task_id") or new_id() for options in merged]
    parent = current_request.get()
    root_id = (parent.root_id or parent.id) if parent is not None else None
    rest = [
        _later_step(step, options, task_id)
        for step, options, task_id in zip(steps[1:], merged[1:], ids[1:], strict=True)
    ]
    return _first_step(steps[0], merged[0], ids, rest, settings, parent, root_id)


def _with_defaults(
    step: Signature[Any],
    defaults: Callable[[str], Mapping[str, Any]],
    settings: Settings,
    routes: Routes | None,
) -> dict[str, Any]:
    for name in step.options:
        if name not in OPTIONS:
            raise ConfigError(f"unknown option {name!r}{nearest(name, OPTIONS)}")
    given = {name: value for name, value in step.options.items() if value is not None}
    options = {**defaults(step.task), **given}
    if routes is not None and len(routes):
        route = routes.find(step.task, step.args, step.kwargs, options)
        if route is not None:
            options["queue"] = options.get("queue") or route.queue
            if route.priority is not None and "priority" not in given:
                options["priority"] = options.get("priority") or route.priority
    options["queue"] = check_queue_name(options.get("queue") or settings.default_queue)
    return options


def _later_step(step: Signature[Any], options: dict[str, Any], task_id: str) -> dict[str, Any]:
    wire = step.to_wire()
    kept = {"task_id": task_id, "queue": options["queue"]}
    if options.get("priority"):
        kept["priority"] = options["priority"]
    headers = {**(options.get("headers") or {}), **options.get("shard", {})}
    if options.get("task_id"):
        headers[SENT] = clock.now_ms()
    if headers:
        kept["headers"] = headers
    limits = call_limits(step.task, options)
    if any(limits):
        kept["time_limit"], kept["soft_time_limit"] = limits
    for name in ("countdown", "eta", "expires", "deadline"):
        if step.options.get(name) is not None:
            raise ConfigError(f"only the first step of a chain takes {name}=")
    for name in ("link", "link_error"):
        if options.get(name):
            kept[name] = list(_link_wires(options[name]))
    wire["options"] = kept
    return wire


def _link_wires(links: Any) -> tuple[dict[str, Any], ...]:
    if not links:
        return ()
    items = links if isinstance(links, list | tuple) else (links,)
    if not all(isinstance(item, Signature) for item in items):
        raise ConfigError("link and link_error take signatures such as task.s()")
    return tuple(item.to_wire() for item in items)


def _first_step(
    step: Signature[Any],
    options: Mapping[str, Any],
    ids: list[str],
    rest: list[dict[str, Any]],
    settings: Settings,
    parent: Request | None,
    root_id: str | None,
) -> Prepared:
    now_ms = clock.now_ms()
    due_ms = _due_ms(options, now_ms)
    headers: dict[str, Any] = dict(options.get("headers") or {})
    _refuse_reserved(headers)
    if options.get("task_id"):
        headers[SENT] = now_ms
    headers.update(options.get("shard", {}))
    if due_ms:
        headers["eta"] = clock.to_iso(due_ms)
        headers[DUE] = due_ms
    expires_ms = _end_ms("expires", options.get("expires"), now_ms)
    if expires_ms:
        headers["expires"] = clock.to_iso(expires_ms)
    deadline_ms = _deadline_ms(options.get("deadline"), now_ms, due_ms, parent)
    if deadline_ms:
        headers[DEADLINE] = deadline_ms
    if parent is not None and not parent.called_directly:
        headers["parent_id"] = parent.id
        headers["root_id"] = root_id
    elif len(ids) > 1:
        headers["root_id"] = ids[0]
    limits = call_limits(step.task, options)
    if any(limits):
        headers["timelimit"] = list(limits)
    if options.get("ignore_result"):
        headers["ignore_result"] = True
    embed = Embed(
        callbacks=_link_wires(options.get("link")),
        errbacks=_link_wires(options.get("link_error")),
        chain=tuple(reversed(rest)),
    )
    message = encode_call(
        step.task,
        _task_id(ids[0]),
        step.args,
        step.kwargs,
        embed=embed,
        serializer=options.get("serializer") or settings.serializer,
        priority=_priority(options.get("priority")),
        headers=headers or None,
    )
    delay_s = max(0, due_ms - now_ms) / 1000
    return Prepared(Outgoing(options["queue"], message, due_ms), ids, delay_s)


def _task_id(task_id: Any) -> str:
    if not isinstance(task_id, str) or not 0 < len(task_id.encode()) <= 200:
        raise ConfigError(f"task_id is {task_id!r:.80}; use text of 1 to 200 bytes")
    return task_id


def _refuse_reserved(headers: Mapping[str, Any]) -> None:
    for name in headers:
        if str(name) in ("task", "id") or str(name).startswith(("taskq-", "x-death")):
            raise ConfigError(f"header {name!r} is reserved; choose another name")


def _due_ms(options: Mapping[str, Any], now_ms: int) -> int:
    countdown, eta = options.get("countdown"), options.get("eta")
    if countdown is not None and eta is not None:
        raise ConfigError("countdown and eta exclude each other; give one")
    if countdown is not None:
        return now_ms + round(_seconds("countdown", countdown) * 1000) if countdown else 0
    return 0 if eta is None else _moment_ms("eta", eta, now_ms)


def _end_ms(name: str, end: Any, now_ms: int) -> int:
    if end is None:
        return 0
    if isinstance(end, datetime):
        return _moment_ms(name, end, now_ms)
    if isinstance(end, timedelta):
        end = end.total_seconds()
    return now_ms + round(_seconds(name, end) * 1000)


def _deadline_ms(deadline: Any, now_ms: int, due_ms: int, parent: Request | None) -> int:
    """Return when a call must have ended: by its own deadline, or by that of the task it is from.

    A child cannot have more time than its parent, which waits for it or has promised its effect.
    """
    own_ms = _end_ms("deadline", deadline, now_ms)
    if own_ms and due_ms >= own_ms:
        raise ConfigError("the call is due after its deadline, so it could never run")
    inherited = parent.headers.get(DEADLINE) if parent is not None else None
    if not isinstance(inherited, int) or inherited <= 0:
        return own_ms
    return min(own_ms, inherited) if own_ms else inherited


def _seconds(name: str, value: Any) -> float:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not 0 <= number <= MAX_DELAY_S:
        raise ConfigError(f"{name} is {value!r}; use 0 to {MAX_DELAY_S:.0f} seconds (366 days)")
    return float(number)


def _moment_ms(name: str, value: Any, now_ms: int) -> int:
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise ConfigError(
            f"{name} is {value!r}; use an aware datetime, such as "
            "datetime.now(timezone.utc) + timedelta(hours=1)"
        )
    moment_ms = max(1, math.ceil(value.timestamp() * 1000))
    if moment_ms - now_ms > MAX_DELAY_S * 1000:
        raise ConfigError(f"{name} is {value.isoformat()}, more than 366 days ahead")
    return moment_ms


def _priority(value: Any) -> int:
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 9:
        raise ConfigError(f"priority is {value!r}; use 0 (lowest) to 9")
    return value
