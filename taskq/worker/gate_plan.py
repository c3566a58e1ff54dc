"""One task's flow control in the hub: what is asked for a delivery, and what a run gives back."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from taskq.flow.asks import Ask, Release
from taskq.flow.keys import cell_name
from taskq.message import CLAIMED, SENT_AT, WAITED
from taskq.worker.held import Held

Limit = TypeVar("Limit", bound=tuple[Any, ...])


class Plan:
    """One task's flow control, ready to be asked about.

    Attributes:
        kinds: Keys that a message must carry.
        breaker: (failures, window, reset, lost workers count, timeouts count), or None.
    """

    def __init__(self, task: str, flow: Mapping[str, Any]) -> None:
        self.task = task
        self.kinds: Sequence[str] = flow["keys"]
        self.breaker: Sequence[Any] | None = flow.get("breaker")
        self._cells = cells = {kind: cell_name(kind, task, "") for kind in "ucibgr"}
        self._keyed = any(kind in self.kinds for kind in "bcr")
        self._unique: Sequence[Any] | None = flow.get("unique")
        self._idempotency_us: int = flow.get("idempotency_us") or 86_400_000_000
        self._breaker: tuple[str, int] | None = None
        self._budget: tuple[str, float, float, int] | None = None
        self._slots: tuple[str, int] | None = None
        self._rate: tuple[str, int, int] | None = None
        if self.breaker is not None:
            self._breaker = (cells["b"], self.breaker[2])
        if budget := flow.get("budget"):
            share, per_s, burst = budget
            self._budget = (cells["g"], share, per_s / 1e6, burst)
        if slots := flow.get("slots"):
            self._slots = (cells["c"], slots)
        if rate := flow.get("rate"):
            self._rate = (cells["r"], rate[0], rate[1])

    def ask(self, held: Held, keys: Mapping[str, Any], nonce: str, lease_us: int) -> Ask:
        """Return the question about a delivery."""
        waited, at_us, version = waited_at(held)
        unique, idempotency = None, keys.get("i")
        if self._unique is not None:
            mode, span = self._unique
            cell = self._cells["u"] + keys["u"]
            unique = (cell, mode, span, CLAIMED in keys, _sent_us(keys) if mode == "b" else 0)
        message = held.delivery.message
        return Ask(
            self.task,
            message.id,
            held.envelope.retries,
            held.delivery.redelivered,
            nonce,
            lease_us,
            waited,
            at_us,
            version,
            unique,
            self._cells["i"] + idempotency if isinstance(idempotency, str) else "",
            self._breaker if not self._keyed else self._with_key("b", self._breaker, keys),
            self._budget,
            self._slots if not self._keyed else self._with_key("c", self._slots, keys),
            self._rate if not self._keyed else self._with_key("r", self._rate, keys),
        )

    def _with_key(self, kind: str, limit: Limit | None, keys: Mapping[str, Any]) -> Limit | None:
        """Return a limit with the key at the end of its cell's name."""
        # A key that the task does not declare may be anything: anyone may have set it.
        if limit is None or kind not in self.kinds:
            return limit
        return (limit[0] + keys[kind], *limit[1:])  # type: ignore[return-value]

    def release(self, ask: Ask, probe: bool, outcome: str = "", tripped: bool = False) -> Release:
        """Return what a start that was asked for gives back.

        Args:
            ask: What was asked for it.
            probe: Whether it is the breaker's.
            outcome: How it ended; see `Release`.
            tripped: Whether it counts for the breaker.
        """
        breaker = None
        if ask.breaker is not None and self.breaker is not None and (probe or tripped):
            breaker = (ask.breaker[0], *self.breaker[:3])
        return Release(
            ask.id,
            ask.nonce,
            outcome,
            tripped,
            ask.unique[0] if ask.unique is not None and ask.unique[1] == "d" else "",
            (ask.idempotency, self._idempotency_us) if ask.idempotency else None,
            breaker,
            ask.slots[0] if ask.slots is not None else "",
            probe,
        )


def _sent_us(keys: Mapping[str, Any]) -> int:
    sent = keys.get(SENT_AT)
    # Anyone may have set it.
    good = isinstance(sent, str) and sent.isascii() and sent.isdigit() and len(sent) < 17
    return int(sent) if good and isinstance(sent, str) else 0


def waited_at(held: Held) -> tuple[str, int, int]:
    """Return what a delivery waited for: (letters, promised moment in us, version of limits)."""
    if held.waited is not None:
        return held.waited.waited, held.waited.at_us, held.waited.version
    header = held.delivery.message.headers.get(WAITED)
    if isinstance(header, list | tuple) and len(header) == 3:
        letters, at_us, version = header
        # Anyone may have set it.
        if isinstance(letters, str) and isinstance(at_us, int) and isinstance(version, int):
            return letters[:20], max(0, min(at_us, 2**52)), version
    return "", 0, 0
