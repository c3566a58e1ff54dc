"""What a task may declare of its flow: the options, circuit breakers and retry budgets.

`declared` reads them, and is imported by those who declare some: `import taskq` stays light.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypedDict

from taskq.errors import ConfigError

MAX_SPAN_S: Final = 366 * 86400.0

KeyOption = str | Callable[..., Any]
Unique = Literal["until_start", "until_done"] | float


class FlowOptions(TypedDict, total=False):
    """What `@app.task(...)` takes of flow control; see `FlowSpec` for the meaning of each."""

    rate_limit: str
    rate_burst: int
    rate_limit_key: KeyOption
    max_concurrency: int
    concurrency_key: KeyOption
    unique: Unique
    unique_key: KeyOption
    unique_ttl: float
    on_duplicate: Literal["existing", "raise"]
    debounce: float
    idempotency_key: KeyOption
    idempotency_ttl: float
    circuit_breaker: "CircuitBreaker"
    circuit_breaker_key: KeyOption
    retry_budget: "float | RetryBudget"


def check_whole(name: str, value: Any, high: int) -> None:
    """Check a whole number from 1.

    Raises:
        ConfigError: If it is none, or above `high`.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= high:
        raise ConfigError(f"{name} is {value!r:.60}; use a whole number from 1 to {high}")


def span_us(name: str, value: Any) -> int:
    """Return seconds as whole microseconds.

    Raises:
        ConfigError: Unless it is a number above 0 and at most 366 days.
    """
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not 0 < value <= MAX_SPAN_S:
        raise ConfigError(f"{name} is {value!r:.60}; use seconds above 0, at most 366 days")
    span: int = max(1, round(value * 1e6))
    return span


@dataclass(frozen=True, slots=True)
class CircuitBreaker:
    """Stops starting a task whose runs keep failing, until a probe succeeds.

    Attributes:
        failures: Failures within the window that open it.
        window_s: Length of the window, in seconds.
        reset_s: How long it stays open before a probe is let through, in seconds.
        on: Exception classes that count; others say that the service answers.
    """

    failures: int = 5
    window_s: float = 60
    reset_s: float = 30
    on: type[BaseException] | Sequence[type[BaseException]] = (Exception,)

    def __post_init__(self) -> None:
        check_whole("CircuitBreaker.failures", self.failures, 1000)
        span_us("CircuitBreaker.window_s", self.window_s)
        span_us("CircuitBreaker.reset_s", self.reset_s)
        classes = tuple(self.on) if isinstance(self.on, tuple | list) else (self.on,)
        for item in classes:
            if not (isinstance(item, type) and issubclass(item, BaseException)):
                raise ConfigError(f"CircuitBreaker.on holds {item!r:.60}, no exception class")
        object.__setattr__(self, "on", classes)

    def counts(self, error: BaseException) -> bool:
        """Return whether a failure counts."""
        return isinstance(error, self.on)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class RetryBudget:
    """Bounds retries to a share of the traffic, so that an outage does not multiply it.

    Attributes:
        share: Retries for each first attempt, above 0 and at most 1.
        min_per_s: Retries that are always allowed, per second.
        burst: Retries that may be saved up.
    """

    share: float = 0.1
    min_per_s: float = 1.0
    burst: int = 10

    def __post_init__(self) -> None:
        for name, high in (("share", 1.0), ("min_per_s", 1e6)):
            value = getattr(self, name)
            good = isinstance(value, int | float) and not isinstance(value, bool)
            if not good or not 0 < value <= high or math.isnan(value):
                raise ConfigError(f"RetryBudget.{name} is {value!r:.60}; use above 0 to {high:g}")
        check_whole("RetryBudget.burst", self.burst, 1_000_000)
