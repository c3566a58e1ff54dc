"""The options of a task: what a declaration may say, and what is wrong with it."""

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from taskq.brokers.shapes import check_queue_name
from taskq.config import nearest
from taskq.errors import ConfigError
from taskq.flow.spec import (
    CircuitBreaker,
    FlowOptions,
    KeyOption,
    RetryBudget,
    Unique,
)
from taskq.retry import RetryPolicy
from taskq.schedules import Schedule

if TYPE_CHECKING:
    from taskq.flow.declared import FlowSpec


class TaskOptions(FlowOptions, total=False):
    """What `@app.task(...)` takes; see `TaskSpec` for the meaning of each."""

    name: str
    queue: str
    max_retries: int
    retry: RetryPolicy
    soft_time_limit: float
    time_limit: float
    heartbeat_timeout_s: float
    priority: int
    serializer: str
    dead_letter: bool
    ignore_result: bool
    result_ttl: int
    expires: float
    schedule: Schedule
    deadline: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """The options of a task.

    Attributes:
        name: Registered name.
        queue: Queue it is sent to; empty for the app's default.
        bind: Whether the function takes the task itself first.
        max_retries: Retries after the first attempt; None for the app's setting.
        retry: When a failed attempt runs again.
        soft_time_limit: Seconds until SoftTimeLimitExceeded is raised in the task; None for never.
        time_limit: Seconds until it is stopped from outside; None for never.
        heartbeat_timeout_s: Seconds without `self.heartbeat()` until it is stopped as at its time
            limit; None for no such limit.
        priority: 0 (lowest) to 9.
        serializer: `msgpack` or `json`; empty for the app's setting.
        dead_letter: Whether a final failure leaves a dead letter.
        ignore_result: Whether the value is thrown away; the state is kept all the same.
        result_ttl: Seconds to keep the result; None for the app's setting.
        expires: Seconds after sending within which it must start; None for ever.
        schedule: When the scheduler sends it, without arguments; see `taskq.crontab`.
        deadline: Seconds after sending within which it must have ended, with everything it sends;
            None for no bound.
        rate_limit: Starts per period in all workers together, such as `100/m`; more wait.
        rate_burst: Starts that may follow each other at once; half a second's by default.
        rate_limit_key: Expression such as `args[0]`, or a callable of the arguments: one rate for
            each of its values.
        max_concurrency: Runs at one time in all workers together; more wait.
        concurrency_key: As `rate_limit_key`: so many runs for each of its values.
        unique: `until_start`, `until_done` or seconds: one message of a key at a time.
        unique_key: As `rate_limit_key`; all arguments by default.
        unique_ttl: Seconds after which a claim ends whose message is lost; a day by default.
        on_duplicate: What a second call gets: the `existing` handle, or `raise` for AlreadyQueued.
        debounce: Seconds to wait for a later call of the same key, whose arguments then win.
        idempotency_key: As `rate_limit_key`: one successful run for each of its values.
        idempotency_ttl: Seconds for which a success counts; a day by default.
        circuit_breaker: When to stop starting it because its runs fail.
        circuit_breaker_key: As `rate_limit_key`: one breaker for each of its values.
        retry_budget: Share of the traffic that may be retries, as a number or a RetryBudget.
        flow: The options from `rate_limit` on, checked; None where there are none.
    """

    name: str
    queue: str = ""
    bind: bool = False
    max_retries: int | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    soft_time_limit: float | None = None
    time_limit: float | None = None
    heartbeat_timeout_s: float | None = None
    priority: int = 0
    serializer: str = ""
    dead_letter: bool = True
    ignore_result: bool = False
    result_ttl: int | None = None
    expires: float | None = None
    schedule: Schedule | None = None
    deadline: float | None = None
    rate_limit: str | None = None
    rate_burst: int | None = None
    rate_limit_key: KeyOption | None = None
    max_concurrency: int | None = None
    concurrency_key: KeyOption | None = None
    unique: Unique | None = None
    unique_key: KeyOption | None = None
    unique_ttl: float | None = None
    on_duplicate: Literal["existing", "raise"] | None = None
    debounce: float | None = None
    idempotency_key: KeyOption | None = None
    idempotency_ttl: float | None = None
    circuit_breaker: CircuitBreaker | None = None
    circuit_breaker_key: KeyOption | None = None
    retry_budget: float | RetryBudget | None = None
    flow: "FlowSpec | None" = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 0 < len(self.name.encode()) <= 200:
            raise ConfigError(f"task name {self.name!r:.80} is not text of 1 to 200 bytes")
        if self.queue:
            check_queue_name(self.queue)
        if not isinstance(self.retry, RetryPolicy):
            raise ConfigError(f"{self.name}: retry is {self.retry!r}; use a RetryPolicy")
        if self.schedule is not None and not isinstance(self.schedule, Schedule):
            raise ConfigError(
                f"{self.name}: schedule is {self.schedule!r:.60}; use crontab(...) or every(...)"
            )
        _whole(self, "max_retries", 0, 10_000)
        _whole(self, "priority", 0, 9)
        _whole(self, "result_ttl", 1, 10**9)
        limits = ("soft_time_limit", "time_limit", "heartbeat_timeout_s", "expires", "deadline")
        for name in limits:
            _positive(self, name)
        soft, hard = self.soft_time_limit, self.time_limit
        if soft is not None and hard is not None and soft >= hard:
            raise ConfigError(
                f"{self.name}: soft_time_limit {soft:g} must be below time_limit {hard:g}"
            )
        if self.serializer not in ("", "msgpack", "json"):
            raise ConfigError(f"{self.name}: serializer {self.serializer!r}: 'msgpack' or 'json'")
        object.__setattr__(self, "flow", self._read_flow())

    def _read_flow(self) -> "FlowSpec | None":
        given = {name: getattr(self, name) for name in FlowOptions.__annotations__}
        if not any(value is not None for value in given.values()):
            return None
        from taskq.flow.declared import make_flow

        return make_flow(self.name, given)


def _whole(spec: TaskSpec, name: str, low: int, high: int) -> None:
    value = getattr(spec, name)
    if value is None and name != "priority":
        return
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(f"{spec.name}: {name} is {value!r}; use a whole number {low} to {high}")


def _positive(spec: TaskSpec, name: str) -> None:
    value = getattr(spec, name)
    if value is None:
        return
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not 0 < value < math.inf:
        raise ConfigError(f"{spec.name}: {name} is {value!r}; use seconds above 0")


_OPTION_NAMES = tuple(item.name for item in fields(TaskSpec) if item.init)


def default_name(function: Callable[..., Any]) -> str:
    """Return `<module>.<function>`; under `__main__` the file's stem stands for the module."""
    module = function.__module__
    if module == "__main__":
        path = getattr(sys.modules["__main__"], "__file__", None)
        module = Path(path).stem if path else "__main__"
    return f"{module}.{function.__qualname__}"


def make_spec(function: Callable[..., Any], options: Mapping[str, Any]) -> TaskSpec:
    """Return the checked options of a task.

    Raises:
        ConfigError: For an unknown option or an unusable value.
    """
    if not callable(function):
        raise ConfigError(f"@task decorates functions, not {function!r:.60}")
    for name in options:
        if name not in _OPTION_NAMES:
            raise ConfigError(f"unknown task option {name!r}{nearest(name, _OPTION_NAMES)}")
    given = {name: value for name, value in options.items() if value is not None}
    return TaskSpec(**{"name": default_name(function), **given})
