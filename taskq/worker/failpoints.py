"""Named points at which a worker can be made to die, for the tests that prove what happens then.

`TASKQ_FAILPOINT=confirmed:kill:3` kills the hub with SIGKILL when it reaches the point `confirmed`
for the third time; `stop` instead of `kill` freezes it with SIGSTOP. Points of executors kill the
executor that reaches them, and each one that takes its place when its time has come. The variable
is read once, at import; unset, a point is one comparison for each batch or task.
"""

import os
import signal
from typing import Final

from taskq.errors import ConfigError

STORED: Final = "stored"
"""Results are stored, follow-ups not sent."""
CONFIRMED: Final = "confirmed"
"""Follow-ups (retries, next steps, dead letters) are confirmed, retry records not stored."""
BEFORE_ACK: Final = "before-ack"
"""All is stored and confirmed, nothing is acknowledged."""
ACKED: Final = "acked"
"""The acknowledgement is on its way."""
POINTS: Final = (STORED, CONFIRMED, BEFORE_ACK, ACKED)
"""Those of the hub, in their order."""
GIVEN: Final = "given"
"""Work has arrived in an executor, none of it is begun."""
BEGUN: Final = "begun"
"""A task counts as running, its function is not called."""
RUN: Final = "run"
"""The function has returned, nobody knows."""
TOLD: Final = "told"
"""The hub was sent the outcome."""
EXECUTOR_POINTS: Final = (GIVEN, BEGUN, RUN, TOLD)
"""Those of an executor; each one counts by itself."""
ALL_POINTS: Final = (*POINTS, *EXECUTOR_POINTS)
_ACTIONS: Final = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


class Failpoint:
    """One point and what happens when it is reached for the n-th time."""

    def __init__(self, text: str) -> None:
        """Read `point:action` or `point:action:n`; empty text is no point at all.

        Raises:
            ConfigError: For an unknown point or action.
        """
        self.point, _, rest = text.partition(":")
        action, _, count = rest.partition(":")
        if text and (self.point not in ALL_POINTS or action not in _ACTIONS or not _counts(count)):
            raise ConfigError(
                f"TASKQ_FAILPOINT={text!r}: use POINT:ACTION or POINT:ACTION:N with a point of "
                f"{', '.join(ALL_POINTS)} and an action of {', '.join(_ACTIONS)}"
            )
        self._signal = _ACTIONS.get(action, signal.SIGKILL)
        self._left = int(count or 1)

    def reach(self, point: str) -> None:
        """Act if this is the point and its time has come."""
        if point == self.point:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), self._signal)


def _counts(text: str) -> bool:
    return not text or (text.isascii() and text.isdigit() and int(text) > 0)


reach = Failpoint(os.environ.get("TASKQ_FAILPOINT", "")).reach
