"""Tracebacks from kept frames are those that the standard library writes."""

import traceback
from collections.abc import Callable
from decimal import Decimal

import pytest

from taskq import tracebacks


class Odd(Exception):
    """An error of a module that is no builtin."""


class Broken(Exception):
    """An error that cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def _raise(error: BaseException) -> None:
    raise error


def _deep(depth: int) -> None:
    if depth:
        _deep(depth - 1)
    raise ValueError("at the bottom")


def _caused() -> None:
    try:
        _raise(KeyError("inner"))
    except KeyError as error:
        raise Odd("outer") from error


def _in_context() -> None:
    try:
        _raise(KeyError("inner"))
    finally:
        _raise(Odd("outer"))


def _hidden_context() -> None:
    try:
        _raise(KeyError("inner"))
    except KeyError:
        raise Odd("outer") from None


def _noted() -> None:
    error = Odd("with a note")
    error.add_note("a note")
    raise error


CASES: dict[str, Callable[[], object]] = {
    "builtin": lambda: _raise(ValueError("text")),
    "own class": lambda: _raise(Odd("text")),
    "no text": lambda: _raise(Odd()),
    "two lines": lambda: _raise(Odd("first\nsecond")),
    "carets": lambda: (Decimal(1) + 1) / (Decimal(2) - 2),
    "cause": _caused,
    "context": _in_context,
    "hidden context": _hidden_context,
    "note": _noted,
    "suggestion": lambda: "text".stripp(),  # type: ignore[attr-defined]
    "unknown name": lambda: lenn,  # type: ignore[name-defined]  # noqa: F821
    "syntax": lambda: compile("a b", "file.py", "exec"),
    "group": lambda: _raise(ExceptionGroup("some", [ValueError("one"), Odd("two")])),
    "shallow recursion": lambda: _deep(3),
    "deep recursion": lambda: _deep(100),
    "exit": lambda: _raise(SystemExit(3)),
    "no file": lambda: eval("1 / 0"),
}


@pytest.mark.parametrize("name", CASES)
def test_text_is_that_of_the_standard_library(name: str) -> None:
    """Whoever reads a dead letter must see what an uncaught error would have shown."""
    for _ in range(2):
        with pytest.raises(BaseException) as caught:  # noqa: PT011
            CASES[name]()
        error = caught.value

        shown = tracebacks.render(error, error.__traceback__)

        assert shown == "".join(traceback.format_exception(error))


def test_two_places_in_one_function_are_two_frames() -> None:
    def fails(first: bool) -> None:
        if first:
            raise ValueError("same text")
        raise ValueError("same text")

    shown = []
    for first in (True, False, True):
        with pytest.raises(ValueError, match="same") as caught:
            fails(first)
        shown.append(tracebacks.render(caught.value, caught.tb))

    assert shown[0] == shown[2] != shown[1]


def test_an_error_without_text_raises_as_its_method_does() -> None:
    """The caller says what it could not show."""
    with pytest.raises(Broken) as caught:
        _raise(Broken())

    with pytest.raises(RuntimeError, match="no text"):
        tracebacks.render(caught.value, None)


def test_code_made_at_run_time_does_not_pile_up() -> None:
    for number in range(600):
        function: dict[str, Callable[[], None]] = {}
        exec(f"def fails():\n    raise ValueError({number})", function)
        with pytest.raises(ValueError, match=str(number)) as caught:
            function["fails"]()
        tracebacks.render(caught.value, caught.tb)

    assert len(tracebacks._frames) <= 512
