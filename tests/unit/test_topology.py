"""Names, arguments and the grid of delays on RabbitMQ."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.brokers.topology import GRID, Topology, bucket_ms, readable_mismatch

YEAR_MS = 366 * 86_400_000


def test_the_grid_has_136_values_from_a_tenth_of_a_second_to_a_year() -> None:
    """The values are names of queues: another grid would strand what waits in the old ones."""
    assert len(GRID) == 136
    assert GRID[:12] == (100, 200, 300, 400, 500, 600, 700, 800, 900, 1000, 1100, 1200)
    assert list(GRID) == sorted(set(GRID))
    assert YEAR_MS * 0.8 < GRID[-1] <= YEAR_MS
    assert all(value % 100 == 0 for value in GRID)


@given(st.integers(0, 2 * YEAR_MS))
def test_a_bucket_is_never_longer_than_the_delay(delay_ms: int) -> None:
    """Early can be waited for by the worker; late cannot be made good."""
    bucket = bucket_ms(delay_ms)

    assert bucket <= delay_ms
    assert (bucket == 0) == (delay_ms < 100)
    if 800 <= delay_ms < 3_600_000:
        assert bucket > delay_ms * 0.88


@given(st.integers(100, YEAR_MS))
def test_few_stops_reach_any_delay(delay_ms: int) -> None:
    """Each stop needs a live worker for a moment; eleven bound a delay of a year."""
    stops = 0
    while delay_ms >= 1000:
        delay_ms -= bucket_ms(delay_ms)
        stops += 1

    assert stops <= 11


def test_the_objects_are_those_that_were_measured() -> None:
    """Each argument prevents a loss of the failure matrix; none may go by accident."""
    topology = Topology()

    assert topology.work_queue("mail").arguments == {
        "x-queue-type": "quorum",
        "x-delivery-limit": 1000,
        "x-dead-letter-exchange": "taskq.dead",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    assert (topology.work_queue("mail").exchange, topology.work_queue("mail").key) == (
        "taskq.due",
        "mail",
    )
    assert topology.delay_queue(300).arguments == {
        "x-queue-type": "quorum",
        "x-message-ttl": 300,
        "x-dead-letter-exchange": "taskq.due",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    assert topology.dead_queue().arguments == {
        "x-queue-type": "quorum",
        "x-message-ttl": 1_209_600_000,
        "x-delivery-limit": 1_000_000,
    }
    assert topology.due_exchange().arguments == {"alternate-exchange": "taskq.dead"}
    assert topology.dead_exchange().kind == topology.delay_exchange(300).kind == "fanout"
    assert topology.due_exchange().kind == "direct"
    assert topology.delay(300) == "taskq.delay.v1.300"


def test_classic_work_queues_have_no_quorum_arguments() -> None:
    """RabbitMQ refuses a classic queue with a delivery limit."""
    topology = Topology(queue_type="classic")

    assert topology.work_queue("mail").arguments == {
        "x-queue-type": "classic",
        "x-dead-letter-exchange": "taskq.dead",
    }
    assert topology.delay_queue(300).arguments["x-queue-type"] == "quorum"


def test_queues_in_celerys_layout_have_no_arguments() -> None:
    """A Celery worker stops with 406 at a queue that has any."""
    assert Topology(layout="celery").work_queue("celery").arguments == {}


def test_a_prefix_is_on_every_name() -> None:
    """Two environments on one vhost share nothing."""
    topology = Topology("staging.")
    queues = [topology.work_queue("mail"), topology.delay_queue(100), topology.dead_queue()]
    exchanges = [
        topology.due_exchange(),
        topology.dead_exchange(),
        topology.delay_exchange(100),
        topology.control_exchange(),
    ]

    names = [item.name for item in [*queues, *exchanges]]
    names += [queue.exchange for queue in queues]
    names += [
        str(value)
        for item in [*queues, *exchanges]
        for key, value in item.arguments.items()
        if key in ("x-dead-letter-exchange", "alternate-exchange")
    ]

    assert all(name.startswith("staging.") for name in names)
    assert topology.off_broker("staging.mail") == "mail"


@pytest.mark.parametrize(
    ("reply", "line"),
    [
        (
            "PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'taskq.dead' in "
            "vhost '/': received the value '1000' of type 'signedint' but current is the value "
            "'5' of type 'signedint'",
            "queue taskq.dead: x-message-ttl is 5 on the broker, taskq declares 1000",
        ),
        (
            "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'taskq.due' in vhost 'v': "
            "received 'direct' but current is 'fanout'",
            "exchange taskq.due: type is fanout on the broker, taskq declares direct",
        ),
        (
            "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q' in vhost '/': "
            "received the value 'quorum' of type 'longstr' but current is none",
            "queue q: x-queue-type is none on the broker, taskq declares quorum",
        ),
        ("something else", "something else"),
    ],
)
def test_a_mismatch_is_readable(reply: str, line: str) -> None:
    """An operator reads it at three in the morning."""
    assert readable_mismatch(reply) == line
