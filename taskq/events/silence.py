"""Workers that were there and are not heard of any more: `worker.lost`, told by who reads events.

Time is that of the reader: clocks of machines differ, and a backlog is old when it comes.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from taskq.events.schema import Event

MISSED: Final = 3
"""So many heartbeats in a row, and a worker counts as lost."""
_PREFIX: Final = "worker."


class _Sign(NamedTuple):
    seen_s: float
    interval_s: float
    app: str
    worker: str


class Silence:
    """Follows the heartbeats of workers; one that stopped in order is not missed."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._signs: dict[str, _Sign] = {}

    def seen(self, events: Iterable[Event]) -> None:
        """Take what was read."""
        for event in events:
            if not event.type.startswith(_PREFIX):
                continue
            if event.type == "worker.offline":
                self._signs.pop(event.source, None)
            elif event.type == "worker.heartbeat":
                data = event.data
                interval_s = data.get("interval_s")
                if isinstance(interval_s, int | float) and interval_s > 0:
                    names = str(data.get("app", "")), str(data.get("worker", ""))
                    self._signs[event.source] = _Sign(self._now_s(), interval_s, *names)

    def forgive(self) -> None:
        """Begin anew: what was not heard meanwhile could not be heard."""
        now_s = self._now_s()
        for source, sign in self._signs.items():
            self._signs[source] = sign._replace(seen_s=now_s)

    def lost(self) -> list[dict[str, Any]]:
        """Return the data of a `worker.lost` for each that is missing; each once.

        To be asked when everything that had come was read.
        """
        now_s = self._now_s()
        found = []
        for source, sign in list(self._signs.items()):
            silent_s = now_s - sign.seen_s
            if silent_s > MISSED * sign.interval_s:
                del self._signs[source]
                facts = {"app": sign.app, "worker": sign.worker, "lost_source": source}
                found.append({**facts, "silent_s": round(silent_s, 3)})
        return found
