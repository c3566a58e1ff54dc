"""Hypothesis strategies of what travels: values, headers, signatures, and hostile forms of them."""

from datetime import timedelta, timezone
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from taskq.body import Embed

# A shared CI core may pause in any example.
many = settings(
    max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)

_offsets = st.integers(-14 * 60, 14 * 60).map(lambda m: timezone(timedelta(minutes=m)))
_texts = st.text(max_size=20)
_plain = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | _texts
)
_typed = (
    st.binary(max_size=30)
    | st.datetimes(timezones=_offsets)
    | st.datetimes()
    | st.dates()
    | st.times()
    | st.decimals(allow_nan=False)
    | st.uuids()
)


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Lists and maps with text keys of such leaves, in each other."""
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_texts, inner, max_size=4),
        max_leaves=12,
    )


values = nested(_plain | _typed)
arguments = st.lists(values, max_size=4)
keywords = st.dictionaries(_texts, values, max_size=4)

header_values = nested(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | _texts | st.binary(max_size=20)
)
# Hypothesis also tries texts that it finds in the code, such as the names of our own headers.
_own_names = (
    "x-",
    "taskq-",
    "retries",
    "eta",
    "expires",
    "timelimit",
    "compression",
    "root_",
    "parent_",
)
custom_headers = st.dictionaries(
    st.text(min_size=1, max_size=20).filter(lambda name: not name.startswith(_own_names)),
    header_values,
    max_size=5,
)

_options = st.fixed_dictionaries(
    {},
    optional={
        "task_id": st.uuids().map(str),
        "queue": st.sampled_from(["default", "mail"]),
        "priority": st.integers(0, 9),
        "headers": st.dictionaries(_texts, _texts, max_size=2),
    },
)
signatures = st.fixed_dictionaries(
    {
        "task": st.text(min_size=1, max_size=20),
        "args": st.lists(_plain, max_size=3),
        "kwargs": st.dictionaries(_texts, _plain, max_size=3),
        "options": _options,
        "immutable": st.booleans(),
    }
)
_follow = st.lists(signatures, max_size=3).map(tuple)
embeds = st.builds(Embed, _follow, _follow, _follow, st.none() | signatures)

# What a program that is not ours, or means harm, might send in any place.
junk = nested(_plain | st.binary(max_size=10) | st.floats())
_steering = [
    "retries",
    "eta",
    "expires",
    "timelimit",
    "root_id",
    "parent_id",
    "ignore_result",
    "compression",
    "group",
    "taskq-due",
    "taskq-history",
    "taskq-first",
    "taskq-unknown-since",
    "taskq-replays",
    "taskq-dead-reason",
    "x-death",
]
hostile_headers = st.dictionaries(st.sampled_from(_steering) | _texts, junk, max_size=6)


@st.composite
def _damaged_signatures(draw: st.DrawFn) -> Any:
    """A signature that is right but for one part: damage all over is found at the first part."""
    signature = dict(draw(signatures))
    if draw(st.booleans()):
        signature[draw(st.sampled_from(sorted(signature)))] = draw(junk)
        return signature
    name = draw(st.sampled_from(["task_id", "queue", "priority", "headers", "link", "link_error"]))
    signature["options"] = {**signature["options"], name: draw(junk)}
    return signature


_hostile_embed = junk | st.dictionaries(
    st.sampled_from(["callbacks", "errbacks", "chain", "chord"]), junk, max_size=4
)
_damaged_embed = st.dictionaries(
    st.sampled_from(["callbacks", "errbacks", "chain"]),
    st.lists(_damaged_signatures(), min_size=1, max_size=2),
    min_size=1,
    max_size=3,
)
hostile_bodies = (
    st.tuples(junk, junk, _hostile_embed)
    | st.tuples(st.just([]), st.just({}), _hostile_embed)
    | st.tuples(st.just([]), st.just({}), _damaged_embed)
    | st.tuples(st.just([1]), st.just({"x": 2}), _damaged_embed)
    | st.dictionaries(
        st.sampled_from(["task", "id", "args", "kwargs", "callbacks", "chord"]), junk, max_size=6
    )
    | junk
)
