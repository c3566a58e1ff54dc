"""The fast connection against pika's own on the same bytes, cut at random places."""

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import pytest
from pika import BasicProperties, exceptions, frame, spec
from pika.channel import ContentFrameAssembler

from taskq.brokers import amqp_connection
from taskq.brokers.amqp_connection import FastConnection, StockConnection, raw_properties

FAST_TAG, OTHER_TAG = "ctag1", "other"
Seen = list[Any]


class Channel:
    """What a connection sees of a channel: frames in, contents out."""

    is_open = True

    def __init__(self, seen: Seen, number: int) -> None:
        self._content_assembler = ContentFrameAssembler()
        self.channel_number = number
        self._seen = seen

    def _handle_content_frame(self, value: Any) -> None:
        content = self._content_assembler.process(value)
        if content is not None:
            method, header, body = content
            delivery = method.method
            self._seen.append(
                (
                    self.channel_number,
                    delivery.consumer_tag,
                    delivery.delivery_tag,
                    bool(delivery.redelivered),
                    raw_properties(header.properties),
                    body,
                )
            )


def receiver(kind: type[StockConnection], seen: Seen) -> Any:
    """Return a connection without a socket, that takes bytes on channels 1 and 2."""
    connection = kind.__new__(kind)
    connection._frame_buffer = b""
    connection.bytes_received = connection.frames_received = 0
    channels = {number: Channel(seen, number) for number in (1, 2)}

    def process(value: Any) -> None:
        connection.frames_received += 1
        if isinstance(value, frame.Heartbeat):
            seen.append("heartbeat")
        elif value.channel_number:
            channels[value.channel_number]._handle_content_frame(value)

    connection._process_frame = process
    if isinstance(connection, FastConnection):

        def deliver(tag: int, redelivered: bool, raw: bytes, body: bytes) -> None:
            seen.append((1, FAST_TAG, tag, redelivered, raw, body))

        route = amqp_connection._Route(channels[1]._content_assembler, deliver)
        connection._routes = {(1, FAST_TAG.encode()): route}
    return connection


def delivery(rng: random.Random, number: int) -> list[bytes]:
    """Return the frames of one delivery on some channel."""
    channel = rng.choice([1, 1, 1, 2])
    body = rng.randbytes(rng.choice([0, 1, 7, 200, 5000]))
    headers = rng.choice([None, {"a": 1}, {"x-death": [{"count": 1, "queue": "q"}]}])
    properties = BasicProperties(message_id=f"m{number}", headers=headers)
    tag = rng.choice([FAST_TAG, FAST_TAG, OTHER_TAG])
    method = spec.Basic.Deliver(tag, number + 1, rng.random() < 0.5, "ex", "rk")
    frames = [
        frame.Method(channel, method).marshal(),
        frame.Header(channel, len(body), properties).marshal(),
    ]
    size = rng.choice([100_000, 100_000, 64])
    frames += [
        frame.Body(channel, body[at : at + size]).marshal() for at in range(0, len(body), size)
    ]
    if rng.random() < 0.3:
        frames.insert(rng.randrange(len(frames) + 1), frame.Heartbeat().marshal())
    return frames


def chunks(rng: random.Random, stream: bytes) -> Iterator[bytes]:
    cuts = sorted(rng.randrange(len(stream)) for _ in range(rng.choice([0, 1, 5, 60])))
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        if start < end:
            yield stream[start:end]


def by_channel(seen: Seen) -> dict[Any, Seen]:
    """Return what was seen in order, for each channel; heartbeats have no order to keep."""
    split: dict[Any, Seen] = {}
    for one in seen:
        split.setdefault(one if isinstance(one, str) else one[0], []).append(one)
    return split


@pytest.mark.parametrize("seed", range(8))
def test_randomly_cut_streams_give_what_stock_pika_gives(seed: int) -> None:
    """The network cuts anywhere; a frame lost or doubled there is a task lost or doubled."""
    rng = random.Random(seed)
    for _ in range(50):
        frames = [part for number in range(rng.randint(1, 25)) for part in delivery(rng, number)]
        stream = b"".join(frames)
        parts = list(chunks(rng, stream))
        results = []
        for kind in (FastConnection, StockConnection):
            seen: Seen = []
            connection = receiver(kind, seen)
            for part in parts:
                connection._on_data_available(part)
            assert not connection._frame_buffer
            counters = connection.bytes_received, connection.frames_received
            results.append((by_channel(seen), counters))

        assert results[0] == results[1]
        assert results[0][1] == (len(stream), len(frames))


@pytest.mark.parametrize("size", [512 * 1024, 512 * 1024 + 1, 3_000_000])
def test_large_bodies_arrive_whole(size: int) -> None:
    """Above the limit a body is taken frame by frame; at the limit, as a whole."""
    seen: Seen = []
    body = random.Random(size).randbytes(size)
    method = spec.Basic.Deliver(FAST_TAG, 1, False, "", "q")
    properties = BasicProperties(message_id="m")
    stream = frame.Method(1, method).marshal() + frame.Header(1, size, properties).marshal()
    for at in range(0, size, 131_064):
        stream += frame.Body(1, body[at : at + 131_064]).marshal()
    connection = receiver(FastConnection, seen)

    for at in range(0, len(stream), 65_536):
        connection._on_data_available(stream[at : at + 65_536])

    assert len(seen) == 1
    assert seen[0][5] == body


@pytest.mark.parametrize("damaged", [0, 1, 2])
def test_a_wrong_frame_end_is_an_error(damaged: int) -> None:
    """After it nothing in the stream can be trusted; pika ends the connection."""
    method = spec.Basic.Deliver(FAST_TAG, 1, False, "", "q")
    frames = [
        frame.Method(1, method).marshal(),
        frame.Header(1, 3, BasicProperties(message_id="m")).marshal(),
        frame.Body(1, b"abc").marshal(),
    ]
    frames[damaged] = frames[damaged][:-1] + b"\x00"
    seen: Seen = []
    connection = receiver(FastConnection, seen)

    with pytest.raises(exceptions.InvalidFrameError):
        connection._on_data_available(b"".join(frames))

    assert seen == []


def test_this_pika_has_the_hooks() -> None:
    """Where they are missing taskq falls back in silence, and is four times slower."""
    assert amqp_connection.FAST
    assert amqp_connection.connection_class is FastConnection


def sender(kind: type[StockConnection], sent: list[bytes], loop: Any) -> Any:
    connection = kind.__new__(kind)
    connection._prepared, connection._written = {}, []
    connection.bytes_sent = connection.frames_sent = 0
    connection._body_max_length = 4096
    connection._adapter_emit_data = sent.append
    connection.connection_state = connection.CONNECTION_OPEN
    return connection


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 10_000])
def test_a_publish_has_the_bytes_that_pika_sends(size: int) -> None:
    """The frames are put together here; pika's own are the reference."""
    raw = raw_properties(BasicProperties(message_id="m", headers={"a": 1}))
    body = random.Random(size).randbytes(size)
    outputs = []
    for kind in (FastConnection, StockConnection):
        sent: list[bytes] = []
        connection = sender(kind, sent, None)
        channel = Channel([], 3)

        def basic_publish(*args: Any, link: Any = connection) -> None:
            exchange, key, content, properties, mandatory = args
            method = spec.Basic.Publish(exchange=exchange, routing_key=key, mandatory=mandatory)
            link._send_method(3, method, (properties, content))

        channel.basic_publish = basic_publish  # type: ignore[attr-defined]
        connection.publish(channel, "ex", "key", raw, body)
        outputs.append(b"".join(sent))

    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("multiple", [False, True])
def test_an_acknowledgement_has_the_bytes_that_pika_sends(multiple: bool) -> None:
    """A wrong bit here acknowledges what was never run."""
    sent: list[bytes] = []
    connection = sender(FastConnection, sent, None)

    connection.ack(Channel([], 7), 2**40 + 5, multiple)

    assert sent == [frame.Method(7, spec.Basic.Ack(2**40 + 5, multiple)).marshal()]


def test_writes_of_one_turn_of_the_loop_are_joined() -> None:
    """A send per frame costs a system call each; order must stay."""
    written: list[bytes] = []

    class Transport:
        def write(self, data: bytes) -> None:
            written.append(data)

    async def run() -> None:
        connection: Any = FastConnection.__new__(FastConnection)
        connection._written, connection._transport = [], Transport()
        connection.__class__ = type(
            "Loop", (FastConnection,), {"ioloop": asyncio.get_running_loop()}
        )
        for part in (b"a", b"b", b"c"):
            connection._adapter_emit_data(part)
        await asyncio.sleep(0)
        connection._adapter_emit_data(b"d")
        await asyncio.sleep(0)

    asyncio.run(run())

    assert written == [b"abc", b"d"]
