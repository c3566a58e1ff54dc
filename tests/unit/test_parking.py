"""Unknown tasks: parked for longer and longer, then given up."""

import pytest

from taskq import clock, outcome
from taskq.brokers.base import Delivery
from taskq.codecs import dumps
from taskq.config import app_settings
from taskq.message import Message
from taskq.worker import endings
from taskq.worker.admission import Admission
from taskq.worker.manifest import Manifest


def test_waits_grow_to_a_minute_and_end_with_a_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rolling deploy finds its tasks soon; a forgotten task costs little, and not for ever."""
    now_ms = 1_000_000
    monkeypatch.setattr(clock, "now_ms", lambda: now_ms)
    admission = Admission(Manifest("app", app_settings({}, environ={}), {}), "w", True)
    message, waits_s = Message("unheard-of", "id", dumps([[1], {}, None])), []

    while True:
        _, ending = admission.open(Delivery(1, "q", message))
        assert ending is not None
        if ending.code != endings.PARKED:
            break
        (item,) = ending.follow
        waits_s.append((item.due_ms - now_ms) / 1000)
        now_ms, message = item.due_ms, item.message

    assert waits_s[0] == 1
    assert waits_s[:-1] == sorted(waits_s[:-1])
    assert max(waits_s) == 60
    assert 600 <= sum(waits_s) < 661
    assert ending.code == outcome.FAILURE
    (letter,) = ending.follow
    assert letter.dead
    assert letter.message.headers["taskq-dead-reason"] == "unknown_task"
    assert letter.message.body == dumps([[1], {}, None])
