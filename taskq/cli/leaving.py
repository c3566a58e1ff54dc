"""How commands that started processes or made files leave when they are told to end."""

import contextlib
import signal
from types import FrameType


def end_in_order(stack: contextlib.ExitStack) -> None:
    """Make TERM and HUP unwind the stack, as Ctrl-C does; the stack gives the signals back.

    By default they end the process on the spot: its workers would go on for ever, and its
    temporary directory stay.
    """

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        stack.callback(signal.signal, number, signal.signal(number, leave))
