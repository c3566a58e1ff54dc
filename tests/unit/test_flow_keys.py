"""Keys: from arguments to cells, without running what was written."""

import datetime
import decimal
import inspect
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.errors import KeyExpressionFailed
from taskq.flow.keys import canonical, cell_name, compute_keys, make_key, read_keys, split_cell


def call(a: Any, b: int = 7, *, tenant: str = "t") -> None: ...


SIGNATURE = inspect.signature(call)


def key_of(expression: Any, *args: Any, **kwargs: Any) -> str:
    key = make_key("key", expression)
    assert key is not None
    return key.value(args, kwargs, SIGNATURE)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("args[0]", '"x"'),
        ("args[-1]", '"x"'),
        ("kwargs['tenant']", '"acme"'),
        ("kwargs.tenant", '"acme"'),
        ("tenant", '"acme"'),
        ("b", "7"),
        ("(tenant, b)", '["acme",7]'),
        ("'fixed'", '"fixed"'),
        (lambda a, tenant: a + tenant, '"xacme"'),
    ],
)
def test_expressions_name_arguments_and_parameters(expression: Any, expected: str) -> None:
    """A parameter's name finds its argument however it was passed, defaults included."""
    assert key_of(expression, "x", tenant="acme") == expected


def test_a_dot_looks_into_maps_and_never_at_attributes() -> None:
    """`kwargs.order.id` is how most would write it; no method of an argument's class is a key."""
    assert key_of("kwargs.order.id", "x", order={"id": 7}) == key_of(
        "kwargs['order']['id']", order={"id": 7}
    )
    for expression in ("kwargs.items", "kwargs.tenant.upper", "kwargs.a.__class__"):
        with pytest.raises(KeyExpressionFailed):
            key_of(expression, "x", tenant="acme")


def test_a_parameter_is_found_however_it_was_passed() -> None:
    """`send(to)` and `send(a=to)` are the same call."""
    assert key_of("a", "x") == key_of("a", a="x")


@pytest.mark.parametrize(
    "expression", ["args[3]", "kwargs['none']", "a['x']", "nobody", lambda *args: 1 / 0]
)
def test_a_key_that_cannot_be_made_is_a_named_error(expression: Any) -> None:
    """Whatever the expression met, nobody has to know its exceptions."""
    with pytest.raises(KeyExpressionFailed, match="no key from"):
        key_of(expression, "x")


def test_values_without_a_plain_form_are_refused() -> None:
    """Two equal ones would have two keys, or two different ones the same."""
    for value in (object(), float("nan"), {1, 2}):
        with pytest.raises(KeyExpressionFailed):
            key_of("args[0]", value)


def test_what_travels_as_an_argument_can_be_a_key() -> None:
    """Dates, decimals, UUIDs and bytes too, each told from its own text."""
    day = datetime.date(2026, 1, 31)
    values = [day, str(day), decimal.Decimal("1.0"), "1.0", uuid.UUID(int=1), b"1", "1", 1, True]

    assert len({canonical(value) for value in values}) == len(values)


def test_maps_in_another_order_are_the_same_key() -> None:
    """The wire does not keep the order that a caller wrote."""
    assert canonical({"a": 1, "b": 2}) == canonical({"b": 2, "a": 1})


def test_long_and_unprintable_keys_are_hashed() -> None:
    """A key is part of a name in the store and of a line on a terminal."""
    assert canonical("x" * 10_000).startswith("#")
    assert canonical("a\x1b[2J").startswith(('"', "#"))
    assert len(canonical("x" * 10_000)) < 70
    assert canonical("x" * 10_000) != canonical("x" * 9_999)


@given(st.lists(st.tuples(st.text(), st.text()), min_size=2, max_size=2, unique=True))
def test_no_two_pairs_of_task_and_key_share_a_cell(pairs: list[tuple[str, str]]) -> None:
    """`a:b` with `c` is not `a` with `b:c`: one tenant would use up another's limit."""
    (first, second) = (cell_name("r", task, key) for task, key in pairs)

    assert first != second
    assert split_cell(first) == ("r", *pairs[0])


def test_names_with_colons_do_not_collide() -> None:
    """The plain form of the rule above."""
    assert cell_name("c", "a:b", "c") != cell_name("c", "a", "b:c")


@pytest.mark.parametrize(
    "header", [None, 5, "r", [], {"r": 5}, {"c": "x"}, {"r": "x" * 500}, {"r": None}]
)
def test_a_header_that_anyone_may_have_set_is_read_with_care(header: Any) -> None:
    """What is not readable is computed again by the executor."""
    assert read_keys(header, ["r"]) is None


def test_a_header_with_all_keys_is_taken() -> None:
    """Keys of other kinds in it do no harm."""
    assert read_keys({"r": "1", "z": "2"}, ["r"]) == {"r": "1", "z": "2"}
    assert read_keys(None, []) == {}


def test_all_arguments_are_the_key_where_none_is_named() -> None:
    """`unique=` alone means: the same call."""
    first = compute_keys({"u": None}, (1, "a"), {"k": 2}, SIGNATURE)
    second = compute_keys({"u": None}, (1, "b"), {"k": 2}, SIGNATURE)

    assert first == compute_keys({"u": None}, [1, "a"], {"k": 2}, SIGNATURE)
    assert first != second
