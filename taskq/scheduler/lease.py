"""A scheduler's clock and its lease: is it the leader, what time is it, and since when."""

import logging
import os
import socket
import uuid
from typing import Final

from taskq import clock
from taskq.schedules.store import Beat, ScheduleStore

log = logging.getLogger("taskq.scheduler")

_TTL_PART: Final = 0.7
_BEATS: Final = 10


class SchedulerClock:
    """The store's clock, carried on by the monotonic one between two beats.

    All schedulers of a store share it, and a step of the host's own clock does not reach it, where
    the store is a server. Nothing is due twice when it steps back, as cursors only go forward.
    """

    def __init__(self) -> None:
        self._at_ms = clock.now_ms()
        self._since_s = clock.monotonic_s()

    def set(self, now_ms: int) -> None:
        """Take over what the store says."""
        self._at_ms, self._since_s = now_ms, clock.monotonic_s()

    def now_ms(self) -> int:
        """Return epoch ms."""
        return self._at_ms + int((clock.monotonic_s() - self._since_s) * 1000)

    def wait_s(self, due_ms: int) -> float:
        """Return how long it is until a moment, in seconds."""
        return max(0.0, (due_ms - self.now_ms()) / 1000)


class Lease:
    """Who leads: a lease in the store, renewed ten times while it lasts.

    Attributes:
        holder: This scheduler's name in the store.
        token: The fencing token; 0 when another leads, or nobody.
        leader: The name of who leads; empty for nobody, or not known.
        epoch: The store's content that this scheduler knows; empty before it knows any.
        emptied: Whether the store has lost its content; who has dealt with that says so here.
        beat_s: Time from one beat to the next, in seconds.
    """

    def __init__(self, store: ScheduleStore, name: str, lease_s: float) -> None:
        self._store = store
        # Unique: a scheduler that starts anew under its old name must not inherit the lease.
        self.holder = f"{name or f'{socket.gethostname()}-{os.getpid()}'}#{uuid.uuid4().hex[:8]}"
        self._ttl_s = lease_s * _TTL_PART
        self.beat_s = min(1.0, lease_s / _BEATS)
        self.token = 0
        self.leader = ""
        self.epoch = ""
        self.emptied = False
        self._until_s = 0.0
        self._empty_since_s: float | None = None

    def held(self) -> bool:
        """Return whether it is certain that no other leads now."""
        return self.token != 0 and clock.monotonic_s() < self._until_s

    def beat(self, done_ms: int = 0) -> Beat:
        """Renew the lease, or take it where that is right.

        Args:
            done_ms: How far the leader is, see `ScheduleStore.beat`; 0 where that is not known.

        Raises:
            ResultsUnavailable: If the store cannot be reached.
        """
        asked_s = clock.monotonic_s()
        beat = self._ask(self.token != 0 or not self.epoch, done_ms)
        if beat.epoch:
            self._empty_since_s = None
        if not beat.token and not beat.holder and self._may_take(beat):
            asked_s = clock.monotonic_s()
            beat = self._ask(True)
        if beat.token:
            # Counted from before the question: the store may have taken it late, never early.
            self._until_s = asked_s + self._ttl_s
        self.token, self.leader = beat.token, beat.holder
        if self.epoch and beat.epoch and beat.epoch != self.epoch:
            self.emptied = True
        self.epoch = beat.epoch or self.epoch
        return beat

    def look(self) -> Beat:
        """Ask the store without taking the lease.

        Raises:
            ResultsUnavailable: If the store cannot be reached.
        """
        return self._ask(False)

    def _ask(self, take: bool, done_ms: int = 0) -> Beat:
        ttl_ms = round(self._ttl_s * 1000)
        return self._store.beat(self.holder, self.token, ttl_ms, take=take, done_ms=done_ms)

    def _may_take(self, beat: Beat) -> bool:
        if beat.epoch == self.epoch:
            return True
        # The store was emptied. Who led knows best what has been sent, and goes first.
        now_s = clock.monotonic_s()
        if self._empty_since_s is None:
            self._empty_since_s = now_s
        return now_s - self._empty_since_s > self._ttl_s

    def lost(self) -> None:
        """Be no leader any more; the next beat may take the lease again, as one who was."""
        self._until_s = 0.0

    def release(self) -> None:
        """Give the lease back, so that another need not wait for its end."""
        if self.token:
            self._store.release(self.holder, self.token)
            self.token = 0
