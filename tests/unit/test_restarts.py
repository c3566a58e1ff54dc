"""How often a redelivered message may start: the count, its verdicts, and who holds the claim."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from taskq import outcome
from taskq.brokers.base import Delivery
from taskq.codecs import dumps
from taskq.config import app_settings
from taskq.envelope import Envelope
from taskq.message import Message
from taskq.results import open_results
from taskq.results.base import Record, ResultStore, Write, encode_record, starts_of
from taskq.worker.admission import Admission
from taskq.worker.endings import Case, Ending
from taskq.worker.held import Held
from taskq.worker.manifest import Manifest, TaskInfo
from taskq.worker.restarts import Restarts, Verdict, judge

_names = itertools.count()
BODY = dumps([[], {}, None])


def case(max_retries: int, retries: int = 0) -> Case:
    info = TaskInfo("t", "q", max_retries=max_retries)
    return Case(Message("t", "id", BODY), Envelope(retries=retries), info, "q", "w", True)


@pytest.mark.parametrize(
    ("max_retries", "retries", "counts_that_start"),
    [(3, 0, 3), (3, 2, 1), (1, 0, 1), (0, 0, 1)],
)
def test_starts_end_with_the_attempts(
    max_retries: int, retries: int, counts_that_start: int
) -> None:
    """The first delivery's start is taken for granted; without retries it needs to be certain."""
    refused = [
        judge(case(max_retries, retries), count, False).ending is not None for count in range(1, 6)
    ]

    assert refused == [False] * counts_that_start + [True] * (5 - counts_that_start)


def test_a_start_that_was_recorded_is_certain() -> None:
    """Without retries it is the only one."""
    verdict = judge(case(0), 1, True)

    assert verdict.ending is not None
    assert verdict.ending.code == outcome.FAILURE
    assert verdict.ending.follow[0].message.headers["taskq-dead-attempts"] == 1


def test_only_certain_deaths_are_charged_to_a_run_that_goes_on() -> None:
    """What a worker held without starting it costs nothing."""
    assert [judge(case(9), count, False).lost for count in (1, 2, 3)] == [0, 1, 2]
    assert [judge(case(9), count, True).lost for count in (1, 2, 3)] == [1, 1, 2]


def test_what_was_given_back_is_charged_with_nothing() -> None:
    """A count of zero: whoever started it gave it back, and took the start back."""
    assert judge(case(0), 0, True) == Verdict(0, 0, None)
    assert judge(case(0), -1, True) == Verdict(0, 0, None)


class Done:
    """A future that is done."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def add_done_callback(self, function: Callable[[Any], None]) -> None:
        function(self)

    def cancelled(self) -> bool:
        return False

    def exception(self) -> None:
        return None

    def result(self) -> Any:
        return self._value


@pytest.fixture
def store() -> Iterator[ResultStore]:
    made = open_results(f"memory://restarts-{next(_names)}")
    yield made
    made.close()


class Counting:
    """Restarts on a real store whose thread is this one."""

    def __init__(self, store: ResultStore) -> None:
        self.told: list[tuple[Held, Ending | None]] = []
        settings = app_settings({}, environ={})
        tasks = {"t": TaskInfo("t", "q", max_retries=3)}
        self.admission = Admission(Manifest("app", settings, tasks), "w", True)
        self.restarts = Restarts(
            store,
            self.admission,
            lambda function: Done(function()),  # type: ignore[arg-type,return-value]
            lambda held, ending: self.told.append((held, ending)),
        )

    def held(self, child: object) -> Held:
        held, _ = self.admission.open(Delivery(1, "q", Message("t", "id", BODY), True))
        held.child = child  # type: ignore[assignment]
        return held

    def count(self, batch: Sequence[Held]) -> list[Ending | None]:
        self.told.clear()
        self.restarts.count(batch)
        return [ending for _, ending in self.told]


def test_the_claim_is_stored_before_the_start(store: ResultStore) -> None:
    """Whoever ran it before, and comes back from the dead, finds a later start there."""
    counting = Counting(store)
    held = counting.held("a place")

    assert counting.count([held]) == [None]

    (data,) = store.fetch(["id"])
    assert data is not None
    assert (data[:1], starts_of(data)) == (b"B", 1)
    late = encode_record(Record(outcome.SUCCESS, 0, starts=0))
    assert store.store([Write("id", late, 60)]) == [False]
    assert held.item()[3][3] == {"taskq-starts": 1, "taskq-lost": 0}


def test_a_task_that_finished_meanwhile_is_not_started(store: ResultStore) -> None:
    """Between admission and start the run that was believed dead may have ended."""
    store.store([Write("id", encode_record(Record(outcome.SUCCESS)), 60)])
    counting = Counting(store)

    (ending,) = counting.count([counting.held("a place")])

    assert ending is not None
    assert ending.code == "DUPLICATE"


def test_the_last_claim_holds(store: ResultStore) -> None:
    """A count that ran out must not leave a task whose record outranks all its runs."""
    store.store([Write("id", encode_record(Record(outcome.STARTED, starts=7)), 60)])
    counting = Counting(store)
    held = counting.held("a place")

    assert counting.count([held]) == [None]

    assert held.envelope.starts == 8
    assert starts_of(store.fetch(["id"])[0] or b"") == 8


def test_a_start_whose_executor_died_meanwhile_is_taken_back(store: ResultStore) -> None:
    """It went back to the others unstarted, and will be counted when it does start."""
    counting = Counting(store)
    held = counting.held("a place")
    original = counting.restarts._claim

    def claim(batch: Sequence[Held]) -> list[Verdict]:
        verdicts = original(batch)
        held.child = None
        return verdicts

    counting.restarts._claim = claim  # type: ignore[method-assign]

    assert counting.count([held]) == []
    assert not held.counted
    assert store.count_starts(["id:0"], 60) == [1]
