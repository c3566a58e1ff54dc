"""What starts next: by priority, then first in, first out, with or without aging."""

import pytest

from taskq.body import encode_call
from taskq.brokers.base import Delivery
from taskq.brokers.shapes import check_queue_name, parse_shard
from taskq.brokers.topology import Topology
from taskq.envelope import Envelope
from taskq.errors import ConfigError
from taskq.worker.held import Held
from taskq.worker.ready import Ready


def held(priority: int, tag: int = 0, since_s: float = 0.0) -> Held:
    message = encode_call("t", f"id-{tag}", (), {}, priority=priority)
    made = Held(tag, Delivery(None, "q", message), Envelope(), None)
    made.since_s = since_s
    return made


def filled(*priorities: int, aging: int = 0) -> Ready:
    ready = Ready(aging)
    for tag, priority in enumerate(priorities):
        ready.append(held(priority, tag, float(tag)))
    return ready


def drained(ready: Ready) -> list[tuple[int, int]]:
    """Take everything out: (priority, tag) in order."""
    found = []
    while ready:
        one = ready.pop()
        found.append((one.delivery.message.priority, one.tag))
    return found


def test_higher_starts_first_and_equal_ones_in_order() -> None:
    """9 to 0, and nobody is overtaken by a later one of the same priority."""
    ready = filled(0, 5, 9, 0, 5, 9, 1)

    assert len(ready) == 7
    assert [one.tag for one in ready] == [2, 5, 1, 4, 6, 0, 3]
    assert drained(ready) == [(9, 2), (9, 5), (5, 1), (5, 4), (1, 6), (0, 0), (0, 3)]
    with pytest.raises(IndexError):
        ready.pop()


def test_what_comes_back_goes_to_the_front_of_its_own_priority() -> None:
    """An executor that gives work back must not turn it into urgent work."""
    ready = filled(0, 9)
    ready.extendleft(reversed([held(0, 10), held(9, 11), held(0, 12)]))

    assert drained(ready) == [(9, 11), (9, 1), (0, 10), (0, 12), (0, 0)]


def test_a_priority_that_is_none_stops_nothing() -> None:
    """AMQP carries 255 of them, and a file can be edited by hand."""
    ready = filled(0, 200, -3, 9)

    assert drained(ready) == [(200, 1), (9, 3), (0, 0), (-3, 2)]


def test_the_longest_wait_is_that_of_the_oldest_of_any_priority() -> None:
    """What waits behind long tasks is given back to other workers, urgent or not."""
    ready = filled(0, 9, 5)
    assert ready.oldest_s() == 0.0
    assert {one.tag for one in ready.clear()} == {0, 1, 2}
    assert len(ready) == 0
    with pytest.raises(IndexError):
        ready.oldest_s()


def test_without_aging_a_flood_comes_first_to_its_end() -> None:
    """Strict order is the default."""
    assert [p for p, _ in drained(filled(0, 3, *[9] * 50))][-2:] == [3, 0]


def test_aging_gives_one_start_in_so_many_to_each_lower_priority_in_turn() -> None:
    """Nothing waits for ever: with a flood of 9s, priority 0 starts within aging times levels."""
    ready = Ready(aging=4)
    for tag in range(5):
        ready.append(held(0, tag))
        ready.append(held(3, tag))
    started = []
    for number in range(40):
        ready.append(held(9, 100 + number))
        ready.append(held(9, 200 + number))
        started.append(ready.pop().delivery.message.priority)

    assert started[:4] == [9, 9, 9, 3]
    assert [p for p in started if p != 9] == [3, 0] * 5
    assert all(p == 9 for n, p in enumerate(started) if n % 4 != 3)


def test_urgent_messages_of_a_quorum_queue_have_a_queue_beside_it() -> None:
    """RabbitMQ's quorum queues know no priorities before 4.0, and two from then on."""
    quorum = Topology()

    assert [quorum.part_for("mail", p) for p in (0, 4, 5, 9, 255)] == [
        "mail",
        "mail",
        *["mail.high"] * 3,
    ]
    assert Topology(queue_type="classic").part_for("mail", 9) == "mail"
    assert Topology(layout="celery").part_for("mail", 9) == "mail"
    assert quorum.part_for("orders.shard.8.0", 9) == "orders.shard.8.0"


@pytest.mark.parametrize("name", ["mail.high", "a.b.high", ".high"])
def test_nobody_names_a_queue_as_a_high_part(name: str) -> None:
    """Its messages would be taken for urgent ones of another queue."""
    with pytest.raises(ConfigError, match="priority=5"):
        check_queue_name(name)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("orders.shard.8.7", ("orders", 8, 7)),
        ("a.shard.2.0.shard.4.1", ("a.shard.2.0", 4, 1)),
        ("orders.shard.8.8", None),
        ("orders.shard.08.1", None),
        ("orders.shard.8", None),
        (".shard.8.1", None),
    ],
)
def test_shards_are_known_by_their_names(name: str, found: tuple[str, int, int] | None) -> None:
    """The count is part of the name, so two layouts never share a queue."""
    assert parse_shard(name) == found
