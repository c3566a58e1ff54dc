"""Whether a delivery may run."""

from typing import Any

import pytest

from taskq import clock, outcome
from taskq.brokers.base import Delivery, Outgoing
from taskq.codecs import dumps
from taskq.config import app_settings
from taskq.errors import DecodeError
from taskq.message import UNKNOWN_SINCE, Message
from taskq.results.base import MAX_ATTEMPT, Record, decode_record, encode_record, outranks
from taskq.worker import endings
from taskq.worker.admission import DUPLICATE, Admission
from taskq.worker.held import Held
from taskq.worker.manifest import Manifest, TaskInfo

BODY = dumps([[], {}, None])


@pytest.fixture
def admission() -> Admission:
    settings = app_settings({"unknown_max_age_s": 60}, environ={})
    return Admission(Manifest("app", settings, {"known": TaskInfo("known", "q")}), "w", True)


def delivery(task: str = "known", error: DecodeError | None = None, **headers: Any) -> Delivery:
    return Delivery(1, "q", Message(task, "id-1", BODY, headers), error=error)


def opened(admission: Admission, **headers: Any) -> Held:
    held, ending = admission.open(delivery(**headers))
    assert ending is None
    return held


def test_each_delivery_gets_a_tag_of_its_own(admission: Admission) -> None:
    """Hub and executors name deliveries by it; 0 means "nothing runs" in the slots."""
    tags = [admission.open(delivery())[0].tag for _ in range(3)]

    assert tags == [1, 2, 3]


def test_what_the_broker_could_not_read_is_malformed(admission: Admission) -> None:
    _, ending = admission.open(delivery(error=DecodeError("no task")))

    assert ending is not None
    assert ending.code == endings.MALFORMED


def test_hostile_headers_are_malformed_even_of_unknown_tasks(admission: Admission) -> None:
    """Parked, they would come back for ten minutes before anybody read them."""
    for task in ("known", "unknown"):
        _, ending = admission.open(delivery(task, retries="many"))

        assert ending is not None
        assert ending.code == endings.MALFORMED


def test_an_unknown_task_is_parked_and_its_age_counted_from_the_first_time(
    admission: Admission,
) -> None:
    _, ending = admission.open(delivery("unknown"))

    assert ending is not None
    assert ending.code == endings.PARKED
    (item,) = ending.follow
    assert isinstance(item, Outgoing)
    assert abs(item.message.headers[UNKNOWN_SINCE] - clock.now_ms()) < 1000
    assert 500 < item.due_ms - clock.now_ms() <= 1000


def test_parking_waits_grow_but_stay_within_the_maximum_age(admission: Admission) -> None:
    """A rolling deploy finds its tasks soon, a forgotten task costs little."""
    waits = []
    for age_s in (0, 10, 50, 59):
        headers = {UNKNOWN_SINCE: clock.now_ms() - age_s * 1000}
        _, ending = admission.open(delivery("unknown", **headers))
        assert ending is not None
        (item,) = ending.follow
        waits.append(round((item.due_ms - clock.now_ms()) / 1000))

    assert waits == [1, 10, 10, 1]


def test_an_unknown_task_of_age_is_a_letter(admission: Admission) -> None:
    headers = {UNKNOWN_SINCE: clock.now_ms() - 61_000}

    _, ending = admission.open(delivery("unknown", **headers))

    assert ending is not None
    assert ending.code == outcome.FAILURE
    assert [item.dead for item in ending.follow] == [True]
    assert ending.follow[0].message.headers["taskq-dead-reason"] == "unknown_task"


def test_an_unreadable_message_that_was_started_once_ends_all_the_same(
    admission: Admission,
) -> None:
    """Its STARTED record, of a counted start too, would otherwise stay for ever."""
    redelivered = Delivery(1, "q", Message("known", "id-1", BODY, {"retries": 2, "eta": 7}), True)

    _, ending = admission.open(redelivered)

    assert ending is not None
    assert ending.code == endings.MALFORMED
    (write,) = ending.writes
    assert not outranks(encode_record(Record(outcome.STARTED, 2, starts=3)), write.record)
    assert outranks(encode_record(Record(outcome.RETRY, 3)), write.record)


@pytest.mark.parametrize("state", [outcome.PENDING, outcome.STARTED])
def test_a_task_that_has_not_ended_runs(admission: Admission, state: str) -> None:
    """STARTED by a worker that died: the redelivery must run."""
    held = opened(admission)

    assert admission.judge(held, encode_record(Record(state))) is None
    assert admission.judge(held, None) is None


@pytest.mark.parametrize("state", [outcome.SUCCESS, outcome.FAILURE, outcome.EXPIRED])
def test_a_finished_task_does_not_run_but_what_follows_is_sent(
    admission: Admission, state: str
) -> None:
    """Its worker may have died between the record and the follow-ups."""
    follow = [Outgoing("next", Message("u", "id-2", BODY))]
    record = Record(state, follow=endings.pack_follow(follow))

    ending = admission.judge(opened(admission), encode_record(record))

    assert ending is not None
    assert (ending.code, list(ending.writes)) == (DUPLICATE, [])
    assert list(ending.follow) == follow


def test_a_superseded_attempt_does_not_run(admission: Admission) -> None:
    """Its retry was confirmed, only its acknowledgement got lost."""
    record = encode_record(Record(outcome.RETRY, 2))

    verdicts = [admission.judge(opened(admission, retries=n), record) for n in (0, 1, 2, 3)]

    assert [verdict and verdict.code for verdict in verdicts] == [DUPLICATE, DUPLICATE, None, None]


def test_a_cancelled_task_does_not_run_nor_do_its_later_steps(admission: Admission) -> None:
    held = opened(admission)
    steps = [{"task": "a", "options": {"task_id": "s2"}}, {"task": "b", "options": {}}]
    message = Message("known", "id-1", dumps([[], {}, {"chain": steps}]))
    held.delivery.message = message

    ending = admission.judge(held, encode_record(Record(outcome.CANCELLED, MAX_ATTEMPT)))

    assert ending is not None
    assert ending.code == outcome.CANCELLED
    assert {write.task_id: decode_record(write.record).state for write in ending.writes} == {
        "id-1": outcome.CANCELLED,
        "s2": outcome.CANCELLED,
    }
    assert not ending.follow


def test_a_task_that_expired_does_not_run(admission: Admission) -> None:
    late = opened(admission, expires=clock.to_iso(clock.now_ms() - 1))
    in_time = opened(admission, expires=clock.to_iso(clock.now_ms() + 60_000))

    ending = admission.judge(late, None)

    assert ending is not None
    assert ending.code == outcome.EXPIRED
    assert admission.judge(in_time, None) is None


def test_a_record_that_cannot_be_read_does_not_stop_the_worker(admission: Admission) -> None:
    """Another program's key, or a later version's: its first byte still says that it has ended."""
    ending = admission.judge(opened(admission), b"S\0\0\0\0garbage")

    assert ending is not None
    assert (ending.code, list(ending.follow)) == (DUPLICATE, [])
