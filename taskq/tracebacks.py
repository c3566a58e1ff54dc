"""Tracebacks as text, as `traceback.format_exception` writes them, for errors that come in crowds.

A task that fails and is retried raises the same error at the same place again and again, and most
of what a traceback costs (100 us, with the source line compiled to find the carets) is the text of
its frames. That depends on code and instruction alone, so it is kept.
"""

import traceback
from types import CodeType, TracebackType
from typing import Final

_MOST: Final = 512
_MOST_FRAMES: Final = 30
# The interpreter adds suggestions or lines of source to these, by rules of its own.
_SPECIAL: Final = (SyntaxError, NameError, AttributeError, ImportError, BaseExceptionGroup)
_frames: dict[tuple[CodeType, int], str] = {}


def render(error: BaseException, tb: TracebackType | None) -> str:
    """Return an exception's traceback as text.

    Args:
        error: The exception; whatever its `__str__` raises is raised.
        tb: Where it was raised.
    """
    if _is_plain(error):
        frames = _render_frames(tb)
        if frames is not None:
            return f"{frames}{_last_line(error)}"
    return "".join(traceback.format_exception(type(error), error, tb))


def _is_plain(error: BaseException) -> bool:
    alone = error.__cause__ is None and (error.__context__ is None or error.__suppress_context__)
    return alone and not isinstance(error, _SPECIAL) and not hasattr(error, "__notes__")


def _render_frames(tb: TracebackType | None) -> str | None:
    """Return the frames' text; None where there are so many that some may be repetitions."""
    if tb is None:
        return ""
    parts = ["Traceback (most recent call last):\n"]
    while tb is not None:
        key = tb.tb_frame.f_code, tb.tb_lasti
        text = _frames.get(key)
        if text is None:
            if len(_frames) >= _MOST:
                # Code that is made at run time is new each time; nothing may grow for ever.
                _frames.clear()
            text = _frames[key] = traceback.format_tb(tb, 1)[0]
        parts.append(text)
        tb = tb.tb_next
    return "".join(parts) if len(parts) <= _MOST_FRAMES else None


def _last_line(error: BaseException) -> str:
    kind, text = type(error), str(error)
    module = "" if kind.__module__ in ("__main__", "builtins") else f"{kind.__module__}."
    return f"{module}{kind.__qualname__}: {text}\n" if text else f"{module}{kind.__qualname__}\n"
