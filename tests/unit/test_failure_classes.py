"""What `get` raises: TaskFailed, and the task's own exception class where it is imported here."""

import json
import sys
from typing import Any

import pytest

from taskq import TaskFailed, TaskqError
from taskq.errors import RemoteError
from taskq.outcome import describe, error_from_wire, error_to_wire
from taskq.result import failure


class Refused(Exception):
    def __init__(self, order: int, reason: str = "") -> None:
        super().__init__(order, reason)
        self.order = order


class Shop:
    """Holds a class, so that its qualified name has two parts."""

    class Closed(Exception):
        """Raised outside of opening hours."""


class WantsTwo(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(one + two)


class NeedsNew(Exception):
    def __new__(cls, one: int, two: int) -> "NeedsNew":
        return super().__new__(cls, one, two)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Slotted(Exception):
    __slots__ = ("value",)


def raised(error: BaseException) -> RemoteError:
    """Return an exception as a worker stores it and a caller reads it."""
    try:
        raise error
    except BaseException as caught:
        return error_from_wire(json.loads(json.dumps(error_to_wire(describe(caught)))))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("wrong"),
        KeyError("name"),
        OSError(2, "No such file"),
        FileNotFoundError(2, "No such file", "path"),
        ConnectionResetError("gone"),
        ZeroDivisionError("division by zero"),
        Refused(7, "sold out"),
        Shop.Closed("at night"),
        StopIteration(3),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        Slotted("x"),
        WantsTwo(1, 2),
    ],
)
def test_a_failure_is_caught_by_either_class(error: Exception) -> None:
    """`except ValueError` around `get` must do what it does around the function."""
    caught = failure("id", raised(error))

    assert isinstance(caught, type(error))
    assert isinstance(caught, TaskFailed)
    assert isinstance(caught, TaskqError)
    assert type(caught).__name__ == type(error).__name__
    assert str(caught).startswith(f"task id failed: {type(error).__qualname__}: ")
    assert caught.remote_message == str(error)
    assert caught.traceback.startswith("Traceback")
    assert error.__class__.__name__ in repr(caught)


def test_plain_arguments_come_along() -> None:
    """`error.args[0]` of an OSError is its number."""
    caught = failure("id", raised(OSError(2, "No such file")))

    assert caught.args == (2, "No such file")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("not.imported.here", "Error"),
        ("builtins", "NoSuchError"),
        ("builtins", "print"),
        ("builtins", "KeyboardInterrupt"),
        ("builtins", "SystemExit"),
        ("os", "path.join"),
        ("", ""),
        ("builtins", "__class__.__name__"),
    ],
)
def test_a_class_that_is_not_here_leaves_task_failed(module: str, name: str) -> None:
    """Nothing is imported for it: a stored record must not decide which code runs here."""
    before = set(sys.modules)

    caught = failure("id", RemoteError(module, name, "text"))

    assert type(caught) is TaskFailed
    assert caught.remote_type == name
    assert set(sys.modules) == before


@pytest.mark.parametrize("error", [NeedsNew(1, 2), Unprintable()])
def test_an_awkward_class_still_is_a_failure(error: Exception) -> None:
    """A class that cannot be combined, or shown, must not hide that the task failed."""
    caught = failure("id", raised(error))

    assert isinstance(caught, TaskFailed)
    assert type(error).__name__ in str(caught)


def test_causes_are_told_nearest_first() -> None:
    """The reason of a failure is often the exception behind it."""
    try:
        try:
            try:
                raise KeyError("a")
            except KeyError as error:
                raise OSError("b") from error
        except OSError:
            raise ValueError("c")  # noqa: B904
    except ValueError as caught:
        described = describe(caught)

    assert [cause.type for cause in described.causes] == ["OSError", "KeyError"]
    assert error_from_wire(error_to_wire(described)) == described


def test_causes_that_form_a_circle_end() -> None:
    """Python allows it, and a loop here would hang the worker."""
    first, second = ValueError("1"), ValueError("2")
    first.__cause__, second.__cause__ = second, first

    assert [cause.message for cause in describe(first).causes] == ["2"]


@pytest.mark.parametrize(
    "value", [object(), {"a": 1}, b"bytes", "x" * 5000, 2**70, [1], float("nan")]
)
def test_arguments_that_are_not_plain_stay_behind(value: Any) -> None:
    """A record must be readable everywhere, and small."""
    described = raised(Refused(value))

    assert len(described.message) <= 1000
    assert described.args == () or described.args[0] != described.args[0]


def test_text_that_is_no_utf8_can_be_stored() -> None:
    """File names with stray bytes reach exception messages first."""
    described = describe(FileNotFoundError(2, "No such file", "bad\udcffname"))

    json.dumps(error_to_wire(described)).encode()
    assert "\\udcff" in described.message


def test_own_frames_are_cut_from_the_top_of_a_traceback() -> None:
    """A user reads the own function first, not the worker's."""

    def inner() -> None:
        raise ValueError("x")

    def outer() -> None:
        inner()

    try:
        outer()
    except ValueError as error:
        text = describe(error, skip_frames=2).traceback

    assert "in inner" in text
    assert "in outer" not in text


def test_a_long_traceback_keeps_its_end() -> None:
    """The last lines say what happened."""

    def deep(count: int) -> None:
        if not count:
            raise ValueError("at the bottom")
        odd(count - 1)

    def odd(count: int) -> None:
        # Two that call each other: Python folds repetitions of one line.
        deep(count - 1)

    try:
        deep(300)
    except ValueError as error:
        text = describe(error).traceback

    assert len(text) <= 8192
    assert text.endswith("ValueError: at the bottom\n")
