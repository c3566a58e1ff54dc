"""Looking at limits, claims and circuit breakers, and changing them at run time.

What `taskq limits` and `taskq inspect limits` are made of. All of it looks at the store that
workers share, or changes it, and needs no worker.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from taskq.app import TaskQ, find_task
from taskq.errors import ConfigError
from taskq.flow.asks import SETTINGS
from taskq.flow.declared import parse_rate
from taskq.flow.keys import split_cell
from taskq.flow.spec import check_whole

KINDS: Final = {
    "r": "rate",
    "c": "concurrency",
    "u": "unique",
    "i": "idempotency",
    "b": "breaker",
    "g": "budget",
}
"""Letter of a cell to the name that users see."""
RESET_BY_DEFAULT: Final = ("rate", "breaker", "budget")
"""Kinds that can be forgotten without any task running that should not."""


def list_limits(app: TaskQ, task: str = "") -> list[dict[str, Any]]:
    """Return what tasks declare, and what is held and waited for now.

    Args:
        app: The app; what its tasks declare is listed too.
        task: Only this one; empty for all.

    Returns:
        Rows with `kind, task, key, limit, state, detail`; `key` is None in the row of a
        declaration, and `detail` is a map.

    Raises:
        ConfigError: If results are off.
        ResultsUnavailable: If the store cannot be reached.
    """
    store = app.flow()
    now_us, cells = store.now_us(), store.cells()
    _version, changed = cells.pop(SETTINGS, [0, {}])
    rows = _declared(app, changed or {})
    for name, state in cells.items():
        try:
            letter, owner, key = split_cell(name)
        except ValueError:
            # Another program's key below this prefix.
            continue
        if letter in _STATES:
            text, detail = _STATES[letter](state, now_us)
            rows.append(_row(KINDS[letter], owner, key, "", text, detail))
    return [row for row in rows if task in ("", row["task"])]


def _row(
    kind: str, task: str, key: str | None, limit: str, state: str, detail: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "kind": kind,
        "task": task,
        "key": key,
        "limit": limit,
        "state": state,
        "detail": dict(detail),
    }


def _declared(app: TaskQ, changed: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name, task in sorted(app.tasks.items()):
        flow = task.spec.flow
        if flow is None:
            continue
        if flow.rate is not None:
            rate = changed.get("r" + name)
            limit = flow.rate.text if rate is None else _rate_text(*rate)
            rows.append(_row("rate", name, None, limit, "declared" if rate is None else "set", {}))
        if flow.slots:
            slots = changed.get("c" + name)
            state = "declared" if slots is None else "set"
            rows.append(_row("concurrency", name, None, str(slots or flow.slots), state, {}))
    return rows


def _rate_text(interval_us: int, burst: int) -> str:
    per_s = 1e6 / interval_us
    text = f"{per_s:g}/s" if per_s >= 1 else f"{per_s * 60:g}/m"
    return text if burst == 1 else f"{text} burst {burst}"


def _rate(state: Sequence[Any], now_us: int) -> tuple[str, dict[str, Any]]:
    wait_s = max(0, state[1] - now_us) / 1e6
    return ("limiting" if wait_s > 1 else "free"), {"wait_s": round(wait_s, 1)}


def _slots(state: Sequence[Any], now_us: int) -> tuple[str, dict[str, Any]]:
    holders = [name for name, held in dict(state[0] or {}).items() if held[0] > now_us]
    wait_s = max(0, state[1] - now_us) / 1e6
    detail = {"running": len(holders), "holders": sorted(holders), "wait_s": round(wait_s, 1)}
    return f"{len(holders)} running", detail


def _claim(state: Sequence[Any], now_us: int) -> tuple[str, dict[str, Any]]:
    ends_s = round(max(0, state[1] - now_us) / 1e6, 1)
    return "held", {"task_id": state[0], "ends_in_s": ends_s}


def _key(state: Sequence[Any], now_us: int) -> tuple[str, dict[str, Any]]:
    ends_s = round(max(0, state[2] - now_us) / 1e6, 1)
    return ("succeeded" if state[0] else "running"), {"task_id": state[1], "ends_in_s": ends_s}


def _breaker(state: Sequence[Any], now_us: int) -> tuple[str, dict[str, Any]]:
    fails, until, probe = state[:3]
    if not until:
        return "closed", {"failures": len(fails)}
    if now_us < until:
        return "open", {"retry_in_s": round((until - now_us) / 1e6, 1)}
    return "half-open", {"probe": probe}


def _budget(state: Sequence[Any], now_us: int) -> tuple[str, dict[str, Any]]:
    wait_s = max(0, state[2] - now_us) / 1e6
    detail = {"retries_left": int(state[0]), "wait_s": round(wait_s, 1)}
    return ("limiting" if wait_s else "free"), detail


_STATES: Final[Mapping[str, Callable[[Sequence[Any], int], tuple[str, dict[str, Any]]]]] = {
    "r": _rate,
    "c": _slots,
    "u": _claim,
    "i": _key,
    "b": _breaker,
    "g": _budget,
}


def set_limit(
    app: TaskQ,
    task: str,
    *,
    rate: str | None = None,
    burst: int | None = None,
    concurrency: int | None = None,
) -> None:
    """Change a task's limits for all workers, until they are reset.

    Args:
        app: The app, which knows the task.
        task: Its name.
        rate: Such as `100/m`.
        burst: Starts that may follow each other at once.
        concurrency: Runs at one time.

    Raises:
        ConfigError: If the task is not known or declares no such limit, or a value is not usable.
        ResultsUnavailable: If the store cannot be reached.
    """
    flow = find_task(app, task).spec.flow
    changes: list[tuple[str, Any]] = []
    if rate is not None:
        if flow is None or flow.rate is None:
            raise ConfigError(f"{task} declares no rate_limit, so no worker asks for one")
        read = parse_rate(rate, burst)
        changes.append(("r" + task, [read.interval_us, read.burst]))
    elif burst is not None:
        raise ConfigError("a burst is set together with its rate")
    if concurrency is not None:
        if flow is None or not flow.slots:
            raise ConfigError(f"{task} declares no max_concurrency, so no worker asks for one")
        check_whole("concurrency", concurrency, 10_000)
        changes.append(("c" + task, concurrency))
    if not changes:
        raise ConfigError("nothing to set; give a rate or a concurrency")
    store = app.flow()
    # A line that was made for the old rate would keep its pace.
    stale = [cell for cell in store.cells() if _is(cell, ("rate",), task, None)]
    for name, value in changes:
        store.change(name, value, stale if name[0] == "r" else ())


def reset_limits(
    app: TaskQ, task: str, *, kinds: Collection[str] = RESET_BY_DEFAULT, key: str | None = None
) -> int:
    """Forget what was set at run time for a task, and the state of its limits.

    Args:
        app: The app; it need not know the task.
        task: Name of the task.
        kinds: Of `KINDS`' names. Forgetting `concurrency`, `unique` or `idempotency` may let tasks
            run that they would have held back.
        key: Only the state of this key, as it is listed; what was set stays then.

    Returns:
        How many cells were forgotten.

    Raises:
        ConfigError: If a kind is not known, or results are off.
        ResultsUnavailable: If the store cannot be reached.
    """
    for kind in kinds:
        if kind not in KINDS.values():
            raise ConfigError(f"unknown kind {kind!r}; use {', '.join(KINDS.values())}")
    store = app.flow()
    forget = [cell for cell in store.cells() if _is(cell, kinds, task, key)]
    store.change("", None, forget)
    if key is None:
        for letter in ("r", "c"):
            store.change(letter + task, None)
    return len(forget)


def _is(cell: str, kinds: Collection[str], task: str, key: str | None) -> bool:
    try:
        letter, owner, own_key = split_cell(cell)
    except ValueError:
        return False
    return KINDS.get(letter) in kinds and owner == task and key in (None, own_key)
