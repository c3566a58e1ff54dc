"""Chains and links, run by workers."""

import pytest
from fleet import POOLS, Fleet, until

from taskq import Signature, TaskFailed, chain, outcome


def s(name: str, *args: object, **options: object) -> Signature[object]:
    return Signature(name, args, {}, options)


def si(name: str, *args: object, **options: object) -> Signature[object]:
    return Signature(name, args, {}, options, immutable=True)


@pytest.mark.parametrize("pool", POOLS)
def test_each_step_gets_the_value_of_the_one_before(fleet: Fleet, pool: str) -> None:
    """((1 + 2) + 10) + 100, by three tasks."""
    fleet.start(pool=pool)

    (last,) = fleet.app.send([chain(s("add", 1, 2), s("add", 10), s("add", 100))])

    assert last.get(timeout=20) == 113
    assert last.parent is not None
    assert last.parent.get(timeout=1) == 13
    assert last.parent.parent is not None
    assert last.parent.parent.get(timeout=1) == 3


def test_an_immutable_step_gets_no_value(fleet: Fleet) -> None:
    """`si` is for steps that only come after."""
    fleet.start()

    (last,) = fleet.app.send([chain(s("add", 1, 2), si("add", 5, 5), s("add", 1))])

    assert last.get(timeout=20) == 11


def test_a_step_knows_its_place(fleet: Fleet) -> None:
    """Root and parent are what traces and audits hang on to."""
    fleet.start()

    (last,) = fleet.app.send(
        [chain(s("add", 1, 2), s("request", queue="elsewhere", priority=3))],
    )

    seen = last.get(timeout=20)
    assert last.parent is not None
    assert seen["args"] == [3]
    assert seen["id"] == last.id
    assert seen["root_id"] == seen["parent_id"] == last.parent.id
    assert (seen["queue"], seen["priority"]) == ("elsewhere", 3)


def test_a_long_chain_runs_to_its_end(fleet: Fleet) -> None:
    """Fifty steps, each carried in the message of the one before."""
    fleet.start()

    (last,) = fleet.app.send([chain(s("add", 0, 1), *[s("add", 1) for _ in range(49)])])

    assert last.get(timeout=30) == 50


def test_a_failure_ends_every_later_step(fleet: Fleet) -> None:
    """Whoever waits for the last step hears what went wrong in the first."""
    fleet.start()

    (last,) = fleet.app.send([chain(s("not_retried"), s("nap"), s("nap"))])

    with pytest.raises(ValueError, match="never again"):
        last.get(timeout=20)
    assert last.parent is not None
    assert last.parent.state == outcome.FAILURE
    assert len(fleet.runs()) == 1
    assert len(fleet.until_letters(1)) == 1


def test_a_step_that_is_retried_holds_the_chain_together(fleet: Fleet) -> None:
    """The retried message still carries what follows it."""
    fleet.start()

    (last,) = fleet.app.send([chain(s("flaky", 2), s("add", 40))])

    assert last.get(timeout=20) == 42


def test_a_step_survives_the_death_of_an_executor(fleet: Fleet) -> None:
    """A killed first step is retried by the hub, chain and all."""
    fleet.start()

    (last,) = fleet.app.send([chain(s("die", "kill", 1), s("add", "!"))])

    assert last.get(timeout=20) == "alive!"


def test_a_step_dead_by_executor_ends_the_chain(fleet: Fleet) -> None:
    """The hub, which never decodes bodies otherwise, must find the later steps' ids."""
    fleet.start()

    (last,) = fleet.app.send([chain(s("die"), s("nap"))])

    with pytest.raises(TaskFailed) as caught:
        last.get(timeout=20)
    assert caught.value.remote_type == "WorkerLost"


def test_links_run_after_success_and_error_links_after_failure(fleet: Fleet) -> None:
    """A link gets the value, an error link the id of the task that failed."""
    fleet.start()

    good = fleet.send(
        "add", 1, 2, link=s("tell", "-value"), link_error=si("tell", "never, it went well")
    )
    bad = fleet.send("not_retried", link=si("tell", "never, it failed"), link_error=s("tell"))

    good.get(timeout=20)
    with pytest.raises(ValueError, match="never again"):
        bad.get(timeout=20)
    told = until(lambda: sorted(words) if len(words := _words(fleet)) == 2 else None, "both links")
    assert told == sorted(["3-value", bad.id])


def _words(fleet: Fleet) -> list[str]:
    return [run.word for run in fleet.runs() if run.word]


def test_error_links_wait_for_the_final_failure(fleet: Fleet) -> None:
    """An attempt that is retried has not failed yet."""
    fleet.start()

    handle = fleet.send("flaky", 2, link_error=si("tell", "too soon"))

    handle.get(timeout=20)
    fleet.send("add", 1, 1).get(timeout=20)
    assert not _words(fleet)
