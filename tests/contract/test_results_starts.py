"""Counted starts, and the rank that they give to a run's records; see `ResultStore`."""

import threading
import time

from results_records import new_id, write

from taskq.results.base import Record, ResultStore, Write, encode_record

pytest_plugins = ("results_fixtures",)


def test_starts_are_counted_by_id(store: ResultStore) -> None:
    """Redelivered tasks are bounded by this count; a neighbour's must not be charged."""
    first, second = new_id(), new_id()

    assert store.count_starts([first], 60) == [1]
    assert store.count_starts([second, first], 60) == [1, 2]
    assert store.count_starts([first, second], 60) == [3, 2]


def test_starts_that_came_to_nothing_are_taken_back(store: ResultStore) -> None:
    """A task that a stopping worker gave back was not lost, and costs nothing."""
    counted, fresh = new_id(), new_id()
    store.count_starts([counted], 60)

    assert store.count_starts([counted, fresh], 60, -1) == [0, -1]
    assert store.count_starts([counted, fresh], 60) == [1, 0]


def test_starts_are_forgotten_after_their_time(store: ResultStore) -> None:
    """Counters must not stay for ever."""
    task_id = new_id()
    store.count_starts([task_id], 1)

    deadline = time.monotonic() + 10
    # Each look counts and renews the time, so the looks lie further apart than it lasts.
    while store.count_starts([task_id], 1) != [1]:
        assert time.monotonic() < deadline
        threading.Event().wait(1.2)


def test_an_earlier_start_of_an_attempt_never_replaces_a_later_one(store: ResultStore) -> None:
    """A run that was believed dead, and whose message another worker started, comes too late."""
    task_id = new_id()
    late, taken_over, own = (
        Write(task_id, encode_record(Record(state, 1, starts=starts)), 60)
        for state, starts in (("SUCCESS", 1), ("STARTED", 2), ("SUCCESS", 2))
    )

    assert store.store([taken_over, late]) == [True, False]
    assert store.store([late]) == [False]
    assert store.store([own]) == [True]
    assert store.store([write(task_id, "FAILURE", 2)]) == [False]
