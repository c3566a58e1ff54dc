"""Arguments and results as short texts without secrets."""

from collections.abc import Iterable
from typing import Any, Final

from taskq.redact import Redactor

LIMIT: Final = 500
_DEPTH: Final = 6
"""What a task is called with may hold itself, several times over."""


def redacted(value: Any, names: Iterable[str], limit: int = LIMIT) -> str:
    """Return the `repr` of a value, cut, with what secret names hold masked.

    Args:
        value: What to show; maps are searched for secret names, at any depth.
        names: Parts of secret names, in lower case, such as `password`.
        limit: Characters at most.
    """
    try:
        text = repr(Redactor(names, _DEPTH).value(value))
    # A user's __repr__ may raise anything.
    except Exception as error:
        text = f"<unprintable: {type(error).__name__}>"
    text = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return text.encode("utf-8", "backslashreplace").decode()
