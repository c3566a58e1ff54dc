"""Cancels in every results store: records replaced atomically, rules that reach every reader."""

import threading
import time

from results_records import new_id, record, write

from taskq import clock
from taskq.results import open_results
from taskq.results.base import MAX_ATTEMPT, MAX_NEWS, ResultStore, Write

pytest_plugins = ("results_fixtures",)

CANCELLED = record("CANCELLED", MAX_ATTEMPT)


def later_ms() -> int:
    return clock.now_ms() + 60_000


def test_only_what_has_not_ended_is_cancelled(store: ResultStore) -> None:
    """A terminal state is final, and an id never seen stays unknown."""
    pending, running, again, done, unknown = (new_id() for _ in range(5))
    store.store([write(running, "STARTED", 2), write(again, "RETRY", 3), write(done, "SUCCESS")])
    store.mark_pending([pending], 60)

    before = store.cancel([pending, running, again, done, unknown], CANCELLED, 60)

    assert before == ["PENDING", "STARTED", "RETRY", "SUCCESS", None]
    found = store.fetch([pending, running, again, done, unknown])
    assert found == [CANCELLED] * 3 + [record("SUCCESS"), None]


def test_a_cancel_is_final(store: ResultStore) -> None:
    """No attempt that still runs overwrites it, and a second cancel changes nothing."""
    task_id = new_id()
    store.store([write(task_id, "STARTED", 0)])
    store.cancel([task_id], CANCELLED, 60)

    taken = store.store([write(task_id, "SUCCESS", 0), write(task_id, "RETRY", 1)])

    assert taken == [False, False]
    assert store.cancel([task_id], record("CANCELLED"), 60) == ["CANCELLED"]
    assert store.fetch([task_id]) == [CANCELLED]


def test_a_cancel_wakes_who_waits(store: ResultStore) -> None:
    """`get()` of a cancelled task must not wait for its timeout."""
    task_id = new_id()
    store.mark_pending([task_id], 60)
    woken = threading.Event()
    got: list[bytes] = []

    def note(data: bytes) -> None:
        got.append(data)
        woken.set()

    store.watch(task_id, note)
    store.cancel([task_id], CANCELLED, 60)

    assert woken.wait(30)
    assert got == [CANCELLED]


def test_a_cancel_is_kept_as_long_as_the_record_it_replaces(store: ResultStore) -> None:
    """The record of a task that is delayed for weeks is kept for weeks; so must its cancel be."""
    task_id = new_id()
    store.store([Write(task_id, record("RETRY", 1), 3600)])

    store.cancel([task_id], CANCELLED, 1)

    deadline = time.monotonic() + 2.5
    while time.monotonic() < deadline:
        assert store.fetch([task_id]) == [CANCELLED]
        time.sleep(0.25)


def test_nothing_to_cancel_is_no_fault(store: ResultStore) -> None:
    """An empty batch must not reach the server as a malformed command."""
    assert store.cancel([], CANCELLED, 60) == []
    assert store.fetch_news([], 0) == ([], [])


def test_rules_are_read_with_the_records(store: ResultStore) -> None:
    """One round trip of a worker answers both questions."""
    task_id = new_id()
    store.store([write(task_id, "SUCCESS")])
    assert store.fetch_news([task_id, new_id()], 0) == ([record("SUCCESS"), None], [])

    store.add_rule(b"first", later_ms())
    store.add_rule(b"second", later_ms())

    records, news = store.fetch_news([new_id(), task_id], 0)
    assert records == [None, record("SUCCESS")]
    assert [rule for _, rule in news] == [b"first", b"second"]


def test_only_rules_after_a_number_are_read(store: ResultStore) -> None:
    """Years of cancels must not be read again with every batch."""
    for number in range(5):
        store.add_rule(str(number).encode(), later_ms())
    _, news = store.fetch_news([], 0)
    numbers = [number for number, _ in news]
    assert numbers == sorted(set(numbers))

    for known in range(5):
        _, rest = store.fetch_news([], numbers[known])
        assert rest == news[known + 1 :]


def test_numbers_grow_also_when_the_store_was_emptied(store: ResultStore) -> None:
    """A worker that knows number 7 must not miss the rules of a store that begins anew."""
    store.add_rule(b"old", later_ms())
    _, ((number, _),) = store.fetch_news([], 0)

    assert abs(number - clock.now_ms() * 1000) < 300_000_000


def test_another_process_reads_the_rules(store: ResultStore, results_url: str) -> None:
    """The one who cancels and the worker are different processes."""
    other = open_results(results_url)
    try:
        other.add_rule(b"rule", later_ms())
    finally:
        other.close()

    assert [rule for _, rule in store.fetch_news([], 0)[1]] == [b"rule"]


def test_rules_that_have_ended_make_room(store: ResultStore) -> None:
    """Each new rule takes some old ones away."""
    for _ in range(3):
        store.add_rule(b"over", clock.now_ms() - 1)

    store.add_rule(b"new", later_ms())

    assert [rule for _, rule in store.fetch_news([], 0)[1]] == [b"new"]


def test_many_rules_are_read_in_parts(store: ResultStore) -> None:
    """A worker that starts after a thousand cancels must not get one huge answer."""
    threads = [threading.Thread(target=_add, args=(store, part)) for part in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()

    last, found = 0, []
    while news := store.fetch_news([], last)[1]:
        assert len(news) <= MAX_NEWS
        found += [rule for _, rule in news]
        last = news[-1][0]
    assert sorted(found) == sorted(f"{part}-{n}".encode() for part in range(4) for n in range(25))


def _add(store: ResultStore, part: int) -> None:
    for number in range(25):
        store.add_rule(f"{part}-{number}".encode(), later_ms())
