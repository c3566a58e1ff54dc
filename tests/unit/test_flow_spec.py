"""What a task may declare of its flow, and what is wrong with it."""

from typing import Any

import pytest

from taskq import CircuitBreaker, ConfigError, RetryBudget, TaskQ
from taskq.flow.declared import make_flow, parse_rate


@pytest.mark.parametrize(
    ("text", "interval_us", "burst"),
    [
        ("100/m", 600_000, 1),
        ("10/s", 100_000, 5),
        ("1000/s", 1000, 500),
        ("0.5/s", 2_000_000, 1),
        ("1000/15m", 900_000, 1),
        (" 3 / h ", 1_200_000_000, 1),
        ("1/ms", 1000, 500),
        ("2/d", 43_200_000_000, 1),
    ],
)
def test_rates_are_read(text: str, interval_us: int, burst: int) -> None:
    """The forms that Celery's users write, and a number of periods."""
    rate = parse_rate(text)

    assert (rate.interval_us, rate.burst) == (interval_us, burst)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "100",
        "100/",
        "/m",
        "0/s",
        "-1/s",
        "many/m",
        "1/y",
        "1/0s",
        "nan/s",
        "2000000/s",
        100,
        b"1/s",
        "1e3/s",
        "1/400d",
        "9" * 400 + "/s",
    ],
)
def test_a_rate_that_cannot_be_read_is_refused_where_it_is_declared(text: Any) -> None:
    """At the first task it would be too late."""
    with pytest.raises(ConfigError, match="rate"):
        TaskQ("t").task(rate_limit=text)(print)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"max_concurrency": True}, "max_concurrency"),
        ({"rate_limit": "1/s", "rate_burst": 0}, "rate_burst"),
        ({"rate_limit_key": "args[0]"}, "rate_limit_key needs rate_limit"),
        ({"concurrency_key": "args[0]"}, "concurrency_key needs max_concurrency"),
        ({"on_duplicate": "raise"}, "on_duplicate needs unique"),
        ({"unique": "until_tea"}, "until_start"),
        ({"unique": 0}, "unique"),
        ({"unique": True}, "unique"),
        ({"unique": 1, "debounce": 1}, "debounce"),
        ({"unique": 1, "on_duplicate": "shrug"}, "on_duplicate"),
        ({"unique": "until_done", "unique_key": "args[0"}, "unique_key"),
        ({"unique": "until_done", "unique_key": "__import__('os')"}, "callable"),
        ({"unique": "until_done", "unique_key": "args[0].id"}, "callable"),
        ({"unique": "until_done", "unique_key": "[x for x in args]"}, "callable"),
        ({"unique": "until_done", "unique_key": 5}, "unique_key"),
        ({"unique": "until_done", "unique_key": "(" * 300}, "unique_key"),
        ({"idempotency_key": ""}, "idempotency_key"),
        ({"idempotency_ttl": -1}, "idempotency_ttl"),
        ({"circuit_breaker": 5}, "CircuitBreaker"),
        ({"retry_budget": 0}, "share"),
        ({"retry_budget": 1.5}, "share"),
        ({"retry_budget": "much"}, "share"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(options: dict[str, Any], named: str) -> None:
    """With the name of the task and of the option, so that nobody has to search."""
    with pytest.raises(ConfigError, match=named) as caught:
        TaskQ("t").task(name="mail.send", **options)(print)

    assert "mail.send" in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: CircuitBreaker(failures=0),
        lambda: CircuitBreaker(window_s=0),
        lambda: CircuitBreaker(reset_s=float("inf")),
        lambda: CircuitBreaker(on=(ValueError, "x")),  # type: ignore[arg-type]
        lambda: RetryBudget(min_per_s=0),
        lambda: RetryBudget(burst=0),
        lambda: RetryBudget(share=float("nan")),
    ],
)
def test_breakers_and_budgets_check_their_numbers(make: Any) -> None:
    """A breaker that never closes again stops a task for ever."""
    with pytest.raises(ConfigError):
        make()


def test_a_task_without_limits_has_no_flow() -> None:
    """Then the worker asks nothing and pays nothing."""
    assert make_flow("t", {}) is None
    assert TaskQ("t").task(max_retries=1)(print).spec.flow is None


def test_one_class_alone_may_stand_for_the_tuple() -> None:
    """`on=ConnectionError` is what people write."""
    breaker = CircuitBreaker(on=ConnectionError)

    assert breaker.counts(ConnectionResetError())
    assert not breaker.counts(ValueError())


def test_sending_what_needs_a_store_without_one_says_so() -> None:
    """Nothing would hold the limit."""
    app = TaskQ("t", broker="memory://no-store", results="off")
    limited = app.task(name="limited", rate_limit="1/s")(lambda: None)
    plain = app.task(name="plain")(lambda: None)

    with pytest.raises(ConfigError, match="results"):
        limited.delay()
    with pytest.raises(ConfigError, match="results"):
        plain.apply_async(idempotency_key="k")
