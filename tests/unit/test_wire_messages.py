"""Messages: what is encoded comes back, and nothing that arrives can do more than be refused."""

import contextlib
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_wire_codecs import same
from wire_strategies import (
    arguments,
    custom_headers,
    embeds,
    hostile_bodies,
    hostile_headers,
    junk,
    keywords,
    many,
)

from taskq import TaskQ, clock, codecs, message
from taskq.body import Embed, decode_call, encode_call
from taskq.envelope import read_envelope
from taskq.errors import DecodeError, EncodeError, RemoteError
from taskq.message import DEAD_PREFIX, DUE, FIRST, HISTORY, REPLAYS, SENT, Message
from taskq.resend import REASONS, dead, retried, revived, strip_broker_headers
from taskq.results.base import decode_record
from taskq.worker.endings import Ending, unpack_follow
from taskq.worker.registry import AppRegistry
from taskq.worker.runner import Runner

SERIALIZERS = pytest.mark.parametrize("serializer", ["msgpack", "json"])
ERROR = RemoteError("builtins", "ValueError", "no" * 500, (), "Traceback ...")
LIMIT_BYTES = 1 << 20

# Those that RabbitMQ adds, among which a re-published message would be dropped as a cycle.
broker_headers = st.dictionaries(
    st.sampled_from(
        [
            "x-death",
            "x-first-death-queue",
            "x-last-death-reason",
            "x-delivery-count",
            "x-acquired-count",
        ]
    ),
    junk,
)


@SERIALIZERS
@many
@given(args=arguments, kwargs=keywords, embed=embeds, headers=custom_headers)
def test_a_call_comes_back_as_it_was_encoded(
    serializer: str,
    args: list[Any],
    kwargs: dict[str, Any],
    embed: Embed,
    headers: dict[str, Any],
) -> None:
    """Arguments, what follows, and custom headers: nothing is lost or turned into another type."""
    sent = encode_call(
        "t", "id", args, kwargs, embed=embed, serializer=serializer, priority=3, headers=headers
    )

    call = decode_call(sent)

    assert same(call.args, args)
    assert same(call.kwargs, kwargs)
    assert call.embed.to_wire() == embed.to_wire()
    assert (sent.task, sent.id, sent.priority) == ("t", "id", 3)
    assert sent.headers == {name: value for name, value in headers.items() if value is not None}


@many
@given(headers=custom_headers, body=st.binary(max_size=50))
def test_the_list_form_keeps_every_field(headers: dict[str, Any], body: bytes) -> None:
    """Hub, executors and the embedded file pass messages in this form."""
    sent = Message("t", "id", body, headers, codecs.JSON, "utf-8", 7, "other-id", "reply")

    parts = msgpack.unpackb(msgpack.packb(sent.to_list()), strict_map_key=False)

    assert Message.from_list(parts) == sent


@many
@given(headers=hostile_headers)
def test_reading_an_envelope_raises_nothing_but_decode_error(headers: dict[str, Any]) -> None:
    """The hub reads headers of every message; another exception would end it for all tasks."""
    with contextlib.suppress(DecodeError):
        envelope = read_envelope(Message("t", "id", b"", headers))

        assert 0 <= envelope.retries < 2**62
        assert envelope.due_ms >= 0
        assert envelope.expires_ms >= 0


@many
@given(
    body=st.binary(max_size=60) | hostile_bodies,
    headers=hostile_headers,
    content_type=st.sampled_from([codecs.MSGPACK, codecs.JSON]) | st.text(max_size=10),
)
def test_reading_a_body_raises_nothing_but_decode_error(
    body: Any, headers: dict[str, Any], content_type: str
) -> None:
    """Bodies come from whoever can reach the queue."""
    data = body if isinstance(body, bytes) else _encoded(body, content_type)
    hostile = Message("t", "id", data, headers, content_type)

    with contextlib.suppress(DecodeError):
        call = decode_call(hostile)

        assert isinstance(call.args, list)
        assert all(isinstance(key, str) for key in call.kwargs)
    with contextlib.suppress(DecodeError):
        adopted = message.adopt_protocol_1(hostile)

        assert adopted.task
        assert adopted.id


def _encoded(body: Any, content_type: str) -> bytes:
    known = codecs.JSON if content_type == codecs.JSON else codecs.MSGPACK
    with contextlib.suppress(EncodeError):
        return codecs.dumps(body, known)
    return b""


def make_runner() -> Runner:
    app = TaskQ("hostile", broker="memory://", results="memory://")

    @app.task(name="works")
    def works(*args: Any, **kwargs: Any) -> int:
        return 1

    @app.task(name="fails", max_retries=0)
    def fails(*args: Any, **kwargs: Any) -> None:
        raise ValueError("no")

    @app.task(name="retries", max_retries=10)
    def retries(*args: Any, **kwargs: Any) -> None:
        raise OSError("again")

    return Runner(AppRegistry(app), "worker")


RUNNER = make_runner()


@SERIALIZERS
@settings(many, max_examples=250)
@given(
    task=st.sampled_from(["works", "fails", "retries", "unknown"]),
    body=hostile_bodies,
    headers=hostile_headers,
)
def test_no_message_can_end_the_process_that_runs_it(
    serializer: str, task: str, body: Any, headers: dict[str, Any]
) -> None:
    """Whatever stands in headers, arguments, callbacks or chain, the run has an ending.

    What follows a task is read when it ends: an exception there would come from the worker's own
    code, where nothing counts attempts, and again at every redelivery.
    """
    content_type, encoding = codecs.SERIALIZERS[serializer]
    hostile = Message(task, "id", _encoded(body, content_type), headers, content_type, encoding)

    job = RUNNER.decode(hostile, "default", redelivered=False)
    ending = job if isinstance(job, Ending) else RUNNER.run(job, job.runnable.call)

    assert ending.code in ("SUCCESS", "FAILURE", "RETRY", "MALFORMED")
    for item in ending.follow:
        assert item.message.body is not None
        # The whole must pass the hub's frames.
        assert Message.from_list(msgpack.unpackb(msgpack.packb(item.message.to_list()))) is not None


@many
@given(headers=custom_headers, broker=broker_headers, history=junk, attempts=st.integers(1, 50))
def test_a_retry_counts_up_and_keeps_the_rest(
    headers: dict[str, Any], broker: dict[str, Any], history: Any, attempts: int
) -> None:
    """A retry that lost its arguments, its id or its first failure would be another task."""
    sent = Message("t", "id", b"body", {**headers, **broker, HISTORY: history})

    for attempt in range(1, attempts + 1):
        due_ms = clock.now_ms() + 1000
        sent = retried(sent, attempt, due_ms, ERROR)

    found = sent.headers
    assert (sent.task, sent.id, sent.body) == ("t", "id", b"body")
    assert read_envelope(sent).retries == attempts
    assert read_envelope(sent).due_ms == found[DUE] == due_ms
    assert 1 <= len(found[HISTORY]) <= 20
    assert found[HISTORY][-1][0] == attempts
    assert len(found[HISTORY][-1][3]) <= 200
    assert isinstance(found[FIRST], int)
    assert not [name for name in found if name in broker]
    assert {name: found[name] for name in headers} == headers


@many
@given(headers=custom_headers, broker=broker_headers, reason=st.sampled_from(REASONS))
def test_a_dead_letter_tells_its_story_and_a_replay_forgets_it(
    headers: dict[str, Any], broker: dict[str, Any], reason: str
) -> None:
    """Replayed, a task starts afresh: no old date may expire it, no old count may end it."""
    failed = Message("t", "id", b"body", {**headers, **broker, "expires": "2020-01-01"})
    failed = retried(failed, 2, 1, ERROR)

    letter = dead(failed, reason, "mail", error=ERROR, attempts=3, worker="w")
    again = revived(revived(letter))

    assert letter.body == again.body == b"body"
    story = {k[len(DEAD_PREFIX) :]: v for k, v in letter.headers.items() if DEAD_PREFIX in k}
    assert (story["reason"], story["queue"], story["attempts"]) == (reason, "mail", 3)
    assert (story["type"], story["module"]) == ("ValueError", "builtins")
    assert len(story["message"]) <= 1000
    assert again.headers == {**headers, REPLAYS: 2, SENT: again.headers[SENT]}
    assert read_envelope(again).retries == 0


@pytest.mark.parametrize("replays", ["many", -3, None, [1], 2**62, 1.5])
def test_a_replay_of_a_letter_with_a_false_count_counts_from_one(replays: Any) -> None:
    """Someone else's header must not keep a letter from being replayed."""
    assert revived(Message("t", "id", b"", {REPLAYS: replays})).headers[REPLAYS] == 1


@many
@given(headers=custom_headers, broker=broker_headers)
def test_stripping_takes_the_brokers_headers_and_no_other(
    headers: dict[str, Any], broker: dict[str, Any]
) -> None:
    """With them the broker drops the copy silently; without the user's own the copy is another."""
    assert strip_broker_headers({**headers, **broker}) == headers


@pytest.mark.parametrize(
    "headers",
    [
        {"a": 1.5},
        {"a": {1: 2}},
        {"a": [object()]},
        {"a": 2**63},
        {"x" * 256: 1},
        {"a": "x" * 100_000},
    ],
)
def test_headers_that_amqp_cannot_carry_are_refused(headers: dict[str, Any]) -> None:
    """The driver would raise in its own thread, or close the connection under others' messages."""
    with pytest.raises(EncodeError):
        encode_call("t", "id", (), {}, headers=headers)


def test_a_call_over_the_size_limit_is_refused_with_a_cure() -> None:
    """RabbitMQ 4 closes the channel on it."""
    with pytest.raises(EncodeError, match="store them elsewhere"):
        encode_call("t", "id", (b"x" * (message.MAX_BODY_BYTES + 1),), {})


def test_a_signature_that_could_not_be_sent_is_refused_before_the_task_runs() -> None:
    """Found after the run, the work would be done and done again at each attempt."""
    bad = [
        {"task": 3},
        {"task": "t", "args": 5},
        {"task": "t", "kwargs": [1]},
        {"task": "t", "options": [1]},
        {"task": "t", "options": {"headers": [1]}},
        {"task": "t", "options": {"task_id": "x" * 201}},
        {"task": "t", "options": {"queue": 5}},
        {"task": "t", "options": {"queue": "amq.direct"}},
        {"task": "t", "options": {"priority": 300}},
        {"task": "t", "options": {"link": [{"task": None}]}},
        {"task": "t", "options": {"link_error": {"task": "t", "options": {"link": 3}}}},
    ]
    for place in ("callbacks", "errbacks", "chain"):
        for signature in bad:
            body = codecs.dumps([[], {}, {place: [signature]}])

            with pytest.raises(DecodeError, match=place):
                decode_call(Message("t", "id", body))


def test_what_follows_a_task_survives_the_record_it_is_kept_in() -> None:
    """A crash between the stored result and the confirmed follow-up sends it from there."""
    step = {"task": "works", "args": [1], "kwargs": {}, "options": {"task_id": "next"}}
    sent = encode_call("works", "id", (), {}, embed=Embed(chain=(step,)))

    job = RUNNER.decode(sent, "default", redelivered=False)
    assert not isinstance(job, Ending)
    ending = RUNNER.run(job, job.runnable.call)

    (write,) = ending.writes
    follow = decode_record(write.record).follow
    assert follow is not None
    assert [item.message for item in unpack_follow(follow)] == [i.message for i in ending.follow]
    assert ending.follow[0].message.id == "next"
