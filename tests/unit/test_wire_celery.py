"""What Celery 5.7 put on the wire, captured: every message decodes to the call that was made."""

import base64
import json
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import msgpack
import pytest

from taskq import clock, codecs
from taskq.body import Call, decode_call
from taskq.canvas import next_outgoing
from taskq.envelope import read_envelope
from taskq.message import Message, adopt_protocol_1

CAPTURES = Path(__file__).parents[1] / "data" / "celery-vectors"


def read_captures() -> dict[str, list[dict[str, Any]]]:
    """Return {title: messages}; a capture begins with `===== title count`."""
    found = {}
    for path in sorted(CAPTURES.glob("messages-*.txt")):
        for section in path.read_text().split("===== ")[1:]:
            title, _, text = section.partition("\n")
            name, _, count = title.rpartition(" ")
            found[name] = json.loads(text)
            assert len(found[name]) == int(count)
    return found


ALL = read_captures()


def to_message(captured: dict[str, Any]) -> Message:
    """Return a capture as the driver would: its body in bytes again, task and id out of headers."""
    properties, headers = captured["properties"], dict(captured["headers"])
    body, content_type = captured["body"], properties["content_type"]
    if body[0] == "b64":
        data = base64.b64decode(body[1])
    elif content_type == codecs.JSON:
        data = json.dumps(body).encode()
    else:
        data = msgpack.packb(body)
    return Message(
        headers.pop("task"),
        headers.pop("id"),
        data,
        headers,
        content_type,
        properties["content_encoding"],
        properties["priority"],
        properties["correlation_id"],
        properties["reply_to"],
    )


def messages_of(name: str) -> list[Message]:
    return [to_message(captured) for captured in ALL[name]]


def call_of(name: str) -> tuple[Message, Call]:
    (found,) = messages_of(name)
    return found, decode_call(found)


def test_all_captures_are_there() -> None:
    """A section that is not read would not be tested."""
    assert set(ALL) == {
        "delay",
        "apply_async opts",
        "chain",
        "group",
        "chord",
        "chain of group then task",
        "msgpack",
        "gzip",
        "types",
        "stamped",
        "xmap",
        "chunks",
    }


@pytest.mark.parametrize("name", ALL)
def test_a_captured_message_has_a_readable_envelope_and_body(name: str) -> None:
    """Celery sends all its headers always, null where unused."""
    for found in messages_of(name):
        envelope = read_envelope(found)
        call = decode_call(found)

        assert found.task
        assert len(found.id) >= 5
        assert envelope.retries == 0
        assert envelope.root_id
        assert isinstance(call.args, list)


@pytest.mark.parametrize(
    ("name", "task", "args", "kwargs"),
    [
        ("delay", "proj.add", [1], {"y": 2}),
        ("msgpack", "proj.add", [1, 2], {}),
        ("gzip", "proj.add", [1, 2], {}),
        ("stamped", "proj.add", [1, 2], {}),
        (
            "types",
            "proj.anyargs",
            [datetime(2026, 1, 1, tzinfo=UTC), Decimal("1.5")],
            {"u": UUID(int=1), "b": b"\x00\xff", "d": date(2026, 1, 1)},
        ),
    ],
)
def test_a_captured_call_has_its_arguments(
    name: str, task: str, args: list[Any], kwargs: dict[str, Any]
) -> None:
    """The capture's own text says what was called."""
    found, call = call_of(name)

    assert (found.task, call.args, call.kwargs) == (task, args, kwargs)
    assert call.embed.to_wire() is None


def test_captured_options_are_read() -> None:
    """The hard limit comes first, whatever Celery's protocol page says."""
    found, call = call_of("apply_async opts")

    envelope = read_envelope(found)

    assert (found.id, found.priority, found.correlation_id) == ("my-id", 5, "cid")
    assert (envelope.time_limit_s, envelope.soft_time_limit_s) == (30, 20)
    assert envelope.ignore_result
    assert envelope.due_ms == clock.from_iso("2026-11-23T08:31:17.254733+00:00")
    assert envelope.expires_ms - envelope.due_ms == 60_000
    assert [signature["task"] for signature in call.embed.callbacks] == ["proj.xsum"]
    assert [signature["task"] for signature in call.embed.errbacks] == ["proj.err"]
    assert found.headers["x"] == 1


def test_a_captured_chain_goes_on_step_by_step() -> None:
    """Its steps are in reverse order, their ids are Celery's, and its caller waits for the last."""
    found, call = call_of("chain")
    steps = list(reversed(call.embed.chain))
    wanted = [step["options"]["task_id"] for step in steps]

    ran = []
    while call.embed.chain:
        (item,) = next_outgoing(found, call.embed, len(ran) + 100, "wireq", "root")
        found, call = item.message, decode_call(item.message)
        ran.append(found.id)
        assert found.headers["root_id"] == "root"
        assert found.content_type == codecs.JSON

    assert ran == wanted
    assert wanted


def test_captured_group_members_know_their_place() -> None:
    """A chord joins its members by these."""
    members = messages_of("group")

    assert [found.headers["group_index"] for found in members] == [0, 1]
    assert len({found.headers["group"] for found in members}) == 1
    assert len({found.id for found in members}) == 2


@pytest.mark.parametrize("name", ["chord", "chain of group then task"])
def test_captured_chord_members_carry_the_body(name: str) -> None:
    """Whoever ends last sends it."""
    bodies = [decode_call(found).embed.chord for found in messages_of(name)]

    assert all(bodies)
    assert len({body["options"]["task_id"] for body in bodies if body}) == 1


def test_stamps_are_kept() -> None:
    """They travel with the task, whoever runs it."""
    found, _ = call_of("stamped")

    assert found.headers["stamps"] == {"tenant": "acme"}
    assert found.headers["stamped_headers"] == ["tenant"]


def test_mapped_calls_arrive_as_starmap() -> None:
    """Celery's own built-in task, to be run by whoever offers it."""
    found, call = call_of("xmap")

    assert found.task == "celery.starmap"
    assert call.kwargs["it"] == [[1, 2], [3, 4]]
    assert [decode_call(one).kwargs["it"] for one in messages_of("chunks")] == [
        [[0, 0], [1, 1]],
        [[2, 2], [3, 3]],
    ]


def test_protocol_1_is_read() -> None:
    """No headers, all in the body: what Celery 3 and other languages' clients send."""
    body = {
        "task": "proj.add",
        "id": "old",
        "args": [1],
        "kwargs": {"y": 2},
        "retries": 2,
        "eta": "2026-01-01T00:00:00",
        "timelimit": [None, None],
        "callbacks": [{"task": "proj.xsum", "args": [], "kwargs": {}, "options": {}}],
    }

    found = adopt_protocol_1(Message("", "", json.dumps(body).encode(), {}, codecs.JSON, "utf-8"))
    call = decode_call(found)

    assert (found.task, found.id) == ("proj.add", "old")
    assert read_envelope(found).retries == 2
    assert read_envelope(found).due_ms == clock.from_iso("2026-01-01T00:00:00+00:00")
    assert (call.args, call.kwargs) == ([1], {"y": 2})
    assert len(call.embed.callbacks) == 1
