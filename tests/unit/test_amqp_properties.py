"""The codec of AMQP properties against pika's own, and against hostile bytes."""

import struct
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pika import BasicProperties

from taskq import resend
from taskq.body import encode_call
from taskq.brokers import amqp_properties
from taskq.errors import DecodeError, EncodeError
from taskq.message import Message

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)
names = st.text("abcdefghijklmnopqrstuvwxyz-_ä", min_size=1, max_size=30)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | texts | st.binary(max_size=40)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
tables = st.dictionaries(
    names.filter(lambda name: name not in ("task", "id") and not name.startswith("x-")),
    values,
    max_size=5,
)
shorts = st.text("abcdefghij/-0123456789é", min_size=1, max_size=60)
messages = st.builds(
    Message,
    task=shorts,
    id=shorts,
    body=st.binary(max_size=30),
    headers=tables,
    content_type=st.sampled_from(["application/x-msgpack", "application/json"]),
    content_encoding=st.sampled_from(["binary", "utf-8"]),
    priority=st.integers(0, 9),
    correlation_id=st.just("") | shorts,
    reply_to=st.just("") | shorts,
)


def encoded(**properties: Any) -> bytes:
    """Return properties as pika writes them."""
    return b"".join(BasicProperties(**properties).encode())


def with_headers(table: bytes) -> bytes:
    """Return properties that hold nothing but this table's fields."""
    return struct.pack(">HI", 1 << 13, len(table)) + table


@given(messages)
def test_a_message_comes_back_as_it_was_sent(message: Message) -> None:
    """A retry is written with this codec and read with it: a loss here would add up."""
    raw = amqp_properties.encode(message)
    read, deliveries, error = amqp_properties.read_message(raw, message.body)

    if message.correlation_id == message.id:
        assert read.correlation_id == ""
    else:
        assert read.correlation_id == message.correlation_id
    assert error is None
    assert deliveries == 0
    assert read.to_list()[:7] == message.to_list()[:7]
    assert read.reply_to == message.reply_to


@given(messages)
def test_pika_reads_what_taskq_writes(message: Message) -> None:
    """Other clients decode these bytes by the book; pika stands for them."""
    read = BasicProperties()
    read.decode(amqp_properties.encode(message))

    assert list(read.headers)[:2] == ["task", "id"]
    assert read.headers == {"task": message.task, "id": message.id, **message.headers}
    assert read.delivery_mode == 2
    assert read.message_id == message.id
    assert read.correlation_id == (message.correlation_id or message.id)
    assert read.priority == (message.priority or None)
    assert read.reply_to == (message.reply_to or None)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "content_type": shorts,
            "content_encoding": shorts,
            "delivery_mode": st.sampled_from([1, 2]),
            "priority": st.integers(0, 255),
            "correlation_id": shorts,
            "reply_to": shorts,
            "expiration": shorts,
            "message_id": shorts,
            "timestamp": st.integers(0, 2**62 - 1),
            "type": shorts,
            "user_id": shorts,
            "app_id": shorts,
            "cluster_id": shorts,
        },
    ),
    tables,
)
def test_taskq_reads_what_pika_writes(properties: dict[str, Any], table: dict[str, Any]) -> None:
    """Every property has its own place and flag; one that is skipped wrongly shifts the rest."""
    fields, headers = amqp_properties.decode(encoded(headers=table, **properties))

    assert fields == properties
    assert headers == table


def test_every_type_of_field_is_read() -> None:
    """Clients in other languages use types that no Python client writes."""
    table = b"".join(
        bytes((len(name),)) + name.encode() + value
        for name, value in {
            "t": b"t\x01",
            "b": b"b\xff",
            "B": b"B\xff",
            "U": b"U\xff\xfe",
            "s": b"s\xff\xfe",
            "u": b"u\xff\xfe",
            "I": b"I\xff\xff\xff\xff",
            "i": b"i\xff\xff\xff\xff",
            "L": b"L" + b"\xff" * 8,
            "l": b"l" + b"\xff" * 8,
            "f": b"f" + struct.pack(">f", 0.5),
            "d": b"d" + struct.pack(">d", 0.1),
            "D": b"D\x02" + struct.pack(">i", 314),
            "S": b"S\x00\x00\x00\x01x",
            "notutf8": b"S\x00\x00\x00\x01\xff",
            "x": b"x\x00\x00\x00\x01\xff",
            "T": b"T" + struct.pack(">Q", 1_700_000_000),
            "V": b"V",
            "A": b"A\x00\x00\x00\x03t\x00V",
            "F": b"F\x00\x00\x00\x03\x01aV",
        }.items()
    )

    _, headers = amqp_properties.decode(with_headers(table))

    assert headers == {
        "t": True,
        "b": -1,
        "B": 255,
        "U": -2,
        "s": -2,
        "u": 65534,
        "I": -1,
        "i": 2**32 - 1,
        "L": -1,
        "l": -1,
        "f": 0.5,
        "d": 0.1,
        "D": "3.14",
        "S": "x",
        "notutf8": b"\xff",
        "x": b"\xff",
        "T": 1_700_000_000,
        "V": None,
        "A": [False, None],
        "F": {"a": None},
    }


def test_floats_are_carried() -> None:
    """Celery sends time limits as doubles; a retry must be able to send them again."""
    message = Message("t", "i", b"", {"timelimit": [1.5, None]})

    read, _, error = amqp_properties.read_message(amqp_properties.encode(message), b"")

    assert error is None
    assert read.headers == {"timelimit": [1.5, None]}


def test_dates_and_decimals_of_other_clients_become_plain() -> None:
    """Headers cross to executors in msgpack, which has neither."""
    raw = encoded(
        headers={
            "task": "t",
            "id": "i",
            "at": datetime(2024, 1, 1, tzinfo=UTC),
            "n": Decimal("1.5"),
        }
    )

    message, _, error = amqp_properties.read_message(raw, b"")

    assert error is None
    assert message.headers == {"at": 1704067200, "n": "1.5"}


def deep_table(levels: int) -> bytes:
    table = b""
    for _ in range(levels):
        table = b"\x01aF" + struct.pack(">I", len(table)) + table
    return table


HOSTILE = {
    "timestamp that is no moment": encoded(
        headers={"task": "t", "id": "i"}, message_id="i", timestamp=2**62
    ),
    "timestamp in a header": with_headers(b"\x01aT" + struct.pack(">Q", 2**64 - 1)),
    "deep tables": with_headers(deep_table(500)),
    "deep arrays": with_headers(b"\x01a" + b"A\x00\x00\xff\xff" * 5000),
    "table longer than the message": struct.pack(">HI", 1 << 13, 2**32 - 1) + b"\x01aV",
    "text longer than its table": with_headers(b"\x01aS\x7f\xff\xff\xff"),
    "bytes longer than their table": with_headers(b"\x01ax\x7f\xff\xff\xff"),
    "unknown type": with_headers(b"\x01a?"),
    "name cut short": with_headers(b"\xffa"),
    "name that is no text": with_headers(b"\x01\xffV"),
    "number cut short": with_headers(b"\x01al\x00"),
    "property cut short": struct.pack(">H", 1 << 15) + b"\xff" + b"a",
    "property that is no text": struct.pack(">H", 1 << 15) + b"\x01\xff",
    "bytes left over": struct.pack(">H", 0) + b"more",
    "more flag words": struct.pack(">HH", 1, 0),
    "nothing at all": b"",
    "task is a number": encoded(headers={"task": 5, "id": "i"}),
    "id is a table": encoded(headers={"task": "t", "id": {"a": 1}}),
    "id is empty": encoded(headers={"task": "t", "id": ""}),
    "id is enormous": encoded(headers={"task": "t", "id": "i" * 300}),
    "id is long in bytes": encoded(headers={"task": "t", "id": "é" * 200}),
    "no task": encoded(headers={"id": "i"}),
    "no headers": encoded(),
}


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_properties_are_an_error_and_never_an_exception(raw: bytes) -> None:
    """An exception in the I/O loop would end the connection, and the message would come again."""
    message, _, error = amqp_properties.read_message(raw, b"the body")

    assert isinstance(error, DecodeError)
    assert message.body == b"the body"
    msgpack.packb(message.to_list())
    amqp_properties.encode(resend.dead(message, "malformed", "q"))


@settings(max_examples=500)
@given(st.binary(max_size=120) | tables.map(lambda t: encoded(headers=t)), st.data())
def test_mutated_properties_never_raise(raw: bytes, data: st.DataObject) -> None:
    """What was read of a broken message goes to the dead letters, so it must be writable."""
    if raw:
        at = data.draw(st.integers(0, len(raw) - 1))
        raw = raw[:at] + data.draw(st.binary(max_size=3)) + raw[at + 1 :]

    message, deliveries, _ = amqp_properties.read_message(raw, b"")

    assert deliveries >= 0
    msgpack.packb(message.to_list())
    amqp_properties.encode(message)


def test_what_could_be_read_before_the_damage_is_kept() -> None:
    """`taskq dead ls` names the task of a message whose last header is broken."""
    table = b"\x04taskS\x00\x00\x00\x01t" + b"\x02idS\x00\x00\x00\x01i" + b"\x01a?"

    message, _, error = amqp_properties.read_message(with_headers(table), b"")

    assert error is not None
    assert (message.task, message.id) == ("t", "i")


def test_headers_of_the_broker_are_taken_off() -> None:
    """RabbitMQ 3.10 drops a message that is sent again with them."""
    headers = {
        "task": "t",
        "id": "i",
        "x-death": [{"count": 1, "queue": "taskq.delay.v1.100"}],
        "x-first-death-queue": "q",
        "x-last-death-reason": "expired",
        "x-delivery-count": 3,
        "x-acquired-count": 4,
        "x-mine": 1,
    }

    message, deliveries, error = amqp_properties.read_message(encoded(headers=headers), b"")

    assert error is None
    assert message.headers == {"x-mine": 1}
    assert deliveries == 3


@pytest.mark.parametrize("count", [-1, "many", None, [1], True])
def test_a_delivery_count_that_is_none_counts_nothing(count: Any) -> None:
    """A sender can set that header too."""
    headers = {"task": "t", "id": "i", "x-delivery-count": count}

    _, deliveries, error = amqp_properties.read_message(encoded(headers=headers), b"")

    assert error is None
    assert deliveries == 0


@pytest.mark.parametrize(
    ("death", "reason", "queue"),
    [
        ({"reason": "delivery_limit", "queue": "mail"}, "delivery_limit", "mail"),
        (
            {"reason": "expired", "queue": "taskq.delay.v1.100", "routing-keys": ["gone"]},
            "unroutable",
            "gone",
        ),
        ({"reason": "maxlen", "queue": "mail"}, "queue_full", "mail"),
        ({"reason": "expired", "queue": "mail", "routing-keys": ["k"]}, "message_ttl", "mail"),
        ({"reason": "rejected", "queue": "mail"}, "rejected", "mail"),
        ({"reason": 5, "queue": 6, "time": "noon"}, "rejected", "taskq.dead"),
    ],
)
def test_a_letter_that_the_broker_wrote_says_why(
    death: dict[str, Any], reason: str, queue: str
) -> None:
    """Nobody of taskq was there to write the headers, and `replay` needs the queue."""
    raw = encoded(headers={"task": "t", "id": "i", "x-death": [death]})

    message, _, _ = amqp_properties.read_message(raw, b"", dead=True)

    assert message.headers["taskq-dead-reason"] == reason
    assert message.headers["taskq-dead-queue"] == queue


def test_the_story_of_taskq_itself_is_not_replaced() -> None:
    """A letter of taskq can pass through a delay before it is read."""
    headers = {"task": "t", "id": "i", "taskq-dead-reason": "failed", "x-death": [{"reason": "x"}]}

    message, _, _ = amqp_properties.read_message(encoded(headers=headers), b"", dead=True)

    assert message.headers == {"taskq-dead-reason": "failed"}


def test_protocol_1_is_adopted() -> None:
    """Old Celery clients send no headers; task and id are in the body."""
    body = msgpack.packb({"task": "old", "id": "i1", "args": [1], "kwargs": {}, "retries": 2})

    message, _, error = amqp_properties.read_message(
        encoded(content_type="application/x-msgpack"), body
    )

    assert error is None
    assert (message.task, message.id, message.headers) == ("old", "i1", {"retries": 2})


@pytest.mark.parametrize(
    "message",
    [
        Message("t", "i", b"", {"n": 2**63}),
        Message("t", "i", b"", {"n": object()}),
        Message("t", "i", b"", {"n" * 256: 1}),
        Message("t", "i" * 256, b""),
        Message("t", "i", b"", {"n": Decimal(1)}),
    ],
    ids=["wide integer", "object", "long name", "long id", "decimal"],
)
def test_what_amqp_cannot_carry_is_refused(message: Message) -> None:
    """Sent anyway it would close the channel, and with it the sends of everyone else."""
    with pytest.raises(EncodeError):
        amqp_properties.encode(message)


def test_a_plain_call_has_no_other_headers() -> None:
    """The minimal form: what is at its default is left out."""
    raw = amqp_properties.encode(encode_call("m.add", "id-1", [1], {}))

    fields, headers = amqp_properties.decode(raw)

    assert headers == {"task": "m.add", "id": "id-1"}
    assert fields == {
        "content_type": "application/x-msgpack",
        "content_encoding": "binary",
        "delivery_mode": 2,
        "correlation_id": "id-1",
        "message_id": "id-1",
    }
    assert amqp_properties.message_id(raw) == "id-1"
