"""Pauses as data, and what they refuse."""

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from taskq import ConfigError, ResultsDisabled, TaskQ, clock
from taskq.pauses import NOTES, Pause, decode_pause, encode_pause, read_pauses
from taskq.results import open_results


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Any:
    name = f"memory://{request.node.name[:40]}"
    with TaskQ("pauses", broker=name, results=name) as made:
        yield made


def test_a_pause_says_who_why_and_until_when(app: TaskQ) -> None:
    """Whoever finds a queue paused at night must learn whom to call."""
    before = clock.now_ms()

    pause = app.pauses.pause_queue("mail", for_s=600, why="relay moves", by="ann")
    app.pauses.pause_task("mail.send")

    assert (pause.kind, pause.name, pause.why, pause.by) == ("queue", "mail", "relay moves", "ann")
    assert before <= pause.since_ms <= clock.now_ms()
    assert pause.until_ms == pause.since_ms + 600_000
    first, second = app.pauses.list()
    assert first == pause
    assert (second.kind, second.name, second.until_ms) == ("task", "mail.send", 0)
    assert "@" in second.by


def test_the_last_pause_of_a_name_holds(app: TaskQ) -> None:
    """A longer window replaces the shorter one, and one resume ends it."""
    app.pauses.pause_queue("mail", for_s=60)
    last = app.pauses.pause_queue("mail", until=datetime.now(UTC) + timedelta(hours=2))

    assert app.pauses.list() == [last]
    assert app.pauses.resume_queue("mail")
    assert not app.pauses.resume_queue("mail")
    assert app.pauses.list() == []


def test_what_has_ended_is_forgotten(app: TaskQ, monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes of last year's windows must not pile up."""
    app.pauses.pause_queue("mail", for_s=60)
    later = clock.now_ms() + 60_000
    monkeypatch.setattr(clock, "now_ms", lambda: later)

    assert app.pauses.list() == []

    app.pauses.pause_queue("other")
    assert app.results is not None
    assert list(app.results.notes(NOTES)) == ["queue:other"]


@pytest.mark.parametrize(
    "options",
    [
        {"for_s": 0},
        {"for_s": -1},
        {"for_s": True},
        {"for_s": "10m"},
        {"for_s": 1e12},
        {"for_s": float("nan")},
        {"until": datetime(2020, 1, 1, tzinfo=UTC)},
        {"until": datetime(9999, 1, 1, tzinfo=UTC)},
        {"until": datetime(2100, 1, 1)},
        {"until": 5},
        {"for_s": 1, "until": datetime.now(UTC) + timedelta(hours=1)},
        {"why": "x" * 501},
        {"why": None},
    ],
)
def test_an_unusable_pause_is_refused_and_changes_nothing(
    app: TaskQ, options: dict[str, Any]
) -> None:
    """A pause that ended yesterday, or never by a slip, would be found out too late."""
    with pytest.raises(ConfigError):
        app.pauses.pause_queue("mail", **options)

    assert app.pauses.list() == []


@pytest.mark.parametrize("name", ["", "a b", "x" * 201, "taskq.dead"])
def test_queues_that_cannot_be_are_refused(app: TaskQ, name: str) -> None:
    """Dead letters are consumed by nobody: pausing them would only look as if it helped."""
    with pytest.raises(ConfigError):
        app.pauses.pause_queue(name)


def test_tasks_that_cannot_be_are_refused(app: TaskQ) -> None:
    """A name nobody can register."""
    for name in ("", "x" * 201):
        with pytest.raises(ConfigError):
            app.pauses.pause_task(name)


def test_without_a_store_the_call_says_what_to_set() -> None:
    """RabbitMQ alone has no place where a pause could be kept for all workers."""
    app = TaskQ("bare", broker="amqp://127.0.0.1:1//")

    for call in (app.pauses.pause_queue, app.pauses.pause_task, app.pauses.resume_queue):
        with pytest.raises(ResultsDisabled, match="TASKQ_RESULTS"):
            call("mail")
    with pytest.raises(ResultsDisabled):
        app.pauses.list()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("queue:a", b"\xc1"),
        ("queue:a", b""),
        ("queue:a", b"\x93\xa0\xa0\x01"),
        ("queue:a", b"\x94\x01\xa0\x01\x01"),
        ("queue:a", b"\x94\xa0\xa0\xff\x01"),
        ("queue:a", b"\x94\xa0\xa0\xa1x\x01"),
        ("queue:", b"\x94\xa0\xa0\x01\x01"),
        ("nonsense", b"\x94\xa0\xa0\x01\x01"),
    ],
)
def test_a_note_written_by_hand_stops_nobody(
    name: str, value: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Workers read the notes every second: one bad note must not blind them to the others."""
    store = open_results("memory://notes")
    store.put_note(NOTES, name, value)
    good = Pause("task", "mail.send", "why", "ann", 5, 0)
    store.put_note(NOTES, *encode_pause(good))

    with caplog.at_level(logging.WARNING):
        found = read_pauses(store)

    store.close()
    assert found == [good]
    assert "ignoring a pause" in caplog.text


def test_a_pause_survives_its_note() -> None:
    """What is read is what was written, in any script."""
    pause = Pause(
        "queue", "mail", "Umzug nach Köln", "änn@web", 1_700_000_000_000, 1_700_000_600_000
    )

    assert decode_pause(*encode_pause(pause)) == pause
