"""A worker that dies between any two steps of the settlement loses nothing and repeats no end."""

from collections import Counter

import pytest
from fleet import Fleet, until
from supervisor import APP

from taskq import Signature, chain
from taskq.results.base import is_terminal
from taskq.worker.failpoints import POINTS

_COUNT = 12


@pytest.mark.parametrize("point", POINTS)
def test_a_death_at_any_point_of_the_settlement_loses_nothing(
    crash_fleet: Fleet, point: str
) -> None:
    """What was stored is not run again, and what follows from it is sent all the same."""
    fleet = crash_fleet
    with fleet.app.batch():
        plain = [fleet.send("step", 0.001) for _ in range(_COUNT)]
        dead = [fleet.send("fail_always") for _ in range(3)]
        again = [fleet.send("fail_first") for _ in range(3)]
    steps = [Signature("step", (0.001, 0.001), {}, {}), Signature("step", (), {}, {})]
    chained = fleet.app.send([chain(*steps) for _ in range(3)])
    handles = [*plain, *dead, *again, *chained]
    ids = [handle.id for handle in handles]

    doomed = fleet.start(app=APP, slots=2, ready=False, env={"TASKQ_FAILPOINT": f"{point}:kill:3"})
    assert doomed.wait(60) == -9, doomed.log()
    store = fleet.app.results
    assert store is not None
    finished = {
        task_id
        for task_id, data in zip(ids, store.fetch(ids), strict=True)
        if data is not None and is_terminal(data)
    }
    ran_before = Counter(run.id for run in fleet.runs() if run.id in finished)
    fleet.start(app=APP, slots=2)

    until(lambda: all(handle.ready() for handle in handles), "the end of every task", 60)
    assert [handle.state for handle in plain + again + chained] == ["SUCCESS"] * (_COUNT + 6)
    assert [handle.state for handle in dead] == ["FAILURE"] * 3
    until(
        lambda: {letter.message.id for letter in fleet.letters()} == {h.id for h in dead},
        "a letter of each failure",
        60,
    )
    ran_after = Counter(run.id for run in fleet.runs() if run.id in finished)
    assert ran_after == ran_before
    until(lambda: fleet.ready() == 0, "the empty queue", 60)
