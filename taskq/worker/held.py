"""A delivery in the hub's hands, from its arrival to its settlement."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from taskq.brokers.base import Delivery
from taskq.envelope import Envelope
from taskq.flow.asks import Ask, Verdict
from taskq.worker.endings import Case
from taskq.worker.manifest import TaskInfo

if TYPE_CHECKING:
    from taskq.worker.child import Child


class Held:
    """One delivery and what is known of it.

    Attributes:
        tag: Number that names it between hub and executors.
        delivery: As the broker gave it.
        envelope: Its checked headers.
        info: Its task's declaration; None when unknown.
        child: The executor whose window holds it, or None.
        since_s: When it became ready, on the monotonic clock.
        void: Whether the broker will deliver it again, so that it must not start.
        marked: Whether STARTED was stored.
        suspect: Whether its starts are counted in the store first; see `taskq.worker.restarts`.
        counted: Whether that was done.
        seen_started: Whether a STARTED record of its attempt was found when it was admitted.
        limit_hit: Whether it is being stopped from outside: a hard limit, or a cancel.
        due_ms: Earliest start as epoch ms, its own or a limit's.
        asks: Whether limits have to be asked before it starts.
        waited: What a limit made it wait for (`Verdict`), or None.
        grant: What limits gave it, to be given back: (question, whether it is a breaker's probe);
            None while none was asked.
        overrun: Which limit it passed.
        ran_s: For how long it had run then, in seconds.
        cancelled_s: When it was asked to end because it was cancelled, on the monotonic clock; 0
            when it was not.
        forced: Whether TaskCancelled was raised in it, wherever it was.
        received_us: When it came, as epoch microseconds; 0 once an event said so.
        told: Whether an event said that it started.
        said: What its run said last of its progress and no event told yet, or None.
    """

    __slots__ = (
        "asks",
        "cancelled_s",
        "child",
        "counted",
        "delivery",
        "due_ms",
        "envelope",
        "forced",
        "grant",
        "info",
        "limit_hit",
        "marked",
        "overrun",
        "ran_s",
        "received_us",
        "said",
        "seen_started",
        "since_s",
        "suspect",
        "tag",
        "told",
        "void",
        "waited",
    )

    def __init__(
        self, tag: int, delivery: Delivery, envelope: Envelope, info: TaskInfo | None
    ) -> None:
        self.tag = tag
        self.delivery = delivery
        self.envelope = envelope
        self.info = info
        self.child: Child | None = None
        self.since_s = 0.0
        self.void = False
        self.marked = False
        self.limit_hit = False
        self.suspect = False
        self.counted = False
        self.seen_started = False
        self.asks = False
        self.due_ms = envelope.due_ms
        self.waited: Verdict | None = None
        self.grant: tuple[Ask, bool] | None = None
        self.overrun = ""
        self.ran_s = 0.0
        self.cancelled_s = 0.0
        self.forced = False
        self.received_us = 0
        self.told = False
        self.said: Sequence[Any] | None = None

    def item(self) -> tuple[Any, ...]:
        """Return what an executor gets: tag, queue, redelivered, message (a list there)."""
        delivery, envelope = self.delivery, self.envelope
        message = delivery.message
        if self.counted:
            message = message.with_headers(taskq_starts=envelope.starts, taskq_lost=envelope.lost)
        return self.tag, delivery.queue, delivery.redelivered, message

    def case(self, worker: str, results: bool) -> Case:
        """Return the subject of an ending."""
        delivery = self.delivery
        return Case(delivery.message, self.envelope, self.info, delivery.queue, worker, results)

    @property
    def time_limit_s(self) -> float | None:
        """The hard limit that holds for this call."""
        own = self.envelope.time_limit_s
        return own if own is not None or self.info is None else self.info.time_limit_s
