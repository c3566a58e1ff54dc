"""How much a worker holds: pure arithmetic of windows and prefetch."""

import pytest

from taskq.worker.window import Pace, worth_resizing


def paced(run_s: float, slots: int = 1) -> Pace:
    pace = Pace(slots)
    pace.measured(int(run_s * 1e6), 1)
    return pace


def test_before_the_first_measurement_nothing_is_hoarded() -> None:
    """The first task may run for an hour; what came with it must not wait behind it."""
    pace = Pace(4)

    assert pace.mean_s == -1
    assert pace.window(4) == 4
    assert pace.prefetch() == 5


@pytest.mark.parametrize("run_s", [0.1, 1.0, 3600.0])
def test_long_tasks_hold_nothing_ahead(run_s: float) -> None:
    """A task that could start elsewhere now must not wait here."""
    pace = paced(run_s, 2)

    assert pace.window(2) == 2
    assert pace.prefetch() <= 3


def test_short_tasks_fill_a_deep_window_that_has_a_bottom() -> None:
    """Two thousand in hand is plenty; a hundred thousand would be the whole queue."""
    pace = paced(0.0)

    assert pace.window(1) == 1 + 512
    assert pace.prefetch() == 1 + 2000


def test_shorter_tasks_never_get_a_smaller_window() -> None:
    windows = [paced(run_s).window(1) for run_s in (0.00001, 0.0001, 0.001, 0.01, 0.1)]
    prefetches = [paced(run_s).prefetch() for run_s in (0.00001, 0.0001, 0.001, 0.01, 0.1)]

    assert windows == sorted(windows, reverse=True)
    assert prefetches == sorted(prefetches, reverse=True)


def test_tasks_that_get_long_are_believed_at_once() -> None:
    """Smoothing would hoard for many batches more, each of them minutes long."""
    pace = paced(0.0001)

    pace.measured(2_000_000, 1)

    assert pace.mean_s == pytest.approx(2.0)
    assert pace.window(1) == 1


def test_a_hiccup_of_the_machine_does_not_empty_the_pipe() -> None:
    """One 5 ms pause among 50 us tasks is the scheduler's doing."""
    pace = paced(0.00005)

    pace.measured(5_000, 1)

    assert pace.window(1) > 5


def test_a_fixed_prefetch_stays() -> None:
    pace = Pace(4, 7)
    pace.measured(1, 1)

    assert pace.prefetch() == 7


def test_an_empty_batch_says_nothing() -> None:
    pace = Pace(1)

    pace.measured(0, 0)

    assert pace.mean_s == -1


def test_small_changes_are_not_worth_a_new_consumer() -> None:
    """Each change of the prefetch is a round trip to the broker."""
    assert not worth_resizing(10, 15)
    assert worth_resizing(10, 20)
    assert worth_resizing(10, 5)


def test_one_interrupted_run_among_many_says_nothing_of_tasks() -> None:
    """Counted in, 10 ms of another process's turn would swap consumers and return messages."""
    pace = paced(0.00005)

    pace.ran([50] * 30 + [10_000])

    assert pace.mean_s == pytest.approx(0.00005)
    assert pace.prefetch() > 900


def test_many_runs_that_are_long_are_believed() -> None:
    pace = paced(0.00005)

    pace.ran([30_000] * 20)

    assert pace.is_long
    assert pace.prefetch() <= 3
