"""A second delivery of a task in hand waits for the first one's end."""

from taskq.brokers.base import Delivery
from taskq.envelope import Envelope
from taskq.message import Message
from taskq.worker.held import Held
from taskq.worker.twins import Twins


def held(tag: int, task_id: str = "a") -> Held:
    return Held(tag, Delivery(tag, "q", Message("t", task_id, b"")), Envelope(), None)


def test_one_at_a_time_and_in_order() -> None:
    twins, (first, second, third) = Twins(), [held(1), held(2), held(3)]

    assert twins.enter([first, second, held(4, "b")])[0] is first
    assert twins.enter([third]) == []
    twins.put([first])
    assert twins.settled(1) == [second]
    twins.put([second])
    assert twins.settled(1) == [third]
    twins.put([third])
    assert twins.settled(1) == []
    assert twins.enter([first]) == [first]


def test_an_id_is_free_only_when_its_ending_is_settled() -> None:
    """Admitted between end and record, the second would find nothing stored, and run."""
    twins, first, second = Twins(), held(1), held(2)
    twins.enter([first])
    twins.put([held(7, "x"), held(8, "y")])
    twins.put([first])

    assert twins.settled(2) == []
    assert twins.enter([second]) == []
    assert twins.settled(1) == [second]


def test_a_second_that_ends_by_itself_frees_nothing() -> None:
    """Given back at a stop, or sent on: the first still runs."""
    twins, first, second = Twins(), held(1), held(2)
    twins.enter([first, second])

    assert twins.impatient(60) == []
    assert twins.impatient(-1) == [second]
    twins.put([second])

    assert twins.settled(1) == []
    assert twins.enter([held(3)]) == []


def test_a_first_that_is_void_makes_room() -> None:
    """The broker took it back before it started."""
    twins, first, second = Twins(), held(1), held(2)
    twins.enter([first, second])

    assert twins.leave(first) == [second]
    assert twins.leave(second) == []
    assert twins.enter([held(3)]) != []


def test_nothing_is_kept_of_what_has_ended() -> None:
    """A worker runs for months."""
    twins = Twins()
    for number in range(100):
        batch = [held(number, str(number % 7)) for number in range(number, number + 3)]
        for one in twins.enter(batch):
            twins.put([one])
            for heir in twins.settled(1):
                twins.put([heir])
                twins.settled(1)

    assert not any(vars(twins)[name] for name in ("_first", "_waiting", "_ended"))
