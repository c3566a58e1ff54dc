"""What every broker promises to a reader of events."""

from abc import ABC, abstractmethod
from typing import Any


class EventFeed(ABC):
    """Batches of events, in order; used by one thread.

    Attributes:
        active: Whether batches come here; False for a reader that stands by for another one of the
            same name, and while the broker is away.
        trouble: Why not, or empty.
    """

    active: bool
    trouble: str

    @abstractmethod
    def get(self, timeout_s: float) -> list[tuple[Any, bytes]]:
        """Return what has come, or what comes within the timeout: (receipt, body) of each batch.

        Raises:
            ConfigError: If the broker refuses for good.
            BrokerUnavailable: If the embedded file cannot be read.
        """

    @abstractmethod
    def ack(self, receipt: Any) -> None:
        """Let go of a batch and of all before it: a named reader will not get them again."""

    @abstractmethod
    def close(self) -> None:
        """Stop reading; what was not acknowledged comes again to the next reader of the name."""
