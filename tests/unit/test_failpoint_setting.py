"""Reading TASKQ_FAILPOINT; what the points are for is tested in tests/faults."""

import os
import signal

import pytest

from taskq import ConfigError
from taskq.worker.failpoints import POINTS, Failpoint


@pytest.mark.parametrize(
    "text", ["stored", "nowhere:kill", "stored:explode", "stored:kill:0", "stored:kill:x", ":kill"]
)
def test_a_failpoint_that_cannot_be_read_is_refused(text: str) -> None:
    """A misspelt point would never be reached, and its test would prove nothing."""
    with pytest.raises(ConfigError, match="POINT:ACTION"):
        Failpoint(text)


def test_it_acts_once_when_its_time_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append((pid, number)))
    point = Failpoint("confirmed:kill:2")

    seen = []
    for name in (*POINTS, *POINTS, *POINTS):
        point.reach(name)
        seen.append(len(killed))

    assert seen == [0] * 5 + [1] * 7
    assert killed == [(os.getpid(), signal.SIGKILL)]


def test_without_the_variable_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append(pid))
    point = Failpoint("")

    for name in POINTS:
        point.reach(name)

    assert killed == []
