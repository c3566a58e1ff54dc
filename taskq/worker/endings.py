"""How a run ends: the record to store, the messages that follow, and what becomes of the delivery.

Executors use these for what the user's code did, the hub for what happened to an executor. Pure
but for the clock; nothing here settles anything.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack

from taskq import clock, outcome
from taskq.body import Embed, decode_call
from taskq.brokers.base import Outgoing
from taskq.canvas import errback_outgoing, next_outgoing, step_ids
from taskq.envelope import Envelope
from taskq.errors import DecodeError, EncodeError, RemoteError
from taskq.flow.asks import Release
from taskq.message import FIRST, KEYS, UNKNOWN_SINCE, Message
from taskq.resend import dead, retried, strip_broker_headers
from taskq.results.base import Record, Write, decode_record, encode_record, encode_success
from taskq.worker.answers import answer
from taskq.worker.manifest import TaskInfo

IGNORED = "IGNORED"
REQUEUED = "REQUEUED"
DEFERRED = "DEFERRED"
PARKED = "PARKED"
MALFORMED = "MALFORMED"
KEYED = "KEYED"
_NO_EMBED = Embed()
_LIMITS = ("SoftTimeLimitExceeded", "TimeLimitExceeded")


@dataclass(slots=True)
class Ending:
    """What a run, or the refusal to run, leads to.

    Attributes:
        code: A state of `taskq.outcome`, or IGNORED, REQUEUED, DEFERRED, PARKED, MALFORMED, KEYED.
        writes: Records to store.
        follow: Messages that must be confirmed before the delivery is acknowledged.
        runtime_us: How long the run took, in microseconds; 0 where there was none.
        detail: For the log: exception type, reason.
        rank: Of a RETRY: (attempt, counted start) of the run that failed, which must still be the
            last one; set by the hub.
        refund: Of a REQUEUED: whose counted start came to nothing, or empty; set by the hub.
        tripped: Whether the failure counts for the task's circuit breaker.
        release: What flow control takes back, set by the hub; None where nothing was held.
    """

    code: str
    writes: Sequence[Write] = ()
    follow: Sequence[Outgoing] = ()
    runtime_us: int = 0
    detail: str = ""
    rank: tuple[int, int] | None = None
    refund: str = ""
    tripped: bool = False
    release: Release | None = None


# Not frozen: one is made for every run, and a frozen one costs 0.6 us more.
@dataclass(slots=True)
class Case:
    """A delivery with what is known of it, the subject of an ending.

    Attributes:
        message: The message.
        envelope: Its checked headers.
        info: The task's declaration; None for an unknown task.
        queue: Queue it came from.
        worker: Name of the worker.
        results: Whether records are stored.
        embed: What follows the task, when the body was decoded already.
    """

    message: Message
    envelope: Envelope
    info: TaskInfo | None
    queue: str
    worker: str
    results: bool
    embed: Embed | None = field(default=None)

    def follows(self) -> Embed:
        """Return what follows the task; nothing when the body cannot be read."""
        if self.embed is not None:
            return self.embed
        try:
            return decode_call(self.message).embed
        except DecodeError:
            return _NO_EMBED


def pack_follow(follow: Sequence[Outgoing]) -> bytes | None:
    """Return messages as bytes, for the record of a finished task."""
    if not follow:
        return None
    packed: bytes = msgpack.packb(
        [
            (item.queue, item.message.to_list(), item.due_ms, item.dead, item.topic)
            for item in follow
        ]
    )
    return packed


def unpack_follow(data: bytes) -> list[Outgoing]:
    """Read `pack_follow`'s form."""
    items: list[Any] = msgpack.unpackb(data, strict_map_key=False)
    return [
        # Records of an older worker have four parts.
        Outgoing(q, Message.from_list(parts), due, gone, *topic)
        for q, parts, due, gone, *topic in items
    ]


def started(case: Case) -> Write:
    """Return the STARTED record of a running task."""
    message, info = case.message, case.info
    record = Record(
        outcome.STARTED,
        case.envelope.retries,
        task=message.task,
        worker=case.worker,
        at_ms=clock.now_ms(),
        starts=case.envelope.starts,
    )
    ttl_s = info.result_ttl_s if info is not None else 86400
    return Write(message.id, encode_record(record), ttl_s)


def succeeded(case: Case, value: bytes | None, follow: Sequence[Outgoing], us: int) -> Ending:
    """End a run that returned.

    Args:
        case: The delivery.
        value: The encoded result, or None where none is kept.
        follow: Callbacks and the next chain step.
        us: Run time in microseconds.
    """
    info = case.info
    if not case.results or info is None:
        return Ending(outcome.SUCCESS, (), follow, us)
    record = encode_success(
        case.envelope.retries,
        value,
        case.message.task,
        case.worker,
        clock.now_ms(),
        us,
        pack_follow(follow) if follow else None,
        case.envelope.starts,
    )
    write = Write(case.message.id, record, info.result_ttl_s)
    return Ending(outcome.SUCCESS, (write,), follow, us)


def failed(
    case: Case,
    error: RemoteError,
    retryable: bool,
    *,
    us: int = 0,
    countdown_s: float | None = None,
    max_retries: int | None = None,
    reason: str = "failed",
) -> Ending:
    """End a failed attempt: another one if the policy has one left, else a dead letter.

    Args:
        case: The delivery.
        error: Why it failed.
        retryable: Whether the policy retries this kind of error.
        us: Run time in microseconds.
        countdown_s: Wait that replaces the policy's, in seconds.
        max_retries: Bound that replaces the task's.
        reason: Of the dead letter.
    """
    info, spent = case.info, case.envelope.spent
    deadline_ms = case.envelope.deadline_ms
    if deadline_ms and clock.now_ms() >= deadline_ms and error.type in _LIMITS:
        # It was stopped because nobody waits for it any more.
        return final(case, outcome.EXPIRED, error, us=us)
    bound = max_retries if max_retries is not None else (info.max_retries if info else 0)
    if info is None or not retryable or spent >= bound or _too_old(case, info):
        return final(case, outcome.FAILURE, error, reason=reason, us=us)
    wait_s = info.delay_s(spent + 1) if countdown_s is None else countdown_s
    now = clock.now_ms()
    due_ms = now + round(wait_s * 1000)
    if deadline_ms and due_ms >= deadline_ms:
        return final(case, outcome.EXPIRED, error, us=us)
    follow = (Outgoing(case.queue, retried(case.message, spent + 1, due_ms, error), due_ms),)
    writes: tuple[Write, ...] = ()
    if case.results:
        record = Record(
            outcome.RETRY, spent + 1, None, error, case.message.task, case.worker, now, us
        )
        ttl_s = info.failure_ttl_s + round(wait_s)
        writes = (Write(case.message.id, encode_record(record), ttl_s),)
    return Ending(outcome.RETRY, writes, follow, us, f"{error.type} in_s={wait_s:.1f}")


def _too_old(case: Case, info: TaskInfo) -> bool:
    first = case.message.headers.get(FIRST)
    if info.max_age_s is None or not isinstance(first, int):
        return False
    return clock.now_ms() - first > info.max_age_s * 1000


def final(
    case: Case, state: str, error: RemoteError | None, *, reason: str = "failed", us: int = 0
) -> Ending:
    """End a task for good without success: FAILURE, CANCELLED or EXPIRED.

    The steps of its chain that will not run get the same state, so that nobody waits for them.

    Args:
        case: The delivery.
        state: FAILURE, CANCELLED or EXPIRED.
        error: Why; needed for FAILURE.
        reason: Of the dead letter that a FAILURE leaves.
        us: Run time in microseconds.
    """
    embed = case.follows()
    info, message = case.info, case.message
    root_id = case.envelope.root_id or message.id
    follow: list[Outgoing] = []
    if state == outcome.FAILURE:
        if info is None or info.dead_letter:
            letter = dead(
                message,
                reason,
                case.queue,
                error=error,
                attempts=case.envelope.spent + (1 if us or reason == "worker_lost" else 0),
                worker=case.worker,
            )
            follow.append(Outgoing(case.queue, letter, dead=True))
        # A hostile errback must not keep its task from ending.
        with contextlib.suppress(DecodeError, EncodeError):
            follow += errback_outgoing(message, embed, case.queue, root_id)
    follow += answer(message, state, error=error)
    writes: list[Write] = []
    if case.results and message.id:
        ids = [message.id, *step_ids(embed)]
        writes = _final_writes(case, ids, state, error, us, follow)
    detail = error.type if error is not None else ""
    return Ending(state, writes, follow, us, detail)


def _final_writes(
    case: Case,
    ids: Sequence[str],
    state: str,
    error: RemoteError | None,
    us: int,
    follow: Sequence[Outgoing],
) -> list[Write]:
    ttl_s = case.info.failure_ttl_s if case.info is not None else 7 * 86400
    envelope, task, now = case.envelope, case.message.task, clock.now_ms()
    writes = []
    for task_id in ids:
        own = task_id == case.message.id
        packed = pack_follow(follow) if own else None
        name, starts = (task, envelope.starts) if own else ("", 0)
        record = Record(
            state, envelope.retries, None, error, name, case.worker, now, us, packed, starts
        )
        writes.append(Write(task_id, encode_record(record), ttl_s))
    return writes


def malformed(case: Case, error: Exception) -> Ending:
    """End a message that cannot be read or called: a dead letter at once, bytes intact."""
    problem = RemoteError("taskq.errors", type(error).__name__, str(error))
    # Whoever sent it as a task of this name waits for it, so its state is stored as well; the
    # dead letter is kept even where the task asks for none, for it may not be the task's at all.
    kept = Case(case.message, case.envelope, None, case.queue, case.worker, case.results)
    ending = final(kept, outcome.FAILURE, problem, reason="malformed")
    ending.code = MALFORMED
    return ending


def rejected(case: Case, text: str, us: int) -> Ending:
    """End a run that raised Reject(requeue=False)."""
    problem = RemoteError("taskq.errors", "Reject", text)
    return final(case, outcome.FAILURE, problem, reason="rejected", us=us)


def deferred(case: Case, due_ms: int) -> Ending:
    """Send an early message on towards its due time."""
    message = case.message
    fresh = message._replace(headers=strip_broker_headers(message.headers))
    return Ending(DEFERRED, (), (Outgoing(case.queue, fresh, due_ms),))


def keyed(case: Case, keys: Mapping[str, str]) -> Ending:
    """Send a message back to its queue with the keys that its sender did not compute."""
    known = case.message.headers.get(KEYS)
    headers = strip_broker_headers(case.message.headers)
    headers[KEYS] = {**(known if isinstance(known, dict) else {}), **keys}
    return Ending(KEYED, (), (Outgoing(case.queue, case.message._replace(headers=headers)),))


def repeated(case: Case, data: bytes | None) -> Ending:
    """End a task whose idempotency key has succeeded: with the value of the run that did.

    Args:
        case: The delivery.
        data: Record of that run; None when it is not kept any more.
    """
    record = Record(outcome.SUCCESS)
    with contextlib.suppress(DecodeError):
        record = record if data is None else decode_record(data)
    embed, follow = case.follows(), []
    if embed.chain or embed.callbacks:
        root_id = case.envelope.root_id or case.message.id
        follow = next_outgoing(case.message, embed, record.result(), case.queue, root_id)
    return succeeded(case, record.value, follow, 0)


def parked(case: Case, max_age_s: float) -> Ending:
    """Park a message whose task no worker here knows, or give up on it.

    Waits grow from 1 s to 60 s, so that a rolling deploy finds its tasks soon and a forgotten task
    costs little.
    """
    now = clock.now_ms()
    since = case.message.headers.get(UNKNOWN_SINCE)
    since = since if isinstance(since, int) else now
    age_s = (now - since) / 1000
    if age_s >= max_age_s:
        problem = RemoteError(
            "taskq.errors", "ConfigError", f"no worker knows task {case.message.task!r}"
        )
        return final(case, outcome.FAILURE, problem, reason="unknown_task")
    wait_ms = int(min(max(1.0, age_s), 60.0, max(0.5, max_age_s - age_s)) * 1000)
    ending = deferred(case, now + wait_ms)
    (item,) = ending.follow
    message = item.message.with_headers(taskq_unknown_since=since)
    return Ending(PARKED, (), (Outgoing(item.queue, message, item.due_ms),))
