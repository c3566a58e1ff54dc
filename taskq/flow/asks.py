"""What is asked of flow control, and what it answers; moments and spans are whole microseconds."""

from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

GO: Final = 0
WAIT: Final = 1
DUPLICATE: Final = 2
DONE: Final = 3
SUPERSEDED: Final = 4
PASSED: Final = 5
"""Not judged: the task's record is final, or of a later attempt."""

SETTINGS: Final = "s:0::"
"""The cell of what was set at run time: [version, map].

The map has `"r" + task` to [interval, burst], and `"c" + task` to a number of slots.
"""
KEEP_US: Final = 3_600_000_000
"""How long a cell outlives what it holds."""


class Holder(NamedTuple):
    """A slot that is taken.

    Attributes:
        until_us: When its lease ends.
        nonce: Of the admission that took it.
        since_us: When it was taken.
    """

    until_us: int
    nonce: str
    since_us: int


class Cells(Protocol):
    """The state that rules read and change, by cell name.

    Slots are kept one by one: a cell with thousands of them costs no more than an empty one.
    """

    def get(self, name: str) -> list[Any] | None:
        """Return a cell's state, or None."""

    def put(self, name: str, state: list[Any], ttl_us: int) -> None:
        """Replace a cell's state; it may be forgotten after `ttl_us`."""

    def drop(self, name: str) -> None:
        """Forget a cell."""

    def finished(self, task_id: str) -> bool:
        """Return whether a task's record is final."""

    def held(self, name: str) -> int:
        """Return how many slots of a cell are held by leases that have not ended."""

    def holder(self, name: str, task_id: str) -> Holder | None:
        """Return the slot that a task holds, or None."""

    def first(self, name: str) -> Holder | None:
        """Return the slot whose lease ends first, of equal ones the smallest id's; or None."""

    def hold(self, name: str, task_id: str, holder: Holder) -> None:
        """Give a slot to a task, or keep the one it has until another moment."""

    def unhold(self, name: str, task_id: str) -> None:
        """Take a slot back."""


class NoSlots:
    """The part of `Cells` about slots, for rules that limit no number of runs."""

    def held(self, name: str) -> int:
        """Return 0."""
        return 0

    def holder(self, name: str, task_id: str) -> Holder | None:
        """Return None."""
        return None

    def first(self, name: str) -> Holder | None:
        """Return None."""
        return None

    def hold(self, name: str, task_id: str, holder: Holder) -> None:
        """Keep nothing."""

    def unhold(self, name: str, task_id: str) -> None:
        """Take nothing back."""


class Ask(NamedTuple):
    """May this message start?

    Attributes:
        task: Name of the task.
        id: Task id.
        attempt: Retries spent.
        again: Whether it may have started before.
        nonce: Names this admission, so that nobody else's release is taken for it.
        lease_us: How long what it is given is kept for a silent worker.
        waited: Letters of the gates it has waited at.
        at_us: When it was to come back for the last of them; 0 for never.
        version: Version of the limits at that time.
        unique: (cell, mode, span, claimed by the sender, when it was sent or 0), or None.
        idempotency: Cell, or empty.
        breaker: (cell, reset span), or None.
        budget: (cell, share, retries per microsecond, burst), or None.
        slots: (cell, how many), or None.
        rate: (cell, interval, burst), or None.
    """

    task: str
    id: str
    attempt: int
    again: bool
    nonce: str
    lease_us: int
    waited: str = ""
    at_us: int = 0
    version: int = 0
    unique: tuple[str, str, int, bool, int] | None = None
    idempotency: str = ""
    breaker: tuple[str, int] | None = None
    budget: tuple[str, float, float, int] | None = None
    slots: tuple[str, int] | None = None
    rate: tuple[str, int, int] | None = None


@dataclass(slots=True)
class Verdict:
    """What becomes of a message.

    Attributes:
        code: GO, WAIT, DUPLICATE, DONE, SUPERSEDED or PASSED.
        wait_us: Start, or come back, so far from now.
        waited: For WAIT: letters of the gates waited at, the last one's last.
        at_us: For WAIT: the moment to come back, by the store's clock.
        version: For WAIT: version of the limits.
        other: Id of the task that has the claim.
        probe: Whether it is the run on which its circuit breaker decides.
    """

    code: int
    wait_us: int = 0
    waited: str = ""
    at_us: int = 0
    version: int = 0
    other: str = ""
    probe: bool = False


class Release(NamedTuple):
    """What a run that ended gives back.

    Attributes:
        id: Task id.
        nonce: Of its admission; empty when the task is final, so that whatever it holds is free.
        outcome: `s` succeeded, `f` failed for good, `r` will be retried, `b` given back unstarted,
            `e` ended without a run that counts.
        tripped: Whether the failure counts for the circuit breaker.
        unique: Cell of a claim that lasts until the task is done, or empty.
        idempotency: (cell, span of a success), or None.
        breaker: (cell, failures, window, reset), or None.
        slots: Cell, or empty.
        probe: Whether it was the breaker's probe.
    """

    id: str
    nonce: str
    outcome: str
    tripped: bool = False
    unique: str = ""
    idempotency: tuple[str, int] | None = None
    breaker: tuple[str, int, int, int] | None = None
    slots: str = ""
    probe: bool = False


START: Final = Verdict(GO)
"""The verdict on most messages: start now."""
