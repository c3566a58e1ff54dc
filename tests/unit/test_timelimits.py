"""Time limits of a call and of a declaration, and which running tasks passed one."""

from typing import Any

import pytest

from taskq import ConfigError, TaskQ
from taskq.body import decode_call
from taskq.calls import prepare
from taskq.canvas import next_outgoing
from taskq.envelope import read_envelope
from taskq.timelimits import carried_limits


@pytest.fixture
def app() -> Any:
    made = TaskQ("limits", broker="memory://limits", results="memory://limits")

    @made.task(name="free")
    def free() -> None: ...

    @made.task(name="bound", soft_time_limit=10, time_limit=20)
    def bound() -> None: ...

    yield made
    made.close()


@pytest.mark.parametrize("option", ["time_limit", "soft_time_limit", "heartbeat_timeout_s"])
@pytest.mark.parametrize("value", [0, -1, "5", True, float("inf"), float("nan")])
def test_a_declaration_without_sense_is_refused(app: TaskQ, option: str, value: Any) -> None:
    """When the module is imported, not when the first task runs."""
    with pytest.raises(ConfigError, match=option):
        app.task(name="wrong", **{option: value})(lambda: None)


@pytest.mark.parametrize(("soft", "hard"), [(10, 10), (11, 10)])
def test_a_soft_limit_lies_below_the_hard_one(app: TaskQ, soft: int, hard: int) -> None:
    """Otherwise the task never sees it."""
    with pytest.raises(ConfigError, match="must be below"):
        app.task(name="wrong", soft_time_limit=soft, time_limit=hard)(lambda: None)
    with pytest.raises(ConfigError, match="must be below"):
        app.send_task("free", soft_time_limit=soft, time_limit=hard)
    with pytest.raises(ConfigError, match="must be below"):
        app.send_task("known.to.nobody", soft_time_limit=soft, time_limit=hard)


@pytest.mark.parametrize(
    "options",
    [
        {"time_limit": 0},
        {"soft_time_limit": 0},
        {"time_limit": -1},
        {"time_limit": 1.5},
        {"time_limit": "5"},
        {"time_limit": True},
    ],
)
def test_a_limit_of_a_call_is_whole_seconds(app: TaskQ, options: dict[str, Any]) -> None:
    """AMQP headers carry no fractions here, and 0 would stop every run."""
    with pytest.raises(ConfigError, match="limit"):
        app.send_task("free", **options)
    assert app.broker.depths(["default"])["default"] is None


@pytest.mark.parametrize("options", [{"soft_time_limit": 20}, {"time_limit": 10}])
def test_a_limit_of_a_call_must_fit_the_tasks_own(app: TaskQ, options: dict[str, Any]) -> None:
    """Half a pair replaces half: the other half is the task's."""
    with pytest.raises(ConfigError, match="give both"):
        app.send_task("bound", **options)

    app.send_task("bound", soft_time_limit=30, time_limit=40)
    app.send_task("bound", soft_time_limit=15)
    app.send_task("bound", time_limit=15)


def test_a_later_step_of_a_chain_is_checked_when_it_is_sent(app: TaskQ) -> None:
    """Hours later nobody would be there to see the error."""
    free = app.tasks["free"]
    with pytest.raises(ConfigError, match="must be below"):
        app.send([free.si() | free.si().set(time_limit=5, soft_time_limit=5)])


@pytest.mark.parametrize(
    ("options", "header"),
    [
        ({}, None),
        ({"time_limit": 5}, [5, None]),
        ({"time_limit": 5, "soft_time_limit": 3}, [5, 3]),
        ({"soft_time_limit": 0.5}, [None, 1]),
        ({"time_limit": 0}, None),
        ({"time_limit": "5", "soft_time_limit": True}, None),
        ({"time_limit": float("nan"), "soft_time_limit": 2**40}, None),
    ],
)
def test_the_limits_of_a_later_step_travel(options: dict[str, Any], header: Any) -> None:
    """A signature may be anybody's: what cannot be a limit must not spoil the step before it."""
    assert carried_limits(options) == header


def test_a_step_takes_its_limits_along(app: TaskQ) -> None:
    """`task.si().set(time_limit=5)` in the middle of a chain."""
    free = app.tasks["free"]
    call = free.si() | free.si().set(time_limit=5)
    message = prepare(call, lambda name: {}, app.settings).outgoing.message

    (sent,) = next_outgoing(message, decode_call(message).embed, None, "default", "root")

    assert read_envelope(message).time_limit_s is None
    assert read_envelope(sent.message).time_limit_s == 5
