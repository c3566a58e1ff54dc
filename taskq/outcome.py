"""How a task can stand, and exceptions as data."""

from typing import Any, Final

from taskq import tracebacks
from taskq.errors import RemoteError

PENDING: Final = "PENDING"
RECEIVED: Final = "RECEIVED"
STARTED: Final = "STARTED"
RETRY: Final = "RETRY"
SUCCESS: Final = "SUCCESS"
FAILURE: Final = "FAILURE"
CANCELLED: Final = "CANCELLED"
EXPIRED: Final = "EXPIRED"
UNKNOWN: Final = "UNKNOWN"

TERMINAL: Final = frozenset({SUCCESS, FAILURE, CANCELLED, EXPIRED})
"""States that nothing overwrites."""

_TRACEBACK_BYTES = 8 * 1024
_TEXT_LIMIT = 1000
_MAX_CAUSES = 5


def describe(error: BaseException, *, skip_frames: int = 0) -> RemoteError:
    """Return an exception as data, with its traceback's last 8 KiB and up to five causes.

    Args:
        error: The exception.
        skip_frames: Own frames at the traceback's top to leave out, so that it begins with the
            user's function.
    """
    tb = error.__traceback__
    for _ in range(skip_frames):
        if tb is None or tb.tb_next is None:
            break
        tb = tb.tb_next
    try:
        text = tracebacks.render(error, tb)
    # A user's __str__ or __repr__ may itself raise while the traceback is rendered.
    except Exception:
        text = f"{type(error).__qualname__} (its traceback could not be rendered)\n"
    return _plain(error, text[-_TRACEBACK_BYTES:], _causes(error))


def _causes(error: BaseException) -> tuple[RemoteError, ...]:
    causes: list[RemoteError] = []
    seen = {id(error)}
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    while cause is not None and id(cause) not in seen and len(causes) < _MAX_CAUSES:
        seen.add(id(cause))
        causes.append(_plain(cause, "", ()))
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return tuple(causes)


def _plain(error: BaseException, text: str, causes: tuple[RemoteError, ...]) -> RemoteError:
    try:
        message = str(error)
    # A user's __str__ may raise anything; the failure must still be recorded.
    except Exception:
        message = "<unprintable>"
    plain = all(
        value is None
        or isinstance(value, bool | float)
        or (isinstance(value, str) and len(value) <= _TEXT_LIMIT)
        or (isinstance(value, int) and -(2**63) <= value < 2**63)
        for value in error.args
    )
    kind = type(error)
    return RemoteError(
        module=kind.__module__,
        type=kind.__qualname__,
        message=_clean(message[:_TEXT_LIMIT]),
        args=tuple(_clean(v) if isinstance(v, str) else v for v in error.args) if plain else (),
        traceback=_clean(text),
        causes=causes,
    )


def _clean(text: str) -> str:
    # Lone surrogates (from undecodable file names) cannot be written as UTF-8.
    return text.encode("utf-8", "backslashreplace").decode()


def error_to_wire(error: RemoteError) -> list[Any]:
    """Return an error as a list of plain values, for msgpack."""
    return [
        error.module,
        error.type,
        error.message,
        list(error.args),
        error.traceback,
        [error_to_wire(cause) for cause in error.causes],
    ]


def error_from_wire(parts: list[Any]) -> RemoteError:
    """Read `error_to_wire`'s form."""
    module, kind, message, args, text, causes = parts
    return RemoteError(
        module, kind, message, tuple(args), text, tuple(error_from_wire(c) for c in causes)
    )
