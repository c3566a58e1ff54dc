"""Counts of a quorum queue whose leader does not answer for a moment, as on a busy disk."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from broker_helpers import depth, letters, ready, send, wait_ready
from embedded_helpers import outgoing
from servers import RabbitServer

from taskq.brokers.base import DEAD_QUEUE, Broker
from taskq.dead import DeadLetters

_SUSPEND = """
{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"VHOST">>, queue, <<"QUEUE">>)),
{Name, _} = amqqueue:get_pid(Q),
Asks = self(),
spawn(fun() ->
    true = erlang:suspend_process(whereis(Name)),
    Asks ! held,
    timer:sleep(700)
end),
receive held -> held end
"""

Stall = Callable[[str], None]


@pytest.fixture
def stall(shared_rabbitmq: RabbitServer, rabbitmq_url: str) -> Stall:
    """Suspends the leader of a queue for 0.7 s: RabbitMQ itself waits 0.25 s for it."""

    def suspend(queue: str) -> None:
        vhost = rabbitmq_url.rpartition("/")[2]
        text = _SUSPEND.replace("VHOST", vhost).replace("QUEUE", queue)
        assert shared_rabbitmq.eval(text) == "held"

    return suspend


def test_a_leader_that_does_not_answer_is_no_empty_queue(
    broker: Broker, channel: Any, stall: Stall
) -> None:
    """`--burst` would end before its work, and a queue full of tasks would be shown as empty."""
    send(broker, *[outgoing() for _ in range(7)])
    wait_ready(broker, 7)

    stall("q")
    began_s = time.monotonic()
    plain = channel.queue_declare("q", passive=True).method
    took_s = time.monotonic() - began_s
    # Otherwise this test shows nothing: the broker itself told of an empty queue.
    assert plain.message_count == 0, took_s
    stall("q")

    assert ready(broker) == 7
    assert depth(broker).ready == 7


def test_dead_letters_are_seen_although_their_queue_is_slow(broker: Broker, stall: Stall) -> None:
    """An operator who sees no letters believes that all is well."""
    broker.declare(["q"])
    sent = letters(broker, 12)
    wait_ready(broker, 12, DEAD_QUEUE)

    stall("taskq.dead")

    assert [one.id for one in DeadLetters(broker).list()] == [one.message.id for one in sent]
