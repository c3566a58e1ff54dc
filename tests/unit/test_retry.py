"""Retry policies: bounded waits, and whose exceptions are worth another attempt."""

import math
import random
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_strategies import many

from taskq import ConfigError, RetryPolicy
from taskq.retry import MAX_DELAY_S, retry_after_s

NOW_S = 1_800_000_000.0

policies = st.builds(
    RetryPolicy,
    base_s=st.floats(0, MAX_DELAY_S),
    factor=st.floats(1, 1e6),
    cap_s=st.floats(0, MAX_DELAY_S),
    jitter=st.sampled_from(["full", "equal", "none"]),
)


@many
@given(policy=policies, attempt=st.integers(1, 10**6), seed=st.integers())
def test_every_wait_lies_between_its_bounds(policy: RetryPolicy, attempt: int, seed: int) -> None:
    """A wait beyond the cap is a task nobody sees again; an overflow would kill the worker."""
    try:
        ceiling = min(policy.cap_s, policy.base_s * policy.factor ** (attempt - 1))
    except OverflowError:
        ceiling = policy.cap_s if policy.base_s else 0.0

    wait_s = policy.delay_s(attempt, random.Random(seed))

    floor = {"full": 0.0, "equal": ceiling / 2, "none": ceiling}[policy.jitter]
    assert floor * 0.999999 <= wait_s <= ceiling * 1.000001 <= policy.cap_s * 1.000001


def test_full_jitter_spreads_over_the_whole_range() -> None:
    """A thousand tasks that failed together must not come back together."""
    rng = random.Random(7)
    policy = RetryPolicy(base_s=10, cap_s=1000)

    waits = [policy.delay_s(3, rng) for _ in range(2000)]

    assert min(waits) < 2
    assert max(waits) > 38
    assert 18 < sum(waits) / len(waits) < 22


def test_without_jitter_waits_double_up_to_the_cap() -> None:
    """The arithmetic that the documentation shows."""
    policy = RetryPolicy(base_s=1, factor=2, cap_s=10, jitter="none")

    assert [policy.delay_s(n) for n in range(1, 7)] == [1, 2, 4, 8, 10, 10]


def test_a_base_of_zero_retries_at_once() -> None:
    """Also at an attempt whose factor overflows."""
    policy = RetryPolicy(base_s=0, jitter="none")

    assert [policy.delay_s(n) for n in (1, 2, 5000)] == [0, 0, 0]


def test_attempts_are_counted_from_one() -> None:
    """An off-by-one would halve every wait in silence."""
    with pytest.raises(ValueError, match="counted from 1"):
        RetryPolicy().delay_s(0)


def test_dead_on_wins_over_on() -> None:
    """A subclass may be hopeless where its base is not."""
    policy = RetryPolicy(on=(OSError, ValueError), dead_on=(FileNotFoundError,))

    assert policy.retries(OSError())
    assert policy.retries(ConnectionError())
    assert not policy.retries(FileNotFoundError())
    assert not policy.retries(KeyError())


def test_by_default_exceptions_are_retried_and_exits_are_not() -> None:
    """A SystemExit or KeyboardInterrupt is someone's will, not bad luck."""
    assert RetryPolicy().retries(Exception())
    assert not RetryPolicy().retries(SystemExit())
    assert not RetryPolicy().retries(KeyboardInterrupt())


def test_one_class_may_be_given_without_a_tuple() -> None:
    """As in an `except` clause."""
    assert RetryPolicy(on=OSError, dead_on=ValueError).on == (OSError,)


@pytest.mark.parametrize(
    "options",
    [
        {"base_s": -1},
        {"base_s": math.nan},
        {"base_s": "1"},
        {"base_s": True},
        {"cap_s": math.inf},
        {"cap_s": MAX_DELAY_S * 2},
        {"factor": 0.5},
        {"factor": math.nan},
        {"factor": math.inf},
        {"jitter": "some"},
        {"on": ("ValueError",)},
        {"on": 3},
        {"dead_on": (ValueError, None)},
        {"max_age_s": 0},
        {"max_age_s": math.nan},
    ],
)
def test_a_policy_that_cannot_work_is_refused_at_once(options: dict[str, Any]) -> None:
    """At the first failure in production would be too late to learn of it."""
    with pytest.raises(ConfigError, match=next(iter(options))):
        RetryPolicy(**options)


class Throttled(Exception):
    def __init__(self, retry_after: Any) -> None:
        self.retry_after = retry_after


class HttpError(Exception):
    def __init__(self, header: Any) -> None:
        self.response = type("Response", (), {"headers": {"Retry-After": header}})


def http_date(seconds: float) -> str:
    moment = datetime.fromtimestamp(NOW_S, UTC) + timedelta(seconds=seconds)
    return format_datetime(moment, usegmt=True)


@pytest.mark.parametrize(
    ("value", "wait_s"),
    [
        (7, 7.0),
        (2.5, 2.5),
        ("7", 7.0),
        (http_date(90), 90.0),
        (http_date(-90), 0.0),
        (-3, 0.0),
        ("-3", 0.0),
        (1e12, MAX_DELAY_S),
        ("1e400", MAX_DELAY_S),
        (math.nan, None),
        ("nan", None),
        ("soon", None),
        (None, None),
        (True, None),
        (b"7", None),
        ([], None),
        ("Mon, 99 Foo 2026 00:00:00 GMT", None),
    ],
)
@pytest.mark.parametrize("kind", [Throttled, HttpError])
def test_a_wait_that_the_exception_asks_for_is_read(
    kind: type[Any], value: Any, wait_s: float | None
) -> None:
    """A service that says when to come back is right; what it says may still be nonsense."""
    assert retry_after_s(kind(value), NOW_S) == wait_s


class Broken(Exception):
    @property
    def response(self) -> None:
        raise RuntimeError("not set")


class BrokenHeaders(Exception):
    # `get` takes no argument here.
    response = type("Response", (), {"headers": type("Headers", (), {"get": lambda self: None})()})


@pytest.mark.parametrize("error", [Broken(), BrokenHeaders(), ValueError(), KeyError("x")])
def test_an_exception_whose_attributes_raise_asks_for_nothing(error: Exception) -> None:
    """Some clients' properties raise when unset; the failure must still end as a failure."""
    assert retry_after_s(error, NOW_S) is None
