"""What streams do without Kafka: rows of events, bad settings, and an engine that is not loaded."""

import subprocess
import sys

import pytest

from taskq.errors import ConfigError
from taskq.events import Event
from taskq.events.streams import join_runs, mark_late, to_row, window_lines
from taskq.events.streams.frames import remember
from taskq.events.windows import Histogram, Line

MINUTE_US = 60_000_000


def test_the_engine_is_loaded_by_the_first_stream_only() -> None:
    """It brings forty packages, and takes a second to import."""
    program = (
        "import sys, taskq, taskq.events.streams;"
        "sys.exit(any(m.split('.')[0] in ('quixstreams', 'confluent_kafka') for m in sys.modules))"
    )

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("ahead_us", "clock_us"),
    [(-5 * MINUTE_US, -5 * MINUTE_US), (30, 30), (9 * MINUTE_US, MINUTE_US)],
)
def test_a_clock_that_runs_ahead_moves_time_by_a_minute_at_most(
    ahead_us: int, clock_us: int
) -> None:
    """Else one worker with a wrong clock makes the events of all others late."""
    recorded_us = 1_700_000_000_000_000
    event = Event("/taskq/a/n/1", 7, "task.sent", recorded_us + ahead_us, {"task_id": "x"})

    row = to_row(event, recorded_us)

    assert row["time_us"] == recorded_us + ahead_us, "its own time stays"
    assert row["clock_us"] == recorded_us + clock_us
    assert (row["source"], row["sequence"], row["type"]) == ("/taskq/a/n/1", 7, "task.sent")


def test_settings_that_make_no_sense_are_named() -> None:
    """Before anything connects."""
    with pytest.raises(ConfigError, match="policy"):
        window_lines(None, 60, late="perhaps")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="keep=1"):
        window_lines(None, 60, 5, keep=1)
    with pytest.raises(ConfigError, match="windows of 0 s"):
        mark_late(None, 0)
    with pytest.raises(ConfigError, match="ttl_s"):
        join_runs(None, 0)


def test_what_is_remembered_is_bounded() -> None:
    """By number: the state of a log that never ends must not grow for ever."""
    state: dict[str, object] = {}

    class State:
        get, set, delete = state.get, state.__setitem__, state.__delitem__

    for number in range(10):
        remember(State, "ring", f"name-{number}", 3)
        state[f"name-{number}"] = number

    assert {name for name in state if name.startswith("name")} == {"name-7", "name-8", "name-9"}


def test_a_line_goes_on_from_its_state() -> None:
    """State is JSON: its keys are text, and must not become others on the way back."""
    whole, half = Line(0, 10, "t"), Line(0, 10, "t")
    runs = [("task.succeeded", us) for us in (5, 900, 70_000, 2_000_000)] + [("task.failed", 11)]
    for number, (kind, us) in enumerate(runs):
        whole.add(kind, us)
        if number == 2:
            half = Line.from_state(0, 10, "t", half.to_state())
        half.add(kind, us)

    assert half.summary() == whole.summary()
    assert whole.runtimes.percentiles([0, 0.5, 1]) == [
        whole.runtimes.percentile(share) for share in (0, 0.5, 1)
    ]
    assert Histogram().percentiles([0.5, 0.99]) == [None, None]
