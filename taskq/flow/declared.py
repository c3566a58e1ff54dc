"""The flow control of a task: its options read and checked, and as plain data for the worker."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from taskq.errors import ConfigError
from taskq.flow.keys import Key, make_key
from taskq.flow.spec import MAX_SPAN_S, CircuitBreaker, RetryBudget, check_whole, span_us

_RATE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*(\d*)\s*(ms|s|m|h|d)\s*")
_UNITS_US: Final = {
    "ms": 1_000,
    "s": 1_000_000,
    "m": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
}
_MAX_SLOTS: Final = 10_000
UNIQUE_TTL_S: Final = 86400.0
"""How long a claim outlives a message that vanished."""
IDEMPOTENCY_TTL_S: Final = 86400.0


class Claim(NamedTuple):
    """A unique key that a sender wants for a message.

    Attributes:
        cell: Cell of the key.
        task_id: Id of the message.
        span_us: How long it is kept, in microseconds.
        ends: Whether it ends with its task.
    """

    cell: str
    task_id: str
    span_us: int
    ends: bool = False


class Rate(NamedTuple):
    """So many starts per period.

    Attributes:
        interval_us: Time from one start to the next, in microseconds.
        burst: Starts that may follow each other at once after a pause, at least 1.
        text: As the user wrote it.
    """

    interval_us: int
    burst: int
    text: str


def parse_rate(text: Any, burst: Any = None) -> Rate:
    """Read a rate such as `100/m`, `10/s`, `0.5/s` or `1000/15m`.

    Args:
        text: Starts, a slash, and a period: ms, s, m, h or d, with a number before it or without.
        burst: Starts that may come at once; None for half a second's worth, at least 1.

    Raises:
        ConfigError: If it cannot be read, or is below one start in 366 days or above 1,000,000/s.
    """
    found = _RATE.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ConfigError(
            f"rate limit {text!r:.60} cannot be read; write 100/m, 10/s, 0.5/s or 1000/15m"
        )
    count, periods, unit = float(found[1]), int(found[2] or 1), _UNITS_US[found[3]]
    interval_us = round(periods * unit / count) if count else 0
    if not 1 <= interval_us <= MAX_SPAN_S * 1e6:
        raise ConfigError(
            f"rate limit {text!r} is out of range; use one start in 366 days to 1000000/s"
        )
    if burst is None:
        # So much lateness on the way to a worker costs no starts, and a minute's count stays within
        # 1 % of the rate where that is 10/s.
        burst = max(1, round(500_000 / interval_us))
    check_whole("rate_burst", burst, 1_000_000)
    return Rate(interval_us, burst, text.strip())


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowSpec:
    """The flow control of one task, checked. Spans are in microseconds, as the stores count.

    Attributes:
        rate: Starts per period, for each value of `rate_key`.
        rate_key: Which bucket a call draws from; None for one per task.
        slots: Runs at one time, for each value of `slots_key`; 0 for no bound.
        slots_key: Which slots a call takes; None for the task's own.
        unique: `s` until it starts, `d` until it is done, `w` for a time, `b` debounced, or empty.
        unique_key: What makes two calls the same; None for all their arguments.
        unique_us: How long a claim holds.
        on_duplicate: What a second call gets: `existing` handle, or `raise` for AlreadyQueued.
        idempotency_key: What at most one run may succeed for; None where only calls give one.
        idempotency_us: How long a success counts.
        breaker: When to stop starting it, or None.
        breaker_key: Which breaker a call belongs to; None for the task's own.
        budget: How many retries, or None.
    """

    rate: Rate | None = None
    rate_key: Key | None = None
    slots: int = 0
    slots_key: Key | None = None
    unique: str = ""
    unique_key: Key | None = None
    unique_us: int = 0
    on_duplicate: str = "existing"
    idempotency_key: Key | None = None
    idempotency_us: int = round(IDEMPOTENCY_TTL_S * 1e6)
    breaker: CircuitBreaker | None = None
    breaker_key: Key | None = None
    budget: RetryBudget | None = None

    def keys(self) -> dict[str, Key | None]:
        """Return the keys that each message must carry: kind to expression.

        None stands for all arguments.
        """
        found: dict[str, Key | None] = {}
        for kind, key in (
            ("r", self.rate_key),
            ("c", self.slots_key),
            ("i", self.idempotency_key),
            ("b", self.breaker_key),
        ):
            if key is not None:
                found[kind] = key
        if self.unique:
            found["u"] = self.unique_key
        return found

    def to_wire(self) -> dict[str, Any]:
        """Return what the hub needs, as plain data for msgpack."""
        rate, breaker, budget = self.rate, self.breaker, self.budget
        return {
            "keys": sorted(self.keys()),
            "rate": [rate.interval_us, rate.burst, rate.text] if rate else None,
            "slots": self.slots,
            "unique": [self.unique, self.unique_us] if self.unique else None,
            "idempotency_us": self.idempotency_us,
            "breaker": _breaker_wire(breaker) if breaker else None,
            "budget": [budget.share, budget.min_per_s, budget.burst] if budget else None,
        }


def _breaker_wire(breaker: CircuitBreaker) -> list[Any]:
    from taskq.errors import TimeLimitExceeded, WorkerLost

    return [
        breaker.failures,
        span_us("window_s", breaker.window_s),
        span_us("reset_s", breaker.reset_s),
        breaker.counts(WorkerLost()),
        breaker.counts(TimeLimitExceeded()),
    ]


def make_flow(task: str, options: Mapping[str, Any]) -> FlowSpec | None:
    """Return the checked flow control of a task, None when it declares none.

    Args:
        task: Its name, for messages.
        options: What was given; None values are as good as absent.

    Raises:
        ConfigError: If a value cannot be used, or an option lacks the one it belongs to.
    """
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if not given:
        return None
    try:
        _check_pairs(given)
        return FlowSpec(
            **_limits(given),
            **_unique(given),
            **_idempotency(given),
            **_breaker(given),
        )
    except ConfigError as error:
        raise ConfigError(f"{task}: {error}") from error


_NEEDS: Final = {
    "rate_burst": ("rate_limit",),
    "rate_limit_key": ("rate_limit",),
    "concurrency_key": ("max_concurrency",),
    "unique_key": ("unique", "debounce"),
    "unique_ttl": ("unique",),
    "on_duplicate": ("unique",),
    "circuit_breaker_key": ("circuit_breaker",),
}


def _check_pairs(given: dict[str, Any]) -> None:
    for name, needed in _NEEDS.items():
        if name in given and not any(other in given for other in needed):
            raise ConfigError(f"{name} needs {' or '.join(needed)}")
    if "unique" in given and "debounce" in given:
        raise ConfigError("unique and debounce exclude each other; debounce is unique already")


def _limits(given: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "rate_limit" in given:
        found["rate"] = parse_rate(given["rate_limit"], given.get("rate_burst"))
        found["rate_key"] = make_key("rate_limit_key", given.get("rate_limit_key"))
    if "max_concurrency" in given:
        check_whole("max_concurrency", given["max_concurrency"], _MAX_SLOTS)
        found["slots"] = given["max_concurrency"]
        found["slots_key"] = make_key("concurrency_key", given.get("concurrency_key"))
    return found


def _unique(given: dict[str, Any]) -> dict[str, Any]:
    unique, wait = given.get("unique"), given.get("debounce")
    if unique is None and wait is None:
        return {}
    conflict = given.get("on_duplicate", "existing")
    if conflict not in ("existing", "raise"):
        raise ConfigError(f"on_duplicate is {conflict!r:.60}; use 'existing' or 'raise'")
    found: dict[str, Any] = {
        "unique_key": make_key("unique_key", given.get("unique_key")),
        "on_duplicate": conflict,
    }
    if wait is not None:
        return {**found, "unique": "b", "unique_us": span_us("debounce", wait)}
    if unique in ("until_start", "until_done"):
        ttl_us = span_us("unique_ttl", given.get("unique_ttl", UNIQUE_TTL_S))
        return {**found, "unique": "s" if unique == "until_start" else "d", "unique_us": ttl_us}
    if isinstance(unique, str):
        raise ConfigError(
            f"unique is {unique!r:.60}; use 'until_start', 'until_done' or a number of seconds"
        )
    return {**found, "unique": "w", "unique_us": span_us("unique", unique)}


def _idempotency(given: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "idempotency_key" in given:
        found["idempotency_key"] = make_key("idempotency_key", given["idempotency_key"])
    if "idempotency_ttl" in given:
        found["idempotency_us"] = span_us("idempotency_ttl", given["idempotency_ttl"])
    return found


def _breaker(given: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "circuit_breaker" in given:
        breaker = given["circuit_breaker"]
        if not isinstance(breaker, CircuitBreaker):
            raise ConfigError(f"circuit_breaker is {breaker!r:.60}; use a CircuitBreaker")
        found["breaker"] = breaker
        found["breaker_key"] = make_key("circuit_breaker_key", given.get("circuit_breaker_key"))
    if "retry_budget" in given:
        budget = given["retry_budget"]
        found["budget"] = budget if isinstance(budget, RetryBudget) else RetryBudget(budget)
    return found
