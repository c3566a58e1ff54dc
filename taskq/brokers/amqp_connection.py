"""A connection to RabbitMQ on an asyncio loop: pika's, with its slow parts replaced.

pika spends 22 µs on a delivery, most of it on decoding properties and looking up callbacks, and
20 µs on a publish. `FastConnection` takes whole deliveries out of the byte stream, leaves the
properties undecoded, and sends what was written in one turn of the loop at once. It hangs on
private names of pika 1.3 and 1.4; where they are missing, `StockConnection` does the same slowly.
"""

import asyncio
import logging
import struct
from collections.abc import Callable
from typing import Any, Final, Protocol

import pika
from pika import frame, spec
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.adapters.base_connection import BaseConnection
from pika.adapters.utils.io_services_utils import _AsyncTransportBase
from pika.channel import Channel, ContentFrameAssembler

OnDelivery = Callable[[int, bool, bytes, bytes], None]
"""Called with delivery tag, redelivered, raw properties, body."""

RECEIVE_BYTES: Final = 65536
WHOLE_BODY_BYTES: Final = 512 * 1024
"""Larger bodies are taken frame by frame: waiting for the whole would copy the buffer each time."""
MAX_PREPARED: Final = 4096
FRAME_OVERHEAD: Final = 8

_FRAME = struct.Struct(">BHI")
_HEADER = struct.Struct(">BHIHHQ")
_ACK = struct.Struct(">BHIHHQBB")
_TAG = struct.Struct(">QB")
_END: Final = b"\xce"
_END_BYTE: Final = 0xCE
_DELIVER: Final = struct.pack(">HH", 60, 60)
_WAIT: Final = 0
_NOT_WHOLE: Final = -1

if logging.getLogger("pika").level == logging.NOTSET:
    # pika logs each lost connection several times at ERROR, with tracebacks; taskq says it once.
    logging.getLogger("pika").setLevel(logging.CRITICAL)


class RawProperties:
    """Properties as bytes, in the place of pika's decoded ones.

    Attributes:
        raw: See `amqp_properties.decode`.
    """

    INDEX = spec.BasicProperties.INDEX
    __slots__ = ("raw",)

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def encode(self) -> list[bytes]:
        """Return the bytes as pika's frame wants them."""
        return [self.raw]


def raw_properties(properties: Any) -> bytes:
    """Return the bytes of properties, whoever read them."""
    if isinstance(properties, RawProperties):
        return properties.raw
    return b"".join(properties.encode())


class Connection(Protocol):
    """What taskq adds to pika's connection."""

    def consume(
        self, channel: Any, queue: str, tag: str, on_delivery: OnDelivery, on_ok: Callable[..., Any]
    ) -> None:
        """Begin a consumer with acknowledgements under a tag of the caller's choice."""

    def forget(self, channel: Any, tag: str) -> None:
        """Stop dispatching a consumer's deliveries; call it when its cancel was confirmed."""

    def publish(
        self, channel: Any, exchange: str, key: str, raw: bytes, body: bytes, mandatory: bool = True
    ) -> None:
        """Publish with properties that are encoded already."""

    def ack(self, channel: Any, tag: int, multiple: bool = False) -> None:
        """Acknowledge one delivery, or all up to it."""


class StockConnection(AsyncioConnection):  # type: ignore[misc]
    """pika's own connection behind taskq's interface."""

    def consume(
        self, channel: Any, queue: str, tag: str, on_delivery: OnDelivery, on_ok: Callable[..., Any]
    ) -> None:
        """See `Connection`."""

        def deliver(_: Any, method: Any, properties: Any, body: bytes) -> None:
            raw = raw_properties(properties)
            on_delivery(method.delivery_tag, bool(method.redelivered), raw, body)

        channel.basic_consume(queue, deliver, consumer_tag=tag, callback=on_ok)

    def forget(self, channel: Any, tag: str) -> None:
        """See `Connection`."""

    def publish(
        self, channel: Any, exchange: str, key: str, raw: bytes, body: bytes, mandatory: bool = True
    ) -> None:
        """See `Connection`."""
        channel.basic_publish(exchange, key, body, RawProperties(raw), mandatory)

    def ack(self, channel: Any, tag: int, multiple: bool = False) -> None:
        """See `Connection`."""
        channel.basic_ack(tag, multiple)


class _Route:
    """Where deliveries of one consumer tag go."""

    __slots__ = ("assembler", "on_delivery")

    def __init__(self, assembler: ContentFrameAssembler, on_delivery: OnDelivery) -> None:
        self.assembler = assembler
        self.on_delivery = on_delivery


class FastConnection(StockConnection):
    """See the module."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._routes: dict[tuple[int, bytes], _Route] = {}
        self._written: list[bytes] = []
        self._frame_buffer = b""
        self._prepared: dict[tuple[int, str, str, bool], bytes] = {}
        super().__init__(*args, **kwargs)

    def consume(
        self, channel: Any, queue: str, tag: str, on_delivery: OnDelivery, on_ok: Callable[..., Any]
    ) -> None:
        """See `Connection`."""
        super().consume(channel, queue, tag, on_delivery, on_ok)
        route = _Route(channel._content_assembler, on_delivery)
        self._routes[channel.channel_number, tag.encode()] = route

    def forget(self, channel: Any, tag: str) -> None:
        """See `Connection`."""
        self._routes.pop((channel.channel_number, tag.encode()), None)

    def publish(
        self, channel: Any, exchange: str, key: str, raw: bytes, body: bytes, mandatory: bool = True
    ) -> None:
        """See `Connection`."""
        if not channel.is_open:
            channel._raise_if_not_open()
        number = channel.channel_number
        target = (number, exchange, key, mandatory)
        method = self._prepared.get(target)
        if method is None:
            method = self._prepare(target)
        size = len(body)
        head = _HEADER.pack(2, number, 12 + len(raw), 60, 0, size)
        parts = [method, head, raw, _END]
        if size <= self._body_max_length:
            if size:
                parts += (_FRAME.pack(3, number, size), body, _END)
        else:
            for start in range(0, size, self._body_max_length):
                part = body[start : start + self._body_max_length]
                parts += (_FRAME.pack(3, number, len(part)), part, _END)
        self._output_marshaled_frames(parts)

    def _prepare(self, target: tuple[int, str, str, bool]) -> bytes:
        number, exchange, key, mandatory = target
        method = spec.Basic.Publish(exchange=exchange, routing_key=key, mandatory=mandatory)
        data: bytes = frame.Method(number, method).marshal()
        if len(self._prepared) >= MAX_PREPARED:
            # Reply addresses are never used again; without a bound they would pile up.
            self._prepared.clear()
        self._prepared[target] = data
        return data

    def ack(self, channel: Any, tag: int, multiple: bool = False) -> None:
        """See `Connection`."""
        if not channel.is_open:
            channel._raise_if_not_open()
        number = channel.channel_number
        self._output_marshaled_frames([_ACK.pack(1, number, 13, 60, 80, tag, multiple, _END_BYTE)])

    def _proto_connection_made(self, transport: Any) -> None:
        # pika reads 4 KiB at a time: ten times the system calls.
        transport._MAX_RECV_BYTES = RECEIVE_BYTES
        super()._proto_connection_made(transport)

    def _output_marshaled_frames(self, marshaled_frames: list[bytes]) -> None:
        data = b"".join(marshaled_frames)
        self.bytes_sent += len(data)
        self.frames_sent += len(marshaled_frames)
        self._adapter_emit_data(data)

    def _adapter_emit_data(self, data: bytes) -> None:
        if not self._written:
            loop: asyncio.AbstractEventLoop = self.ioloop
            loop.call_soon(self._write_out)
        self._written.append(data)

    def _write_out(self) -> None:
        written, self._written = self._written, []
        if self._transport is not None and written:
            self._transport.write(b"".join(written))

    def _on_data_available(self, data_in: bytes) -> None:
        # Counted on arrival: a large body on a slow link is a sign of life.
        self.bytes_received += len(data_in)
        rest: bytes = self._frame_buffer
        buffer = rest + data_in if rest else data_in
        at, size = 0, len(buffer)
        take = self._take_delivery
        try:
            while size - at >= FRAME_OVERHEAD:
                end = take(buffer, at, size)
                if end == _NOT_WHOLE:
                    end = self._take_frame(buffer, at, size)
                if end == _WAIT:
                    break
                at = end
        finally:
            self._frame_buffer = buffer[at:] if at else buffer

    def _take_delivery(self, buffer: bytes, at: int, size: int) -> int:
        """Dispatch the delivery whose three or more frames begin at `at`; return where they end.

        Returns `_WAIT` while it is incomplete, `_NOT_WHOLE` when it must go frame by frame.
        """
        if buffer[at + 7 : at + 11] != _DELIVER or buffer[at] != 1:
            return _NOT_WHOLE
        _, number, length = _FRAME.unpack_from(buffer, at)
        header = at + length + 8
        if header + 20 > size:
            return _WAIT
        tag_end = at + 12 + buffer[at + 11]
        route = self._routes.get((number, buffer[at + 12 : tag_end]))
        if route is None or route.assembler._method_frame is not None:
            return _NOT_WHOLE
        kind, channel, length, _, _, body_size = _HEADER.unpack_from(buffer, header)
        if kind != 2 or channel != number or body_size > WHOLE_BODY_BYTES:
            return _NOT_WHOLE
        content = header + length + 8
        end, body, frames = self._take_body(buffer, content, size, number, body_size)
        if end <= 0:
            return end
        if buffer[header - 1] != _END_BYTE or buffer[content - 1] != _END_BYTE:
            return _NOT_WHOLE
        self.frames_received += 2 + frames
        delivery_tag, bits = _TAG.unpack_from(buffer, tag_end)
        route.on_delivery(delivery_tag, bits & 1 == 1, buffer[header + 19 : content - 1], body)
        return end

    def _take_body(
        self, buffer: bytes, at: int, size: int, number: int, body_size: int
    ) -> tuple[int, bytes, int]:
        """Return (where the body's frames end, or `_WAIT` or `_NOT_WHOLE`; the body; frames)."""
        parts: list[bytes] = []
        missing = body_size
        while missing:
            if at + FRAME_OVERHEAD > size:
                return _WAIT, b"", 0
            kind, channel, length = _FRAME.unpack_from(buffer, at)
            if kind != 3 or channel != number or length > missing:
                return _NOT_WHOLE, b"", 0
            end = at + length + 8
            if end > size:
                return _WAIT, b"", 0
            if buffer[end - 1] != _END_BYTE:
                return _NOT_WHOLE, b"", 0
            parts.append(buffer[at + 7 : end - 1])
            missing -= length
            at = end
        if at > size:
            return _WAIT, b"", 0
        return at, parts[0] if len(parts) == 1 else b"".join(parts), len(parts)

    def _take_frame(self, buffer: bytes, at: int, size: int) -> int:
        """Give one frame to pika; return where it ends, or `_WAIT`."""
        kind, number, length = _FRAME.unpack_from(buffer, at)
        end = at + int(length) + 8
        is_content = kind == 2 and length >= 14 and buffer[at + 7 : at + 9] == b"\x00\x3c"
        if not is_content:
            # The first bytes of a connection may be a protocol header, without a length.
            stop = end if buffer[at : at + 4] != b"AMQP" else at + 8
            if stop > size:
                return _WAIT
            _, value = frame.decode_frame(buffer[at:stop])
            if value is None:
                return _WAIT
            self._process_frame(value)
            return stop
        if end > size:
            return _WAIT
        if buffer[end - 1] != _END_BYTE:
            raise pika.exceptions.InvalidFrameError("Invalid FRAME_END marker")
        (body_size,) = struct.unpack_from(">Q", buffer, at + 11)
        raw = buffer[at + 19 : end - 1]
        self._process_frame(frame.Header(number, body_size, RawProperties(raw)))
        return end


def has_fast_hooks() -> bool:
    """Return whether this pika has the private names that `FastConnection` hangs on."""
    hooks = {
        BaseConnection: (
            "_on_data_available",
            "_output_marshaled_frames",
            "_adapter_emit_data",
            "_process_frame",
            "_proto_connection_made",
        ),
        _AsyncTransportBase: ("_MAX_RECV_BYTES", "write"),
        Channel: ("_raise_if_not_open",),
    }
    found = all(hasattr(owner, name) for owner, names in hooks.items() for name in names)
    return found and hasattr(ContentFrameAssembler(), "_method_frame")


FAST: Final = has_fast_hooks()
connection_class: type[StockConnection] = FastConnection if FAST else StockConnection
"""What taskq connects with."""
