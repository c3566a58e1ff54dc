"""When a failed task runs again: pure arithmetic, no clock and no I/O of its own."""

import math
import random
from dataclasses import dataclass
from typing import Any, Literal

from taskq.errors import ConfigError

MAX_DELAY_S = 366 * 86400.0
"""The longest delay of a task, in seconds: one leap year."""

Jitter = Literal["full", "equal", "none"]
ExceptionTypes = type[BaseException] | tuple[type[BaseException], ...]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with jitter, and which exceptions are worth another attempt.

    The wait before retry n (from 1) is drawn from `min(cap_s, base_s * factor ** (n - 1))`:
    `full` jitter draws uniformly from zero to it, `equal` from its half to it, `none` takes it as
    it is ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015).

    Attributes:
        base_s: First wait in seconds; 0 retries at once.
        factor: Growth per attempt, at least 1.
        cap_s: Longest wait in seconds, at most 366 days.
        jitter: `full`, `equal` or `none`.
        on: Exception classes that are retried.
        dead_on: Exception classes that never are; wins over `on`.
        max_age_s: Give up when the first failure lies further back, in seconds; None for never.
    """

    base_s: float = 1
    factor: float = 2
    cap_s: float = 600
    jitter: Jitter = "full"
    on: ExceptionTypes = (Exception,)
    dead_on: ExceptionTypes = ()
    max_age_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("base_s", "cap_s"):
            value = getattr(self, name)
            if not (_is_number(value) and 0 <= value <= MAX_DELAY_S):
                raise ConfigError(
                    f"RetryPolicy.{name} is {value!r}; use 0 to {MAX_DELAY_S:.0f} seconds"
                )
        if not (_is_number(self.factor) and 1 <= self.factor < math.inf):
            raise ConfigError(f"RetryPolicy.factor is {self.factor!r}; use 1 or more")
        if self.jitter not in ("full", "equal", "none"):
            raise ConfigError(f"RetryPolicy.jitter is {self.jitter!r}; use 'full', 'equal', 'none'")
        if self.max_age_s is not None and not (_is_number(self.max_age_s) and self.max_age_s > 0):
            raise ConfigError(f"RetryPolicy.max_age_s is {self.max_age_s!r}; use seconds above 0")
        for name in ("on", "dead_on"):
            object.__setattr__(self, name, _class_tuple(name, getattr(self, name)))

    def delay_s(self, attempt: int, rng: random.Random | None = None) -> float:
        """Return how long to wait after a failed run.

        Args:
            attempt: The run that just failed, counted from 1.
            rng: Source of jitter; tests pass a seeded one.

        Returns:
            Seconds in [0, cap_s].

        Raises:
            ValueError: If `attempt` is below 1.
        """
        if attempt < 1:
            raise ValueError(f"attempts are counted from 1, not {attempt}")
        # factor ** 1000 overflows a float; past the cap the exponent no longer matters.
        try:
            full = min(self.cap_s, self.base_s * self.factor ** (attempt - 1))
        except OverflowError:
            full = self.cap_s if self.base_s else 0.0
        draw = random.random() if rng is None else rng.random()
        if self.jitter == "full":
            return full * draw
        if self.jitter == "equal":
            return full / 2 + full / 2 * draw
        return full

    def retries(self, error: BaseException) -> bool:
        """Return whether this exception is worth another attempt."""
        return isinstance(error, self.on) and not isinstance(error, self.dead_on)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _class_tuple(name: str, value: Any) -> tuple[type[BaseException], ...]:
    classes = value if isinstance(value, tuple | list) else (value,)
    for item in classes:
        if not (isinstance(item, type) and issubclass(item, BaseException)):
            raise ConfigError(f"RetryPolicy.{name} holds {item!r}, which is no exception class")
    return tuple(classes)


def retry_after_s(error: BaseException, now_s: float) -> float | None:
    """Return the wait that an exception itself asks for, in seconds, or None.

    Read are a number in `error.retry_after`, and the `Retry-After` header of `error.response`
    as requests and httpx attach it (seconds or an HTTP date, RFC 9110 section 10.2.3).

    Args:
        error: What the task raised.
        now_s: The wall clock in seconds, against which a date is read.
    """
    try:
        wait_s = _seconds(_asked(error), now_s)
    # These are properties and methods of someone else's classes, which may raise anything; the
    # failure being handled must still end as one.
    except Exception:
        return None
    if wait_s is None or math.isnan(wait_s):
        return None
    return min(max(wait_s, 0.0), MAX_DELAY_S)


def _asked(error: BaseException) -> Any:
    value: Any = getattr(error, "retry_after", None)
    if value is not None:
        return value
    headers: Any = getattr(getattr(error, "response", None), "headers", None)
    return headers.get("Retry-After") if hasattr(headers, "get") else None


def _seconds(value: Any, now_s: float) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value)
    if not isinstance(value, str):
        return None
    try:
        return float(value)
    except ValueError:
        pass
    # Dates are rare, and this import is not small.
    import email.utils

    try:
        return email.utils.parsedate_to_datetime(value).timestamp() - now_s
    except (ValueError, TypeError, OverflowError):
        return None
