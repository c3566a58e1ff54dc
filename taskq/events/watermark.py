"""Dropping duplicates and seeing gaps by one number for each source."""

from collections.abc import Iterable
from typing import Final

from taskq.events.schema import Event

MAX_SOURCES: Final = 100_000
"""Of more sources the one that was silent longest is forgotten: each short-lived program is one."""


class Watermark:
    """Knows how far each source has come.

    Correct where the events of a source arrive in order, as they do when one consumer at a time
    reads the queue: a repeated part begins at or below the mark. The memory it takes depends on the
    number of sources, not of events, and is bounded (`MAX_SOURCES`).

    Attributes:
        seen: {source: highest sequence}.
        duplicates: How many events were dropped.
        gaps: How many events were missing in front of a later one of their source.
    """

    def __init__(self, seen: dict[str, int] | None = None) -> None:
        self.seen: dict[str, int] = seen if seen is not None else {}
        self.duplicates = 0
        self.gaps = 0

    def new(self, source: str, sequence: int, *, contiguous: bool = True) -> bool:
        """Note a sequence; return whether it was not there yet.

        Args:
            source: Source of the event.
            sequence: Its number there.
            contiguous: Whether every event of the source should pass here, so that a jump is a
                gap. False for a part of them, such as one partition of a topic.
        """
        last = self.seen.get(source)
        if last is not None and sequence <= last:
            self.duplicates += 1
            return False
        # A source that was not seen before may have begun before this watermark.
        if contiguous and last is not None:
            self.gaps += sequence - last - 1
        # Put last, so that the order of the map is that of the last signs of life.
        self.seen.pop(source, None)
        self.seen[source] = sequence
        if len(self.seen) > MAX_SOURCES:
            del self.seen[next(iter(self.seen))]
        return True

    def fresh(self, events: Iterable[Event], *, contiguous: bool = True) -> list[Event]:
        """Return the events that were not there yet; see `new`."""
        return [e for e in events if self.new(e.source, e.sequence, contiguous=contiguous)]
