"""What a run leads to: records, retries, letters, what follows."""

from typing import Any

import pytest

from taskq import clock, outcome
from taskq.codecs import dumps
from taskq.envelope import read_envelope
from taskq.errors import RemoteError
from taskq.message import DUE, FIRST, HISTORY, Message
from taskq.results.base import decode_record
from taskq.worker import endings
from taskq.worker.endings import Case
from taskq.worker.manifest import TaskInfo

ERROR = RemoteError("builtins", "ValueError", "no", traceback="Traceback ...")


def info(**changes: Any) -> TaskInfo:
    return TaskInfo(**{"name": "t", "queue": "q", "backoff": (4, 2, 600, "none"), **changes})


def case(embed: Any = None, results: bool = True, info: TaskInfo | None = None, **headers: Any):
    message = Message("t", "id-1", dumps([[], {}, embed]), headers)
    return Case(message, read_envelope(message), info or INFO, "q", "w", results)


INFO = info()


def test_a_failed_attempt_is_sent_again_after_its_wait() -> None:
    before = clock.now_ms()

    ending = endings.failed(case(retries=1), ERROR, True, us=7)

    (item,) = ending.follow
    assert (ending.code, item.queue, item.dead) == (outcome.RETRY, "q", False)
    assert 8000 <= item.due_ms - before < 9000
    headers = item.message.headers
    assert (headers["retries"], headers[DUE]) == (2, item.due_ms)
    assert headers[HISTORY][-1][2:] == ["ValueError", "no"]
    record = decode_record(ending.writes[0].record)
    assert (record.state, record.attempt, record.error) == (outcome.RETRY, 2, ERROR)
    assert ending.writes[0].ttl_s >= INFO.failure_ttl_s + 8


@pytest.mark.parametrize(
    ("retryable", "headers", "options"),
    [
        (False, {}, {}),
        (True, {"retries": 3}, {}),
        (True, {"retries": 1}, {"max_retries": 1}),
        (True, {FIRST: 1, "retries": 1}, {}),
    ],
)
def test_a_final_failure_leaves_a_letter(
    retryable: bool, headers: dict[str, Any], options: dict[str, Any]
) -> None:
    """Not retryable, attempts spent, its own bound reached, or too old."""
    of = case(info=info(max_age_s=60), **headers)

    ending = endings.failed(of, ERROR, retryable, us=7, **options)

    assert ending.code == outcome.FAILURE
    (letter,) = ending.follow
    assert letter.dead
    assert letter.message.body == of.message.body
    assert letter.message.headers["taskq-dead-attempts"] == headers.get("retries", 0) + 1


def test_a_bound_given_by_the_task_may_be_higher_too() -> None:
    ending = endings.failed(case(retries=3), ERROR, True, us=7, max_retries=10)

    assert ending.code == outcome.RETRY


def test_a_wait_given_by_the_task_replaces_the_policys() -> None:
    before = clock.now_ms()

    ending = endings.failed(case(), ERROR, True, us=7, countdown_s=120)

    assert 120_000 <= ending.follow[0].due_ms - before < 121_000


def test_a_task_without_letters_leaves_none() -> None:
    ending = endings.failed(case(info=info(dead_letter=False)), ERROR, False, us=7)

    assert not ending.follow
    assert decode_record(ending.writes[0].record).state == outcome.FAILURE


def test_every_later_step_gets_the_failure() -> None:
    """Next first; steps without a usable id cannot be waited for."""
    chain = [
        {"task": "c", "options": {}},
        {"task": "b", "options": {"task_id": "s3"}},
        {"task": "a", "options": {"task_id": "s2"}},
    ]

    ending = endings.failed(case({"chain": chain}), ERROR, False, us=7)

    assert [write.task_id for write in ending.writes] == ["id-1", "s2", "s3"]
    records = [decode_record(write.record) for write in ending.writes]
    assert {record.state for record in records} == {outcome.FAILURE}
    assert [record.follow is not None for record in records] == [True, False, False]


def test_what_follows_is_kept_in_the_record() -> None:
    """A redelivery sends it again: the same messages, ids and all."""
    errback = {"task": "e", "args": [], "kwargs": {}, "options": {}}

    ending = endings.final(case({"errbacks": [errback]}), outcome.FAILURE, ERROR, us=7)

    record = decode_record(ending.writes[0].record)
    assert record.follow is not None
    assert endings.unpack_follow(record.follow) == list(ending.follow)
    assert [item.dead for item in ending.follow] == [True, False]


@pytest.mark.parametrize("bad", [{"task": "e", "args": 5}, {"task": "e", "kwargs": [1]}])
def test_a_hostile_errback_does_not_keep_a_task_from_ending(bad: dict[str, Any]) -> None:
    ending = endings.final(case({"errbacks": [bad]}), outcome.FAILURE, ERROR, us=7)

    assert [item.dead for item in ending.follow] == [True]


def test_without_results_nothing_is_stored() -> None:
    for ending in (
        endings.succeeded(case(results=False), None, [], 7),
        endings.failed(case(results=False), ERROR, True, us=7),
        endings.failed(case(results=False), ERROR, False, us=7),
    ):
        assert not ending.writes


def test_a_lost_worker_is_an_attempt() -> None:
    ending = endings.failed(case(retries=3), ERROR, True, us=1, reason="worker_lost")

    headers = ending.follow[0].message.headers
    assert (headers["taskq-dead-reason"], headers["taskq-dead-attempts"]) == ("worker_lost", 4)


def test_a_malformed_message_has_had_no_attempt_and_always_a_letter() -> None:
    ending = endings.malformed(case(info=info(dead_letter=False)), ValueError("bytes"))

    assert ending.code == endings.MALFORMED
    headers = ending.follow[0].message.headers
    assert (headers["taskq-dead-reason"], headers["taskq-dead-attempts"]) == ("malformed", 0)


def test_a_deferred_message_keeps_its_story_but_not_the_brokers_headers() -> None:
    """RabbitMQ drops a message silently that comes back with its own headers."""
    of = case(**{"retries": 2, "x-death": [], "x-delivery-count": 4, "x-mine": "kept"})

    ending = endings.deferred(of, 99)

    (item,) = ending.follow
    assert item.message.headers == {"retries": 2, "x-mine": "kept"}
    assert (item.due_ms, item.message.body) == (99, of.message.body)
