"""What every results store promises, and the form of a stored record.

A record is what is known of a task: its state, the attempt that wrote it, and for a finished task
its value or error. It is 5 bytes that scripts compare without decoding (state letter, rank as a
big-endian u32), followed by msgpack. A terminal record is never overwritten, and a record of a
lower rank never replaces that of a higher one; stores decide that atomically. The rank is the
attempt, and within it the counted start: a run that was believed dead, and whose message another
worker has taken over, stores nothing any more.
"""

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgpack

from taskq import codecs, outcome
from taskq.errors import DecodeError, RemoteError

_HEAD = struct.Struct(">cI")
_pack_plain = msgpack.Packer().pack
"""As `packb`, without a packer of its own for each call (0.3 us). Plain values are packed in one
step of the interpreter, so that threads can share it."""
_LETTERS: Final = {
    outcome.PENDING: b"P",
    outcome.RECEIVED: b"Q",
    outcome.STARTED: b"B",
    outcome.RETRY: b"R",
    outcome.SUCCESS: b"S",
    outcome.FAILURE: b"F",
    outcome.CANCELLED: b"C",
    outcome.EXPIRED: b"E",
}
_STATES: Final = {letter: state for state, letter in _LETTERS.items()}
MAX_ATTEMPT: Final = 2**24 - 1
"""Attempt of a record that must win over every running one: a cancel."""
MAX_STARTS: Final = 255
MAX_NEWS: Final = 5000
"""Cancel rules that are read at a time."""
TERMINAL_LETTERS: Final = b"SFCE"
"""First bytes of records that are final."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is stored of a task.

    Attributes:
        state: One of `taskq.outcome`'s states.
        attempt: Retries spent when it was written, from 0.
        value: The encoded result (`codecs`, msgpack), or None.
        error: The exception of FAILURE and RETRY.
        task: Registered name, or empty.
        worker: Who wrote it, or empty.
        at_ms: When, as epoch ms.
        runtime_us: How long the last run took, in microseconds.
        starts: Which counted start of the attempt wrote it, 0 where none was; `starts_of` reads it.
        follow: Packed messages that must be sent before the delivery is acknowledged; a redelivery
            of a finished task sends them again, so that a crash between "result stored" and
            "follow-ups confirmed" loses no chain step and no dead letter.
    """

    state: str
    attempt: int = 0
    value: bytes | None = None
    error: RemoteError | None = None
    task: str = ""
    worker: str = ""
    at_ms: int = 0
    runtime_us: int = 0
    follow: bytes | None = None
    starts: int = 0

    def result(self) -> Any:
        """Return the decoded value; None where none was kept."""
        return None if self.value is None else codecs.loads(self.value)


def encode_record(record: Record) -> bytes:
    """Return the stored form of a record."""
    error = None if record.error is None else outcome.error_to_wire(record.error)
    body: bytes = msgpack.packb(
        (
            record.value,
            error,
            record.task,
            record.worker,
            record.at_ms,
            record.runtime_us,
            record.follow,
        )
    )
    return _HEAD.pack(_LETTERS[record.state], _rank(record.attempt, record.starts)) + body


def encode_success(
    attempt: int,
    value: bytes | None,
    task: str,
    worker: str,
    at_ms: int,
    runtime_us: int,
    follow: bytes | None,
    starts: int = 0,
) -> bytes:
    """Return the stored form of a SUCCESS without the detour over `Record`: the hot path."""
    body: bytes = _pack_plain((value, None, task, worker, at_ms, runtime_us, follow))
    return _HEAD.pack(b"S", _rank(attempt, starts)) + body


def _rank(attempt: int, starts: int) -> int:
    if attempt <= MAX_ATTEMPT and starts <= MAX_STARTS:
        return attempt << 8 | starts
    # Bounded here: the attempt comes from a header, which may hold anything.
    return min(attempt, MAX_ATTEMPT) << 8 | min(starts, MAX_STARTS)


def decode_record(data: bytes) -> Record:
    """Read the stored form.

    Raises:
        DecodeError: If it is not one.
    """
    try:
        letter, rank = _HEAD.unpack_from(data)
        value, error, task, worker, at_ms, runtime_us, follow = msgpack.unpackb(data[_HEAD.size :])
        wire_error = None if error is None else outcome.error_from_wire(error)
        return Record(
            _STATES[letter], rank >> 8, value, wire_error, task, worker, at_ms, runtime_us, follow
        )
    # Whatever msgpack raises on foreign bytes: the key may belong to another program.
    except Exception as error:
        raise DecodeError(f"the stored record is not readable: {error}") from error


def is_terminal(data: bytes) -> bool:
    """Return whether a stored record is final, without decoding it."""
    return data[:1] in (b"S", b"F", b"C", b"E")


def attempt_of(data: bytes) -> int:
    """Return the attempt of a stored record, without decoding it."""
    return int.from_bytes(data[1:4], "big")


def starts_of(data: bytes) -> int:
    """Return which counted start of its attempt wrote a stored record, without decoding it."""
    return data[4] if len(data) > 4 else 0


def outranks(old: bytes, new: bytes) -> bool:
    """Return whether a stored record is of a later attempt or start than a new one."""
    return old[1:5] > new[1:5]


class Write(NamedTuple):
    """A record to be stored.

    Attributes:
        task_id: Whose.
        record: `encode_record`'s form.
        ttl_s: How long it is kept, in seconds, at least 1.
    """

    task_id: str
    record: bytes
    ttl_s: int


def state_of(head: bytes) -> str | None:
    """Return the state that a stored record, or its first byte, tells; None for foreign bytes."""
    return _STATES.get(head[:1])


class ResultStore(ABC):
    """Keeps records and wakes who waits for them; blocking, thread-safe, usable after a fork.

    Every method raises `ResultsUnavailable` within about `timeout_s` when the store cannot be
    reached. Connections open on first use.

    Attributes:
        url: The URL with its password masked, and file paths absolute.
    """

    url: str

    def covers(self, broker_url: str) -> bool:
        """Return whether PENDING can be told from the queue itself, so that no mark is needed.

        Args:
            broker_url: The broker's `url`.
        """
        return False

    @abstractmethod
    def mark_pending(self, task_ids: Sequence[str], ttl_s: int) -> None:
        """Write PENDING for ids that have no record; one round trip."""

    @abstractmethod
    def store(self, writes: Sequence[Write]) -> list[bool]:
        """Store records in one round trip and wake waiters of the terminal ones.

        Returns:
            For each write whether it was taken: False where a terminal record, or one of a later
            attempt, was there already.
        """

    @abstractmethod
    def fetch(self, task_ids: Sequence[str]) -> list[bytes | None]:
        """Return each id's record, or None where there is none; one round trip."""

    @abstractmethod
    def fetch_news(
        self, task_ids: Sequence[str], after: int
    ) -> tuple[list[bytes | None], list[tuple[int, bytes]]]:
        """Return records as `fetch` does, and cancel rules, in the same round trip.

        Args:
            task_ids: Whose records.
            after: Number of the newest rule that the caller knows; 0 for none.

        Returns:
            The records, and of the rules after that number at most `MAX_NEWS` with their numbers,
            oldest first. Numbers grow for ever, also when the store lost what it held.
        """

    @abstractmethod
    def add_rule(self, rule: bytes, ends_ms: int) -> None:
        """Keep a cancel rule until a moment (epoch ms); it is durable when this returns."""

    @abstractmethod
    def cancel(self, task_ids: Sequence[str], record: bytes, ttl_s: int) -> list[str | None]:
        """Replace the records of tasks that have not ended, atomically, and wake their waiters.

        The new record is kept for as long as the old one would have been, at least: that is
        longer than the task may still be delayed.

        Args:
            task_ids: Whose.
            record: The record of CANCELLED.
            ttl_s: How long it is kept, in seconds.

        Returns:
            Each task's state before; None for an id without any, where nothing is written.
        """

    @abstractmethod
    def forget(self, task_ids: Sequence[str]) -> None:
        """Delete records."""

    @abstractmethod
    def count_starts(self, task_ids: Sequence[str], ttl_s: int, by: int = 1) -> list[int]:
        """Count starts of each id and return the counts; for redelivered messages.

        Args:
            task_ids: What is counted; any text.
            ttl_s: How long a count is kept after its last change, in seconds.
            by: 1 to count a start, negative to take starts back that came to nothing.
        """

    @abstractmethod
    def notes(self, kind: str) -> dict[str, bytes]:
        """Return the notes of a kind by name: few, and kept until they are removed.

        What operators set for the whole cluster is kept in notes, such as pauses; one round trip.
        """

    @abstractmethod
    def put_note(self, kind: str, name: str, value: bytes | None) -> bool:
        """Set a note, or remove it.

        Args:
            kind: What it is about, such as `pauses`; letters, digits and `-`.
            name: Its name among those of its kind.
            value: What it says; None removes it.

        Returns:
            Whether there was one of that name before.
        """

    @abstractmethod
    def watch(self, task_id: str, callback: Callable[[bytes], None]) -> Callable[[], None]:
        """Call back once with the terminal record, at once if it is there already.

        Subscribes first and reads then, and reads again every few seconds, so that no wake-up is
        missed across reconnects. The callback runs on a thread of the store and must not block.

        Returns:
            A function that ends the watch.
        """

    @abstractmethod
    def ping(self) -> float:
        """Return the round trip in seconds; for `taskq doctor` and readiness."""

    @abstractmethod
    def close(self) -> None:
        """Close connections and threads; may be called twice."""
