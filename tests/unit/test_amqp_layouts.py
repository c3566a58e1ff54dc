"""Remembered layouts of properties: the same answer as parsing, for whatever arrives."""

import uuid
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from taskq.brokers.amqp_layouts import Layouts
from taskq.brokers.amqp_properties import encode, read_message
from taskq.message import Message

BODY = b"\x93\x90\x80\xc0"
ids = st.one_of(
    st.uuids().map(str),
    st.text(min_size=1, max_size=40),
    st.sampled_from(["a", "task", "binary", "0" * 16, "application/x-msgpack", "idididididididid"]),
)
tasks = st.sampled_from(["t", "mail.send", "id", "application/x-msgpack"])
headers = st.sampled_from([{}, {}, {}, {"retries": 1}, {"x-delivery-count": 0}, {"root_id": "r"}])


def properties(task: str, task_id: str, table: dict[str, Any], priority: int = 0) -> bytes:
    return encode(Message(task, task_id, BODY, table, priority=priority))


@given(st.lists(st.tuples(tasks, ids, headers, st.sampled_from([0, 5])), min_size=2, max_size=12))
def test_a_stream_of_messages_reads_as_each_would_alone(stream: list[Any]) -> None:
    """What one message taught must not colour the next."""
    layouts = Layouts()

    for parts in stream * 2:
        raw = properties(*parts)

        found, wanted = layouts.read(raw, BODY), read_message(raw, BODY)
        assert found[:2] == wanted[:2]
        assert repr(found[2]) == repr(wanted[2])


@given(st.uuids().map(str), st.data())
def test_damaged_bytes_read_as_they_would_alone(task_id: str, data: st.DataObject) -> None:
    """Same length, one byte changed anywhere: also inside the id, where it may be no UTF-8."""
    layouts = Layouts()
    layouts.read(properties("mail.send", str(uuid.uuid4()), {}), BODY)
    raw = bytearray(properties("mail.send", task_id, {}))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))

    found, wanted = layouts.read(bytes(raw), BODY), read_message(bytes(raw), BODY)

    assert found[:2] == wanted[:2]
    assert repr(found[2]) == repr(wanted[2])


def test_headers_of_two_messages_are_two_tables() -> None:
    """One table for all would carry what a middleware adds to one message into the next."""
    layouts = Layouts()
    first, second, third = (
        layouts.read(properties("t", str(uuid.uuid4()), {}), BODY)[0] for _ in range(3)
    )

    assert second.headers is not third.headers
    assert first.task == second.task == third.task


def test_what_is_remembered_does_not_grow_for_ever() -> None:
    """Ids of ever new lengths come from a sender that makes its own."""
    layouts = Layouts()

    for length in range(16, 216):
        layouts.read(properties("t", "i" * length, {}), BODY)

    assert len(layouts._known) <= 64
