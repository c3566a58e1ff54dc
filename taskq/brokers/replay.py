"""What every broker promises about sending dead letters back to their queues."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

from taskq.brokers.base import Delivery, Outgoing


class Replay(ABC):
    """Dead letters on their way back to their queues, each exactly once; a context manager.

    One at a time on a broker. A process that is killed in the middle loses none and doubles none:
    what it left half-way is in `stranded`, and `run` of the next replay sends it.

    Attributes:
        stranded: How many messages with each `taskq-replay` header a killed replay left half-way.
        whole: Whether the last walk saw every letter. Those that others look at, or that a killed
            replay held and that have not come back, are seen by a later walk.
    """

    stranded: Mapping[str, int]
    whole: bool

    @abstractmethod
    def run(
        self,
        visit: Callable[[Delivery], Outgoing | None],
        limit: int,
        prepare: Callable[[Sequence[Outgoing]], None],
        pace: Callable[[int], int],
    ) -> int:
        """Walk once over the dead letters, oldest first, and send up to `limit` of them.

        Args:
            visit: Returns what is sent in place of a letter, or None to keep it. The header
                `taskq-replay` of the message tells it from all others.
            limit: How many at most; those that were stranded are sent besides.
            prepare: Called with messages before they leave the dead letters.
            pace: Called with how many messages wait to go; returns how many may go now, at least
                one. It may block.

        Returns:
            How many messages were sent. While some are stranded, none is sent before a walk has
            seen every letter: a stranded one's own letter would stay dead.

        Raises:
            BrokerUnavailable: If the broker is lost; what was not sent is kept.
            PublishError: If the broker takes no messages; likewise.
        """

    @abstractmethod
    def __enter__(self) -> "Replay": ...

    @abstractmethod
    def __exit__(self, *exc_info: object) -> None: ...
