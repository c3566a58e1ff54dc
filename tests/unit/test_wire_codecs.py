"""Values on the wire: whatever can be written is read back equal, whatever is read is safe."""

import contextlib
import zlib
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_strategies import many, values

from taskq import codecs
from taskq.errors import DecodeError, EncodeError

CONTENT_TYPES = pytest.mark.parametrize("content_type", [codecs.MSGPACK, codecs.JSON])


def same(first: Any, second: Any) -> bool:
    """Equal with equal types all the way down: 1, True and 1.0 are not the same argument."""
    if type(first) is not type(second):
        return False
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, datetime):
        return first == second and first.utcoffset() == second.utcoffset()
    return bool(first == second)


@CONTENT_TYPES
@many
@given(value=values)
def test_every_supported_value_comes_back_equal(content_type: str, value: Any) -> None:
    """A task must see what its caller passed, nested however it was."""
    assert same(codecs.loads(codecs.dumps(value, content_type), content_type), value)


@CONTENT_TYPES
@many
@given(data=st.binary(max_size=200))
def test_reading_any_bytes_raises_nothing_but_decode_error(content_type: str, data: bytes) -> None:
    """Any other exception would end the worker that reads them."""
    with contextlib.suppress(DecodeError):
        codecs.loads(data, content_type)


@CONTENT_TYPES
@many
@given(
    kind=st.sampled_from(["datetime", "date", "time", "decimal", "uuid", "bytes", "base64", "no"]),
    text=st.none() | st.text(max_size=10) | st.integers() | st.dictionaries(st.text(), st.text()),
)
def test_reading_a_false_special_value_raises_nothing_but_decode_error(
    content_type: str, kind: str, text: Any
) -> None:
    """The readers of dates and numbers raise a dozen kinds of exception."""
    if isinstance(text, int):
        text %= 2**63
    data = codecs.dumps([{"__type__": kind, "__value__": text}], content_type)

    with contextlib.suppress(DecodeError):
        codecs.loads(data, content_type)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (datetime(2026, 1, 1, tzinfo=UTC), b'"2026-01-01T00:00:00+00:00"'),
        (date(2026, 1, 1), b'{"__type__":"date","__value__":"2026-01-01"}'),
        (Decimal("1.5"), b'{"__type__":"decimal","__value__":"1.5"}'),
        (UUID(int=1), b'"__value__":{"hex":"00000000000000000000000000000001"}'),
        (b"\x00\xff", b'{"__type__":"base64","__value__":"AP8="}'),
    ],
)
def test_json_has_the_forms_that_celery_writes(value: Any, text: bytes) -> None:
    """A Celery worker reads these and no others."""
    assert text in codecs.dumps(value, codecs.JSON)


@pytest.mark.parametrize(
    "value", [{"__type__": "mine", "__value__": 1}, {"__type__": "date"}, {"__type__": 3}]
)
def test_a_map_that_only_looks_special_stays_the_users_own(value: Any) -> None:
    """Nobody told users that a key is reserved."""
    assert codecs.loads(codecs.dumps(value)) == value


@CONTENT_TYPES
def test_tuples_come_back_as_lists(content_type: str) -> None:
    """As in Celery; said in the documentation, so it must not change."""
    assert codecs.loads(codecs.dumps((1, (2,)), content_type), content_type) == [1, [2]]


class Foreign:
    pass


@CONTENT_TYPES
@pytest.mark.parametrize(
    ("value", "place"),
    [
        ([1, {"user": Foreign()}], "[1]['user']"),
        ({"a": [0, {1, 2}]}, "['a'][1]"),
        ([[object()]], "[0][0]"),
    ],
)
def test_what_cannot_be_written_is_named_by_its_place(
    content_type: str, value: Any, place: str
) -> None:
    """In a large structure the type alone does not lead to the culprit."""
    with pytest.raises(EncodeError) as caught:
        codecs.dumps(value, content_type)

    assert f"cannot encode {place}:" in str(caught.value)


def test_integers_over_64_bits_need_json() -> None:
    """In msgpack they have no form, and it must say so instead of cutting them."""
    with pytest.raises(EncodeError):
        codecs.dumps(2**64)

    assert codecs.loads(codecs.dumps(2**64, codecs.JSON), codecs.JSON) == 2**64


@CONTENT_TYPES
def test_values_nested_too_deeply_are_an_encode_error(content_type: str) -> None:
    """A RecursionError names no task and no cure."""
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]

    with pytest.raises(EncodeError):
        codecs.dumps(value, content_type)


def test_json_nested_too_deeply_is_a_decode_error() -> None:
    """A message of a few kilobytes must not overflow the reader's stack."""
    with pytest.raises(DecodeError):
        codecs.loads(b"[" * 100_000, codecs.JSON)


@pytest.mark.parametrize("content_type", ["application/x-python-serialize", "text/plain", ""])
def test_other_content_types_are_never_read(content_type: str) -> None:
    """Reading a pickle is running whatever its sender wrote."""
    with pytest.raises(DecodeError, match="is not read"):
        codecs.loads(b"x", content_type)


@pytest.mark.parametrize("name", ["gzip", "bz2", "lzma"])
def test_a_compressed_body_may_not_grow_without_bound(name: str) -> None:
    """Sixteen kilobytes of zeros compressed twice fill a worker's memory."""
    import bz2
    import lzma

    pack = {"gzip": zlib.compress, "bz2": bz2.compress, "lzma": lzma.compress}[name]
    kind = f"application/x-{name}"

    assert codecs.inflate(pack(b"x" * 1000), kind, 1000) == b"x" * 1000
    for data in (pack(b"x" * 5000), pack(b"x" * 1000)[:-3], b"", b"junk"):
        with pytest.raises(DecodeError):
            codecs.inflate(data, kind, 1000)


@pytest.mark.parametrize("kind", ["application/zstd", 7, None, ["application/x-gzip"]])
def test_an_unknown_compression_is_a_decode_error(kind: Any) -> None:
    """The header comes from outside, whatever its type."""
    with pytest.raises(DecodeError, match="not supported"):
        codecs.inflate(b"x", kind, 1000)
