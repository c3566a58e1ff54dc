"""Collecting events in one process and sending them in batches; no user code, no waiting.

A record is a tuple that is cheap to make and to pack: publishing one message for each event would
cost more than running a short task. `schema.read_batch` turns records into events.
"""

import os
import socket
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from taskq import codecs
from taskq.brokers.base import Outgoing
from taskq.events import schema
from taskq.message import Message

Record = tuple[Any, ...]
MAX_BATCH: Final = 5000
"""Records of one message; it stays below a megabyte."""
MAX_WAITING: Final = 50_000
"""Records that wait while the broker is away; beyond it the oldest are dropped, and counted."""


def _plain(text: str) -> str:
    return "".join(ch if ch.isalnum() or ch in "_.-" else "_" for ch in text)[:100]


def new_source(app: str) -> str:
    """Return the source of this process, of this boot: no other process will ever have it."""
    boot = f"{os.getpid():x}-{os.urandom(6).hex()}"
    return f"/taskq/{_plain(app)}/{_plain(socket.gethostname())}/{boot}"


class Recorder:
    """Numbers the events of one source; thread-safe.

    Attributes:
        source: See `schema.Event`.
        dropped: Events that were given up; consumers see gaps in their place.
    """

    def __init__(self, app: str, **facts: str) -> None:
        """Begin with sequence 1.

        Args:
            app: Name of the app.
            **facts: What all events of this source share, such as `worker`.
        """
        self.source = new_source(app)
        self.dropped = 0
        self._facts = {"app": app, **facts}
        self._lock = threading.Lock()
        self._records: list[Record] = []
        self._next = 1

    @property
    def waiting(self) -> int:
        """How many records wait."""
        return len(self._records)

    def add(self, records: Iterable[Record]) -> None:
        """Take records.

        One of a task is (type, at_us, begun_us or 0, task id, task, queue, retries, root id,
        parent id, runtime_us, more fields or None, received_us or 0, due_ms or 0), of which the
        last two may be left out; any other is (type, at_us, fields).
        """
        with self._lock:
            self._records.extend(records)
            if len(self._records) > MAX_WAITING:
                excess = self._records[:-MAX_WAITING]
                del self._records[:-MAX_WAITING]
                self._drop(_count(excess))

    def tell(self, kind: str, data: Mapping[str, Any]) -> None:
        """Record any other event, such as `worker.online` or `schedule.fired`.

        Args:
            kind: Its type.
            data: Its fields; plain values.
        """
        self.add([(kind, time.time_ns() // 1000, dict(data))])

    def take(self) -> Outgoing | None:
        """Return what waits as one message, or None.

        Messages must reach the broker in the order in which they were taken; a message that may
        have been stored is sent again as it is, or given up with `lost`.
        """
        with self._lock:
            records = self._records[:MAX_BATCH]
            if not records:
                return None
            del self._records[: len(records)]
            first = self._next
            self._next += _count(records)
        body = schema.pack_batch(self.source, first, self._facts, records)
        message = Message(
            schema.EXCHANGE, f"{self.source}:{first}", body, content_type=codecs.MSGPACK
        )
        return Outgoing(schema.EXCHANGE, message, topic=schema.MULTI)

    def lost(self, item: Outgoing) -> None:
        """Count the events of a message that was given up."""
        with self._lock:
            self.dropped += len(schema.read_batch(item.message.body))

    def _drop(self, count: int) -> None:
        # Their numbers are used up, so that consumers see the gap.
        self.dropped += count
        self._next += count


class ProcessRecorder:
    """The recorder of this process; a fork has a source of its own.

    Attributes:
        order: Held while a batch is taken and given to the broker. Batches of two threads would
            else get there in any order, and what came second with the lower numbers would count
            as a duplicate.
    """

    def __init__(self, app: str) -> None:
        self._app = app
        self._pid = 0

    def __call__(self) -> Recorder:
        """Return it."""
        if self._pid != os.getpid():
            self._recorder = Recorder(self._app)
            self.order = threading.Lock()
            self._pid = os.getpid()
        return self._recorder


def _count(records: Sequence[Record]) -> int:
    """Return how many events records stand for: a run's has its arrival and start inside."""
    total = len(records)
    for record in records:
        if len(record) > 3:
            if record[2]:
                total += 1
            if len(record) > 11 and record[11]:
                total += 1
    return total
