"""What every store of flow control promises."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taskq.flow.asks import Ask, Holder, Release, Verdict
from taskq.flow.declared import Claim


@dataclass(frozen=True, slots=True)
class Admitted:
    """The answer to one batch.

    Attributes:
        records: Stored records of all ids, in order; None where there is none.
        verdicts: One for each ask.
        done: By index of the verdict, for DONE: the record of the run that succeeded, or None
            where it is no longer kept.
        news: Cancel rules after the one that was named, as `ResultStore.fetch_news` gives them.
    """

    records: list[bytes | None]
    verdicts: list[Verdict]
    done: dict[int, bytes | None]
    news: list[tuple[int, bytes]]


class FlowStore(ABC):
    """Decides by `taskq.flow.rules` for all workers at once; blocking, thread-safe.

    Each method is one round trip, and one step that nobody can come between. All raise
    `ResultsUnavailable` when the store cannot be reached.
    """

    @abstractmethod
    def admit(
        self, ids: Sequence[str], asks: Sequence[tuple[int, Ask]], after: int = 0
    ) -> Admitted:
        """Fetch the records of a batch and decide on those of its messages that have limits.

        Args:
            ids: Task ids of the whole batch.
            asks: Pairs (index into `ids`, ask), in the order in which they are decided.
            after: Number of the newest cancel rule that the caller knows.
        """

    @abstractmethod
    def release(self, batch: Sequence[Release]) -> list[str]:
        """Take back what runs held.

        Returns:
            For each `opened` or `closed` when its circuit breaker changed, else an empty text.
        """

    @abstractmethod
    def renew(self, batch: Sequence[Release], lease_us: int) -> None:
        """Keep what runs hold for another lease, in microseconds."""

    @abstractmethod
    def claim(self, batch: Sequence[Claim]) -> list[str]:
        """Claim unique keys, in order, and return who holds each: the claim's own id if it won."""

    @abstractmethod
    def unclaim(self, batch: Sequence[Claim]) -> None:
        """Undo claims whose messages were not sent."""

    @abstractmethod
    def change(self, name: str, value: Any, forget: Sequence[str] = ()) -> None:
        """Set a limit at run time, and forget cells.

        Args:
            name: `"r" + task` or `"c" + task`; empty to change none.
            value: [interval, burst] or a number of slots; None for what the task declares.
            forget: Names of cells.
        """

    @abstractmethod
    def cells(self) -> dict[str, list[Any]]:
        """Return all cells that are not forgotten, by name; for looking.

        A cell of slots is [map of task id to `Holder`, end of the line, how long holders took].
        """

    @abstractmethod
    def now_us(self) -> int:
        """Return the moment by this store's clock, in microseconds."""


def with_holders(
    cells: dict[str, list[Any]], slots: Mapping[str, Mapping[str, Holder]], now_us: int
) -> dict[str, list[Any]]:
    """Return cells with who holds their slots put into them, as `FlowStore.cells` says.

    Args:
        cells: States by cell.
        slots: By cell, who has taken slots.
        now_us: Leases that ended before do not count.
    """
    for cell in {*slots, *(name for name in cells if name.startswith("c:"))}:
        held = slots.get(cell, {}).items()
        live = {name: list(holder) for name, holder in held if holder.until_us > now_us}
        line = cells.get(cell)
        if live or line:
            cells[cell] = [live, *(line if line and len(line) == 2 else (0, 0))]
    return cells
