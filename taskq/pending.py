"""The PENDING marks of what is sent: best effort, and never at the price of a send."""

import logging
from collections.abc import Sequence

from taskq import clock
from taskq.calls import Prepared
from taskq.errors import ResultsUnavailable
from taskq.results.base import ResultStore

log = logging.getLogger("taskq.app")

_PAUSE_S = 5.0


class PendingMarks:
    """Writes the marks, and pauses while the store does not answer."""

    def __init__(self) -> None:
        self._paused_until_s = 0.0

    def write(
        self, store: ResultStore, prepared: Sequence[Prepared], skipped: int, ttl_s: int
    ) -> None:
        """Mark calls as PENDING.

        Args:
            store: Where to.
            prepared: What is being sent.
            skipped: How many first steps of each call need no mark.
            ttl_s: How long a mark is kept after the longest delay among them, in seconds.
        """
        if clock.monotonic_s() < self._paused_until_s:
            return
        ids = [task_id for item in prepared for task_id in item.ids[skipped:]]
        if not ids:
            return
        longest_s = max((item.delay_s for item in prepared), default=0.0)
        try:
            store.mark_pending(ids, ttl_s + round(longest_s))
        except ResultsUnavailable as error:
            # The mark is best effort: only the send itself may fail a caller. A store that does
            # not answer must not cost every send its timeout, so marks pause.
            self._paused_until_s = clock.monotonic_s() + _PAUSE_S
            log.warning("cannot mark tasks as pending, sending goes on error=%s", error)
