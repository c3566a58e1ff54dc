"""The shared memory that says what an executor runs."""

import os
import time

from forks import in_child

from taskq.worker.slots import Slots, open_memory


def test_the_hub_sees_what_a_forked_executor_runs() -> None:
    """It is read after the executor's death, when nobody can be asked any more."""
    memory = open_memory(3)
    ours = Slots(memory, 3)
    before = time.monotonic_ns()

    def run() -> None:
        theirs = Slots(memory, 3)
        theirs.start(0, 7)
        theirs.start(2, 2**63)
        theirs.start(1, 9)
        theirs.clear(1)

    in_child(run)
    os.close(memory)
    running = dict(ours.running())
    assert set(running) == {7, 2**63}
    assert all(before <= start <= time.monotonic_ns() for start in running.values())
    ours.close()


def test_a_slot_that_was_never_used_is_free() -> None:
    memory = open_memory(2)
    slots = Slots(memory, 2)
    os.close(memory)

    assert slots.running() == []
    slots.close()
