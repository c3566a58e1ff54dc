"""The contract of a results store, as one suite for every kind of it."""

import threading
import time
from collections import Counter
from itertools import pairwise, permutations

import pytest
from processes import wait_for
from results_records import new_id, record, write

from taskq import codecs
from taskq.errors import DecodeError
from taskq.outcome import TERMINAL
from taskq.results import open_results
from taskq.results.base import (
    MAX_ATTEMPT,
    ResultStore,
    Write,
    decode_record,
)

pytest_plugins = ("results_fixtures",)

FINAL = sorted(TERMINAL)


def state(store: ResultStore, task_id: str) -> str | None:
    data = store.fetch([task_id])[0]
    return None if data is None else decode_record(data).state


def test_an_id_never_seen_has_no_record(store: ResultStore) -> None:
    """UNKNOWN must differ from PENDING."""
    assert store.fetch([new_id()]) == [None]


def test_pending_is_written_where_nothing_is(store: ResultStore) -> None:
    """The mark is what tells PENDING from UNKNOWN."""
    first, second = new_id(), new_id()

    store.mark_pending([first, second], 60)

    assert [state(store, first), state(store, second)] == ["PENDING", "PENDING"]


@pytest.mark.parametrize("there", ["STARTED", "RETRY", *FINAL])
def test_pending_replaces_no_record(store: ResultStore, there: str) -> None:
    """The mark races with the worker, which may be faster than the sender."""
    task_id = new_id()
    store.store([write(task_id, there)])

    store.mark_pending([task_id], 60)

    assert state(store, task_id) == there


def test_what_is_stored_comes_back_whole(store: ResultStore) -> None:
    """Every field of a record, and bytes of any value, survive the store."""
    task_id = new_id()
    data = record("SUCCESS", 3, codecs.dumps({"a": [1, None, bytes(range(256))]}))

    assert store.store([Write(task_id, data, 60)]) == [True]

    assert store.fetch([task_id]) == [data]
    assert decode_record(data).result() == {"a": [1, None, bytes(range(256))]}


@pytest.mark.parametrize(("final", "late"), [*permutations(FINAL, 2), ("SUCCESS", "SUCCESS")])
def test_a_terminal_record_is_never_overwritten(store: ResultStore, final: str, late: str) -> None:
    """A finished task stays as it ended, also against a later attempt."""
    task_id = new_id()
    store.store([write(task_id, final, 1)])

    taken = store.store([write(task_id, late, 1, b"\xc0"), write(task_id, late, 9, b"\xc0")])

    assert taken == [False, False]
    assert store.fetch([task_id]) == [record(final, 1)]


@pytest.mark.parametrize("late", ["RECEIVED", "STARTED", "RETRY"])
def test_a_running_state_does_not_reopen_a_finished_task(store: ResultStore, late: str) -> None:
    """A redelivered message must not show as running again."""
    task_id = new_id()
    store.store([write(task_id, "SUCCESS")])

    assert store.store([write(task_id, late, 5)]) == [False]
    assert state(store, task_id) == "SUCCESS"


def test_an_earlier_attempt_never_replaces_a_later_one(store: ResultStore) -> None:
    """The original that comes back after its retry was confirmed is behind."""
    task_id = new_id()
    store.store([write(task_id, "STARTED", 2)])

    taken = store.store([write(task_id, "SUCCESS", 1), write(task_id, "RETRY", 0)])

    assert taken == [False, False]
    assert store.fetch([task_id]) == [record("STARTED", 2)]


def test_attempts_are_compared_as_numbers(store: ResultStore) -> None:
    """Compared as text or byte by byte from the wrong end, 256 would come before 2."""
    task_id = new_id()
    steps = (0, 1, 2, 255, 256, 257, 65536, 2**23, MAX_ATTEMPT)

    for low, high in pairwise(steps):
        store.store([write(task_id, "STARTED", high)])
        assert store.store([write(task_id, "STARTED", low)]) == [False], (low, high)

    assert decode_record(store.fetch([task_id])[0] or b"").attempt == MAX_ATTEMPT


def test_the_same_attempt_moves_on(store: ResultStore) -> None:
    """PENDING, RECEIVED, STARTED, SUCCESS are all of attempt 0."""
    task_id = new_id()
    store.mark_pending([task_id], 60)

    for step in ("RECEIVED", "STARTED", "RETRY", "SUCCESS"):
        assert store.store([write(task_id, step)]) == [True]
        assert state(store, task_id) == step


def test_one_call_obeys_the_rules_between_its_own_writes(store: ResultStore) -> None:
    """A batch of outcomes may hold two of one task."""
    first, second = new_id(), new_id()

    taken = store.store(
        [
            write(first, "STARTED", 1),
            write(second, "FAILURE"),
            write(first, "SUCCESS", 1),
            write(first, "FAILURE", 2),
            write(second, "SUCCESS"),
        ]
    )

    assert taken == [True, True, True, False, False]
    assert [state(store, first), state(store, second)] == ["SUCCESS", "FAILURE"]


def test_nothing_to_do_is_no_fault(store: ResultStore) -> None:
    """An empty batch must not reach the server as a malformed command."""
    store.mark_pending([], 60)
    store.forget([])

    assert store.store([]) == []
    assert store.fetch([]) == []
    assert store.count_starts([], 60) == []


def test_fetch_answers_in_the_order_of_the_question(store: ResultStore) -> None:
    """Callers zip ids and records; some ids are unknown, some asked twice."""
    ids = [new_id() for _ in range(1500)]
    writes = [write(i, "SUCCESS", 0, codecs.dumps(n)) for n, i in enumerate(ids) if n % 3]
    assert store.store(writes) == [True] * len(writes)

    found = store.fetch([*reversed(ids), ids[1]])

    values = [None if data is None else decode_record(data).result() for data in found]
    assert values == [n if n % 3 else None for n in range(1499, -1, -1)] + [1]


def test_a_record_ends_with_its_time_to_live(store: ResultStore) -> None:
    """Results must not fill the store for ever; each kind of record has its own time."""
    short, pending, long = new_id(), new_id(), new_id()
    store.store([Write(short, record("SUCCESS"), 1), Write(long, record("SUCCESS"), 60)])
    store.mark_pending([pending], 1)
    assert None not in store.fetch([short, pending, long])

    wait_for(lambda: store.fetch([short, pending]) == [None, None], 10, "the end of both records")

    assert state(store, long) == "SUCCESS"


def test_after_its_time_an_id_is_free_again(store: ResultStore) -> None:
    """An ended record must not count as a terminal one, though it may not be deleted yet."""
    task_id = new_id()
    store.store([Write(task_id, record("SUCCESS", 7), 1)])
    wait_for(lambda: store.fetch([task_id]) == [None], 10, "the end of the record")

    assert store.store([write(task_id, "STARTED", 0)]) == [True]

    assert state(store, task_id) == "STARTED"


def test_forget_deletes_only_what_is_named(store: ResultStore) -> None:
    """A forgotten id is UNKNOWN, and free again."""
    gone, kept = new_id(), new_id()
    store.store([write(gone, "SUCCESS"), write(kept, "SUCCESS")])

    store.forget([gone, new_id()])

    assert [state(store, gone), state(store, kept)] == [None, "SUCCESS"]
    assert store.store([write(gone, "STARTED")]) == [True]


def test_a_watch_wakes_soon_after_the_end(store: ResultStore, results_url: str) -> None:
    """`get()` must not poll, and must not wait for a poll either."""
    task_id, probe = new_id(), new_id()
    woken, reading_done = threading.Event(), threading.Event()
    got: list[bytes] = []

    def note(data: bytes) -> None:
        got.append(data)
        woken.set()

    store.watch(task_id, note)
    store.store([write(probe, "SUCCESS")])
    # Once this one was found by reading, so was that nothing is there of the other.
    store.watch(probe, lambda data: reading_done.set())
    assert reading_done.wait(10)
    other = open_results(results_url)
    try:
        other.store([write(task_id, "STARTED")])
        began = time.monotonic()
        other.store([write(task_id, "SUCCESS")])
        assert woken.wait(10)
        took_s = time.monotonic() - began
    finally:
        other.close()

    assert got == [record("SUCCESS")]
    assert took_s < 0.9, "woken by reading again, not by the announcement"


def test_a_watch_of_a_finished_task_is_called_at_once(store: ResultStore) -> None:
    """The end may come before the watch."""
    task_id = new_id()
    store.store([write(task_id, "FAILURE")])
    woken = threading.Event()

    began = time.monotonic()
    store.watch(task_id, lambda data: woken.set())

    assert woken.wait(10)
    assert time.monotonic() - began < 0.9


def test_a_watch_is_called_once(store: ResultStore) -> None:
    """The announcement and the reading after the subscription may both find the record."""
    calls: Counter[str] = Counter()
    ids = [new_id() for _ in range(50)]
    for task_id in ids:
        store.watch(task_id, lambda data, task_id=task_id: calls.update([task_id]))
        store.store([write(task_id, "SUCCESS")])

    wait_for(lambda: len(calls) == 50, 10, "all watches")
    store.store([write(task_id, "SUCCESS") for task_id in ids])
    last = new_id()
    store.watch(last, lambda data: calls.update([last]))
    store.store([write(last, "SUCCESS")])
    wait_for(lambda: last in calls, 10, "one more round of wake-ups")

    assert set(calls.values()) == {1}


def test_two_watches_of_one_id_are_both_called(store: ResultStore) -> None:
    """Two threads may wait for the same task; one that gave up takes the other not along."""
    task_id = new_id()
    first, second, third = threading.Event(), threading.Event(), threading.Event()
    store.watch(task_id, lambda data: first.set())
    end_second = store.watch(task_id, lambda data: second.set())
    store.watch(task_id, lambda data: third.set())

    end_second()
    store.store([write(task_id, "SUCCESS")])

    assert first.wait(10)
    assert third.wait(10)
    assert not second.is_set()


def test_an_ended_watch_is_silent(store: ResultStore) -> None:
    """A caller whose timeout passed is gone; ending twice is no fault."""
    task_id, other = new_id(), new_id()
    called, marker = threading.Event(), threading.Event()
    end = store.watch(task_id, lambda data: called.set())

    end()
    end()
    store.watch(other, lambda data: marker.set())
    store.store([write(task_id, "SUCCESS"), write(other, "SUCCESS")])

    assert marker.wait(10)
    assert not called.is_set()


def test_a_running_state_wakes_nobody(store: ResultStore) -> None:
    """Only a final record ends a wait."""
    task_id, other = new_id(), new_id()
    called: list[bytes] = []
    marker = threading.Event()
    store.watch(task_id, called.append)
    store.watch(other, lambda data: marker.set())

    store.store([write(task_id, "STARTED"), write(task_id, "RETRY"), write(other, "SUCCESS")])

    assert marker.wait(10)
    assert called == []


def test_a_callback_that_raises_spoils_no_other(
    store: ResultStore, caplog: pytest.LogCaptureFixture
) -> None:
    """One waiter's fault must not end the thread that all wait on."""
    task_id, other = new_id(), new_id()
    marker = threading.Event()

    def fail(data: bytes) -> None:
        raise RuntimeError("boom")

    store.watch(task_id, fail)
    store.watch(other, lambda data: marker.set())
    store.store([write(task_id, "SUCCESS")])
    store.store([write(other, "SUCCESS")])

    assert marker.wait(10)


def test_thousands_of_watches_all_end(store: ResultStore) -> None:
    """`send_many` of thousands and waiting for all of them is ordinary use."""
    ids = [new_id() for _ in range(3000)]
    calls: Counter[str] = Counter()
    began = time.monotonic()
    for task_id in ids:
        store.watch(task_id, lambda data, task_id=task_id: calls.update([task_id]))

    for at in range(0, len(ids), 300):
        store.store([write(task_id, "SUCCESS") for task_id in ids[at : at + 300]])
    wait_for(lambda: len(calls) == len(ids), 30, "all watches")

    assert set(calls.values()) == {1}
    assert time.monotonic() - began < 20


def test_watching_goes_on_after_a_pause(store: ResultStore) -> None:
    """The listener may end when nobody waits; the next waiter needs it again."""
    for _ in range(2):
        task_id = new_id()
        woken = threading.Event()
        store.watch(task_id, lambda data, woken=woken: woken.set())
        store.store([write(task_id, "SUCCESS")])
        assert woken.wait(10)
        threading.Event().wait(2.5)


def test_an_unreadable_record_is_a_decode_error(store: ResultStore) -> None:
    """Another program may write to the same place; a caller gets a named error."""
    task_id = new_id()

    store.store([Write(task_id, b"S\0\0\0\0not msgpack", 60)])
    (data,) = store.fetch([task_id])

    assert data is not None
    with pytest.raises(DecodeError, match="not readable"):
        decode_record(data)


def test_ping_tells_a_time(store: ResultStore) -> None:
    """`taskq doctor` shows it."""
    assert 0 < store.ping() < 5


def test_close_may_be_called_twice(results_url: str) -> None:
    """An app's close and an exit handler may both do it, with or without use before."""
    unused = open_results(results_url)
    unused.close()
    unused.close()
    used = open_results(results_url)
    used.watch(new_id(), lambda data: None)
    used.ping()
    used.close()
    used.close()
