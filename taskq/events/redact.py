"""Arguments and results as short texts without secrets."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

MASK: Final = "***"
LIMIT: Final = 500
_DEPTH: Final = 6


def redacted(value: Any, names: Iterable[str], limit: int = LIMIT) -> str:
    """Return the `repr` of a value, cut, with what secret names hold masked.

    Args:
        value: What to show; maps are searched for secret names, at any depth.
        names: Parts of secret names, in lower case, such as `password`.
        limit: Characters at most.
    """
    try:
        text = repr(_masked(value, tuple(names), _DEPTH))
    # A user's __repr__ may raise anything.
    except Exception as error:
        text = f"<unprintable: {type(error).__name__}>"
    text = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return text.encode("utf-8", "backslashreplace").decode()


def _masked(value: Any, names: Sequence[str], depth: int) -> Any:
    if depth == 0:
        return "…"
    if isinstance(value, Mapping):
        return {
            key: MASK if _is_secret(key, names) else _masked(item, names, depth - 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        items = [_masked(item, names, depth - 1) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return value


def _is_secret(key: Any, names: Sequence[str]) -> bool:
    text = str(key).lower()
    return any(name in text for name in names)
