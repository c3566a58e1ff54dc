"""Frames between hub and executors, and the executor's end of the line.

A frame is one msgpack list, its kind first. Hub to executor: `run` with items, `back` (return what
has not started), `cancel` with tags (interrupt these), `stop` (finish what runs, then end).
Executor to hub: `hello` with a pid, `done` with outcomes, `back` with tags.
"""

import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

import msgpack

from taskq.brokers.base import Outgoing
from taskq.message import Message
from taskq.results.base import Write
from taskq.worker import failpoints
from taskq.worker.endings import Ending

HOLD_S = 0.001
"""Finished outcomes leave before the next start once so much time has passed since the last send,
so that a kill takes no finished neighbour along."""

MAX_FRAME_BYTES = 2**31 - 1


def new_unpacker() -> msgpack.Unpacker:
    """Return a stream decoder of frames."""
    return msgpack.Unpacker(strict_map_key=False, max_buffer_size=MAX_FRAME_BYTES, use_list=True)


def pack_outcome(tag: int, ending: Ending) -> tuple[Any, ...]:
    """Return the wire form of an ending."""
    # A write is a tuple, which msgpack takes as it is.
    writes = ending.writes or None
    follow = None
    if ending.follow:
        follow = [(o.queue, o.message, o.due_ms, o.dead, o.topic) for o in ending.follow]
    return tag, ending.code, ending.runtime_us, writes, follow, ending.detail, ending.tripped


def unpack_outcome(parts: Sequence[Any]) -> tuple[int, Ending]:
    """Read `pack_outcome`'s form."""
    tag, code, us, writes, follow, detail, tripped = parts
    return tag, Ending(
        code,
        [Write._make(write) for write in writes] if writes else (),
        [Outgoing(q, Message.from_list(m), due, gone, to) for q, m, due, gone, to in follow]
        if follow
        else (),
        us,
        detail,
        tripped=tripped,
    )


class Outbox:
    """Collects outcomes and sends them in batches; used from any thread of an executor."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self._waiting: list[tuple[Any, ...]] = []
        self._sent_at = 0.0

    def add(self, tag: int, ending: Ending) -> None:
        """Keep an outcome for the next send."""
        packed = pack_outcome(tag, ending)
        # Another thread may be sending: an outcome added to the list it just sent would be lost.
        with self._lock:
            self._waiting.append(packed)

    def flush_if_due(self) -> None:
        """Send when outcomes wait and the last send lies `HOLD_S` back."""
        if self._waiting and time.monotonic() - self._sent_at >= HOLD_S:
            self.flush()

    def flush(self) -> None:
        """Send what waits."""
        with self._lock:
            if self._waiting:
                ready, self._waiting = self._waiting, []
                self._send(("done", ready))
                self._sent_at = time.monotonic()
                failpoints.reach(failpoints.TOLD)

    def send(self, *frame: Any) -> None:
        """Send a frame now, after the outcomes that wait."""
        self.flush()
        with self._lock:
            self._send(frame)

    def _send(self, frame: tuple[Any, ...]) -> None:
        self._sock.sendall(msgpack.packb(frame))
