"""Events as data: batches, CloudEvents, schema, watermark, redaction."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import msgpack
import pytest

from taskq.errors import DecodeError
from taskq.events import Event, Watermark, read_batch, read_cloudevent, to_cloudevent, watermark
from taskq.events import bus as bus_module
from taskq.events.bus import Recorder
from taskq.events.redact import redacted
from taskq.events.schema import TASK_STATES, UnknownVersion, load_schema
from taskq.events.stream import Filter, make_filter

DONE = ("task.succeeded", 2_000_000, 0, "i1", "t", "q", 0, "", "", 0, None)
RUN = ("task.succeeded", 2_000_000, 1_500_000, "i2", "t", "q", 1, "r", "p", 500_000, None)


def taken(recorder: Recorder) -> list[Event]:
    item = recorder.take()
    assert item is not None
    return read_batch(item.message.body)


def validator() -> Any:
    return jsonschema.Draft202012Validator(load_schema())


def test_a_record_of_a_run_is_two_events_in_order() -> None:
    """The start of a short run travels with its end: one record, two numbers."""
    recorder = Recorder("shop", worker="w1")
    recorder.add([DONE, RUN])

    events = taken(recorder)

    assert [(e.sequence, e.type, e.time_us) for e in events] == [
        (1, "task.succeeded", 2_000_000),
        (2, "task.started", 1_500_000),
        (3, "task.succeeded", 2_000_000),
    ]
    assert events[2].data == {
        "app": "shop",
        "worker": "w1",
        "task_id": "i2",
        "task": "t",
        "queue": "q",
        "attempt": 2,
        "root_id": "r",
        "parent_id": "p",
        "state": "SUCCESS",
        "runtime_us": 500_000,
    }
    assert events[0].root_id == "i1"


def test_numbers_go_on_over_batches() -> None:
    """The watermark sees a gap otherwise, or takes the next batch for a duplicate."""
    recorder = Recorder("shop")
    recorder.add([RUN])
    first = taken(recorder)
    recorder.tell("schedule.fired", {"schedule": "nightly"})

    second = taken(recorder)

    assert [e.sequence for e in first + second] == [1, 2, 3]
    assert second[0].subject == "nightly"
    assert recorder.take() is None


def test_sources_differ_even_in_one_process() -> None:
    """Two recorders that count from 1 under one name would drop each other's events."""
    assert Recorder("shop").source != Recorder("shop").source
    assert Recorder("a b/c").source.startswith("/taskq/a_b_c/")


def test_too_many_waiting_drop_the_oldest_and_leave_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that is away costs memory up to a bound, and consumers see what is missing."""
    monkeypatch.setattr(bus_module, "MAX_WAITING", 10)
    recorder = Recorder("shop")
    recorder.add([RUN] * 3 + [DONE] * 9)

    events = taken(recorder)

    assert recorder.dropped == 4
    assert [e.sequence for e in events] == [5, 6, *range(7, 16)]


def test_the_schema_describes_every_type_and_nothing_else_passes() -> None:
    """The schema is shipped: consumers in other languages check against it."""
    schema = load_schema()
    check = validator()
    others = ("online", "heartbeat", "offline", "lost")
    for kind in [*TASK_STATES, *(f"worker.{word}" for word in others)]:
        assert kind in schema["$defs"], kind
    record = (
        "task.failed",
        1_700_000_000_000_000,
        1,
        "i",
        "t",
        "q",
        0,
        "",
        "",
        5,
        {"reason": "failed"},
    )
    recorder = Recorder("shop", worker="w")
    recorder.add([record])

    for event in taken(recorder):
        item = to_cloudevent(event)
        check.validate(json.loads(json.dumps(item)))

        for name in ("task_id", "attempt", "state", "root_id"):
            broken = {**item, "data": {k: v for k, v in item["data"].items() if k != name}}
            assert not check.is_valid(broken), name
        assert not check.is_valid({**item, "sequence": "1"})


def test_the_reference_of_events_is_up_to_date(tmp_path: Path) -> None:
    """It is written out of the schema; a field that was added to one only would mislead."""
    script = Path(__file__).parents[2] / "scripts" / "event_reference.py"

    done = subprocess.run(
        [sys.executable, str(script), "--check"], cwd=tmp_path, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    page = (script.parents[1] / "docs" / "events.md").read_text()
    for kind in load_schema()["$defs"]:
        assert f"### `{kind}`" in page


def test_cloudevents_come_back_as_they_were() -> None:
    """Microseconds included: joins and windows compare these times."""
    event = Event("/taskq/a/n/b", 255, "task.sent", 1_700_000_000_123_456, {"task_id": "x"})

    item = to_cloudevent(event)

    assert (item["id"], item["type"]) == ("00000000000000ff", "io.taskq.task.sent")
    assert item["time"] == "2023-11-14T22:13:20.123456+00:00"
    assert read_cloudevent(json.dumps(item)) == event
    del item["timeus"]
    assert read_cloudevent(json.dumps(item)) == event


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\x00",
        b"null",
        b"[]",
        b"{}",
        b'{"source": 1, "sequence": "1", "type": "io.taskq.x", "timeus": 1}',
        b'{"source": "s", "sequence": "1", "type": "com.other", "timeus": 1}',
        b'{"source": "s", "sequence": "zz", "type": "io.taskq.x", "timeus": 1}',
        b'{"source": "s", "sequence": "1", "type": "io.taskq.x", "time": 7}',
    ],
)
def test_garbage_is_no_cloudevent(body: bytes) -> None:
    """Anyone can write to a topic: one error, whatever it is."""
    with pytest.raises(DecodeError):
        read_cloudevent(body)


@pytest.mark.parametrize(
    "value",
    [
        7,
        [],
        ["1", "s", 1, {}, []],
        [1, "s", 1, {}],
        [1, 2, 1, {}, []],
        [1, "s", "1", {}, []],
        [1, "s", 1, {}, [["x"]]],
        [1, "s", 1, {}, 5],
        [1, "s", 1, {}, [["k", "when", {}]]],
        [1, "s", 1, {}, [["k", 1, None]]],
    ],
)
def test_garbage_is_no_batch(value: Any) -> None:
    """Anyone can publish to the exchange too."""
    with pytest.raises(DecodeError):
        read_batch(msgpack.packb(value))


def test_a_later_version_is_told_apart_from_garbage() -> None:
    """A bridge keeps such a batch for its successor, and says which version it was."""
    with pytest.raises(UnknownVersion, match="version 9"):
        read_batch(msgpack.packb([9, "whatever"]))


def test_unknown_types_and_fields_are_tolerated() -> None:
    """A worker of a later version may add both without stopping older consumers."""
    body = msgpack.packb(
        [1, "s", 4, {"app": "a", "zone": "eu"}, [["task.invented", 5, {"new": 1}]], 3]
    )

    (event,) = read_batch(body)

    assert event == Event("s", 4, "task.invented", 5, {"app": "a", "zone": "eu", "new": 1})


def test_the_watermark_drops_duplicates_and_counts_gaps() -> None:
    """Repeated parts begin at or below the mark, for each source by itself."""
    mark = Watermark()
    order = [("a", 1), ("a", 2), ("b", 7), ("a", 1), ("a", 2), ("a", 3), ("b", 10), ("b", 9)]

    kept = [pair for pair in order if mark.new(*pair)]

    assert kept == [("a", 1), ("a", 2), ("b", 7), ("a", 3), ("b", 10)]
    assert (mark.duplicates, mark.gaps) == (3, 2)


def test_the_watermark_forgets_who_was_silent_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run of a script is a source: a bridge that keeps all of a year runs out of memory."""
    monkeypatch.setattr(watermark, "MAX_SOURCES", 3)
    mark = Watermark()

    for source in ("a", "b", "c", "a", "d"):
        mark.new(source, mark.seen.get(source, 0) + 1)

    assert mark.seen == {"c": 1, "a": 2, "d": 1}
    assert not mark.new("a", 2)


def test_secrets_are_masked_at_any_depth() -> None:
    """What reaches a topic is read by many."""
    names = ("password", "token")
    value = {"user": "ada", "Password": "x1", "deep": [{"api_token": "x2"}, ("y", {"k": "v"})]}

    text = redacted(value, names)

    assert "x1" not in text
    assert "x2" not in text
    assert "'user': 'ada'" in text
    assert text.count("***") == 2


def test_hostile_arguments_have_a_text() -> None:
    """A user's repr may raise or have no end; the send goes on."""

    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    endless: list[Any] = []
    endless.append(endless)

    assert redacted(Broken(), ()) == "<unprintable: RuntimeError>"
    assert len(redacted("x" * 10_000, ())) <= 500
    assert redacted(endless, ()).startswith("[[")
    redacted("\udcff", ()).encode()


def test_filters_pass_a_task_with_its_children() -> None:
    """`--id` shows the whole life, across retries and what the task sent."""
    child = Event("s", 1, "task.sent", 1, {"task_id": "c", "root_id": "r", "parent_id": "p"})

    assert all(Filter(task_id=name).passes(child) for name in ("c", "r", "p"))
    assert not Filter(task_id="x").passes(child)
    assert not Filter(types=("task.failed",)).passes(child)
    with pytest.raises(Exception, match="known: "):
        make_filter(state="broken")
