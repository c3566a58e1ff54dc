"""What every broker promises, shown on each of them: RabbitMQ, SQLite and memory."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from embedded_helpers import Hub, consuming, outgoing
from forks import in_child
from processes import wait_for

from taskq import clock, resend
from taskq.brokers import open_broker
from taskq.brokers.base import DEAD_QUEUE, Broker, BrokerOptions, Delivery, Outgoing, QueueDepth
from taskq.errors import ConfigError, PublishError, RemoteError
from taskq.message import Message

TESTS = Path(__file__).parents[1]
BrokerFactory = Callable[..., Broker]


def send(broker: Broker, *batch: Outgoing) -> None:
    """Send and check that all is durable."""
    errors = broker.publish(batch, 10)
    assert errors == [None] * len(batch)


def ready(broker: Broker, queue: str = "q") -> int:
    """Return what is ready in a queue; 0 for one that does not exist."""
    depth = broker.depths([queue])[queue]
    return depth.ready if depth else 0


def depth(broker: Broker, queue: str = "q") -> QueueDepth:
    """Return the depth of a queue that exists."""
    found = broker.depths([queue])[queue]
    assert found is not None
    return found


def wait_ready(broker: Broker, count: int, queue: str = "q") -> None:
    wait_for(lambda: ready(broker, queue) == count, 15, f"{count} ready messages in {queue}")


def ids(deliveries: list[Delivery]) -> list[str]:
    return [delivery.message.id for delivery in deliveries]


def settle(hub: Hub, *deliveries: Delivery) -> None:
    hub.consumer.settle([delivery.receipt for delivery in deliveries])


def give_back(hub: Hub, *deliveries: Delivery) -> None:
    hub.consumer.settle((), [delivery.receipt for delivery in deliveries])


def letters(broker: Broker, count: int) -> list[Outgoing]:
    """Send so many dead letters and return them."""
    sent = []
    for one in [outgoing("q") for _ in range(count)]:
        error = RemoteError("builtins", "ValueError", "no")
        message = resend.dead(one.message, "failed", "q", error=error, attempts=2, worker="w")
        sent.append(Outgoing("q", message, dead=True))
    send(broker, *sent)
    return sent


def test_a_message_arrives_as_it_was_sent(broker: Broker) -> None:
    """Everything that steers a task must survive the way."""
    headers = {
        "retries": 2,
        "taskq-due": 1_700_000_000_000,
        "timelimit": [30, None],
        "custom": {"text": "é", "flag": True, "data": b"\x00\xff", "none": None, "big": 2**62},
    }
    message = Message(
        "t.run", "the-id", b"\x00body\xff", headers, "application/json", "utf-8", 4, "other", "back"
    )
    send(broker, Outgoing("q", message))

    with consuming(broker, ["q"]) as hub:
        (delivery,) = hub.wait_for(1)

    assert delivery.message == message
    assert delivery.queue == "q"
    assert delivery.error is None
    assert not delivery.redelivered
    assert delivery.deliveries == 0


def test_priority_is_zero_by_default_and_kept(broker: Broker) -> None:
    """Celery sends 0 always; a missing one means the same."""
    send(broker, outgoing(), outgoing(priority=9))

    with consuming(broker, ["q"]) as hub:
        got = hub.wait_for(2)

    assert sorted(delivery.message.priority for delivery in got) == [0, 9]


def test_each_message_goes_to_one_of_two_consumers(broker: Broker) -> None:
    """Two workers share a queue; neither runs what the other has."""
    sent = [outgoing() for _ in range(40)]

    with consuming(broker, ["q"], 20) as one, consuming(broker, ["q"], 20) as other:
        wait_for(lambda: bool(one.connections and other.connections), 15, "both consumers")
        send(broker, *sent)
        wait_for(lambda: len(one.got) + len(other.got) >= 40, 15, "40 deliveries")
        settle(one, *one.got)
        settle(other, *other.got)

        assert sorted(ids(one.got) + ids(other.got)) == sorted(o.message.id for o in sent)

    assert ready(broker) == 0


def test_messages_of_one_queue_keep_their_order(broker: Broker) -> None:
    """Equal priority, nothing returned: first in, first out."""
    sent = [outgoing() for _ in range(300)]
    send(broker, *sent)

    with consuming(broker, ["q"], 1000) as hub:
        hub.wait_for(300)

        assert ids(hub.got) == [one.message.id for one in sent]


def test_an_acknowledgement_is_final(broker: Broker) -> None:
    """A task that is done must not come back with the next worker."""
    send(broker, *[outgoing() for _ in range(5)])
    with consuming(broker, ["q"]) as hub:
        got = hub.wait_for(5)
        settle(hub, *got[:1], *got[2:4])

    with consuming(broker, ["q"]) as second:
        back = second.wait_for(2)

        assert sorted(ids(back)) == sorted([got[1].message.id, got[4].message.id])
        settle(second, *back)

    assert ready(broker) == 0


def test_what_is_unsettled_comes_back_after_a_close(broker: Broker) -> None:
    """A worker that stops gives back what it has not finished."""
    sent = [outgoing() for _ in range(10)]
    send(broker, *sent)
    with consuming(broker, ["q"]) as hub:
        hub.wait_for(10)

    with consuming(broker, ["q"]) as second:
        assert sorted(ids(second.wait_for(10))) == sorted(one.message.id for one in sent)


HOLDER = """
import sys
from embedded_helpers import consuming
from taskq.brokers import open_broker
from taskq.brokers.base import BrokerOptions
broker = open_broker(sys.argv[1], BrokerOptions(lease_s=1.0))
with consuming(broker, ["q"]) as hub:
    hub.wait_for(3)
    print("holding", flush=True)
    sys.stdin.readline()
"""


def test_what_is_unsettled_comes_back_after_a_kill(
    broker_url: str, broker_factory: BrokerFactory
) -> None:
    """SIGKILL leaves no time to give anything back: the broker must notice by itself."""
    if broker_url.startswith("memory"):
        # There is no other process that could be killed.
        return
    broker = broker_factory(lease_s=1.0)
    sent = [outgoing() for _ in range(3)]
    send(broker, *sent)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    pipe = subprocess.PIPE
    argv = [sys.executable, "-c", HOLDER, broker_url]
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True, env=env) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holding\n"
        holder.kill()

    with consuming(broker, ["q"]) as hub:
        got = hub.wait_for(3, 30)

        assert sorted(ids(got)) == sorted(one.message.id for one in sent)
        assert all(delivery.redelivered for delivery in got)
        settle(hub, *got)


def test_what_is_returned_is_delivered_again(broker: Broker) -> None:
    """Unstarted tasks of a busy worker go to a sibling at once."""
    send(broker, *[outgoing() for _ in range(4)])

    with consuming(broker, ["q"]) as hub:
        first = list(hub.wait_for(4))
        give_back(hub, *first[:2])
        hub.wait_for(6)

        assert sorted(ids(hub.got[4:])) == sorted(ids(first[:2]))
        settle(hub, *hub.got[2:])

    assert ready(broker) == 0


def test_settling_twice_is_harmless(broker: Broker) -> None:
    """A batch that failed half-way is settled again as a whole."""
    send(broker, *[outgoing() for _ in range(6)])

    with consuming(broker, ["q"]) as hub:
        got = list(hub.wait_for(6))
        for _ in range(3):
            settle(hub, *got[3:], *got[:2])
        give_back(hub, *got[:2])
        settle(hub, got[2])
        send(broker, outgoing())
        hub.wait_for(7)

        assert hub.losses == 0
        assert len(hub.got) == 7
        settle(hub, hub.got[6])

    assert ready(broker) == 0


def test_receipts_of_another_consumer_are_void(broker: Broker) -> None:
    """A worker that reconnected still holds receipts from before."""
    send(broker, outgoing())
    with consuming(broker, ["q"]) as hub:
        (old,) = hub.wait_for(1)

    with consuming(broker, ["q"]) as second:
        (again,) = list(second.wait_for(1))
        hub.consumer.settle([old.receipt])
        send(broker, outgoing())
        second.wait_for(2)
        assert again.message.id == old.message.id

    assert ready(broker) == 2


def test_settlements_from_many_threads_all_count(broker: Broker) -> None:
    """`settle` is the one method that is called off the loop."""
    send(broker, *[outgoing() for _ in range(400)])

    with consuming(broker, ["q"], 1000) as hub:
        got = list(hub.wait_for(400))
        threads = [
            threading.Thread(target=lambda part=got[n::4]: [settle(hub, d) for d in part])
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert ready(broker) == 0


def test_a_delay_is_neither_early_nor_late(broker: Broker) -> None:
    """A broker may be early by what its grid rounds off; the worker waits for the rest."""
    delays_ms = (150, 450, 900)
    due_ms = {}
    for delay_ms in delays_ms:
        one = outgoing(due_ms=clock.now_ms() + delay_ms)
        due_ms[one.message.id] = one.due_ms
        send(broker, one)
    arrived = {}

    with consuming(broker, ["q"]) as hub:
        while len(arrived) < len(delays_ms):
            for delivery in hub.wait_for(len(arrived) + 1):
                arrived.setdefault(delivery.message.id, clock.now_ms())

    for task_id, moment_ms in arrived.items():
        assert -150 <= moment_ms - due_ms[task_id] < 2500


def test_a_delayed_message_is_not_ready(broker: Broker) -> None:
    """Depth counts what a worker could take now."""
    send(broker, outgoing(due_ms=clock.now_ms() + 60_000), outgoing())

    wait_ready(broker, 1)

    assert broker.due_within(0.01) == 0
    wait_for(lambda: broker.due_within(61) == 1, 10, "one delayed message")


def test_a_moment_that_has_passed_is_now(broker: Broker) -> None:
    """`eta` in the past, and clocks that differ."""
    send(broker, outgoing(due_ms=1), outgoing(due_ms=clock.now_ms() + 5))

    with consuming(broker, ["q"]) as hub:
        hub.wait_for(2)


def test_prefetch_is_a_bound(broker: Broker) -> None:
    """A worker never holds what it cannot start soon."""
    send(broker, *[outgoing() for _ in range(10)])

    with consuming(broker, ["q"], 3) as hub:
        hub.wait_for(3)
        wait_ready(broker, 7)
        assert len(hub.got) == 3

        settle(hub, hub.got[1])
        hub.wait_for(4)
        wait_ready(broker, 6)
        assert len(hub.got) == 4


def test_each_queue_gets_at_least_one(broker: Broker) -> None:
    """A queue without credit would starve behind a long task of another."""
    send(broker, *[outgoing(queue) for queue in ("a", "b", "c")])

    with consuming(broker, ["a", "b", "c"], 1) as hub:
        for number in range(3):
            settle(hub, hub.wait_for(number + 1)[number])

        assert {delivery.queue for delivery in hub.got} == {"a", "b", "c"}


def test_prefetch_can_grow_and_shrink(broker: Broker) -> None:
    """The automatic prefetch follows the measured run time."""
    send(broker, *[outgoing() for _ in range(30)])

    with consuming(broker, ["q"], 1) as hub:
        settle(hub, hub.wait_for(1)[0])
        hub.wait_for(2)
        hub.call(hub.consumer.resize, 10)
        hub.wait_for(10)
        wait_for(lambda: ready(broker) <= 20, 15, "more to be taken")
        hub.call(hub.consumer.resize, 2)
        settled = 1
        while len(hub.got) < 30:
            settle(hub, hub.got[settled])
            settled += 1
            seen = settled
            wait_for(lambda seen=seen: len(hub.got) > seen, 15, "the next delivery")
        settle(hub, *hub.got)

        assert len(set(ids(hub.got))) == 30
        assert hub.losses == 0

    assert ready(broker) == 0


def test_a_paused_consumer_takes_nothing_and_can_settle(broker: Broker) -> None:
    """Consuming pauses while results cannot be stored, and goes on by itself."""
    send(broker, outgoing())

    with consuming(broker, ["q"], 5) as hub:
        hub.wait_for(1)
        hub.call(hub.consumer.pause)
        settle(hub, hub.got[0])
        if broker.url.startswith("amqp"):
            # The pause is over the wire, and RabbitMQ counts consumers with unsettled messages.
            wait_for(lambda: depth(broker).consumers == 0, 15, "the pause")
        send(broker, *[outgoing() for _ in range(3)])
        wait_ready(broker, 3)
        assert len(hub.got) == 1

        hub.call(hub.consumer.resume)
        hub.wait_for(4)
        settle(hub, *hub.got)

    assert ready(broker) == 0


def test_depth_is_none_for_a_missing_queue(broker: Broker) -> None:
    """`queues ls` must tell an empty queue from one that nobody made."""
    send(broker, outgoing("here"))

    depths = broker.depths(["here", "nowhere", DEAD_QUEUE])

    assert depths["nowhere"] is None
    assert isinstance(depths["here"], QueueDepth)
    assert depths["here"].ready == 1
    assert depths[DEAD_QUEUE] is not None


def test_declared_queues_exist(broker: Broker) -> None:
    """A worker that starts first makes the queues that clients look for."""
    broker.declare(["one", "two"])

    assert broker.depths(["one", "two"]).values() != [None, None]
    assert ready(broker, "one") == 0


def test_a_purge_takes_what_is_ready_and_nothing_else(broker: Broker) -> None:
    """Tasks that run are not purged under their workers' hands."""
    send(broker, *[outgoing() for _ in range(5)], outgoing("other"))
    with consuming(broker, ["q"], 2) as hub:
        hub.wait_for(2)
        wait_ready(broker, 3)

        assert broker.purge("q") == 3
        assert ready(broker, "other") == 1

    wait_ready(broker, 2)


def test_a_missing_queue_cannot_be_purged(broker: Broker) -> None:
    """A misspelt name must not look like an empty queue."""
    with pytest.raises(ConfigError, match="no-such-queue"):
        broker.purge("no-such-queue")


def test_dead_letters_are_shown_oldest_first_and_kept(broker: Broker) -> None:
    """`taskq dead ls` looks and changes nothing."""
    sent = letters(broker, 5)
    shown: list[Delivery] = []

    def look(letter: Delivery) -> Any:
        shown.append(letter)
        return "keep"

    assert broker.sweep_dead(look) == 5
    assert ids(shown) == [one.message.id for one in sent]
    headers = shown[0].message.headers
    assert headers["taskq-dead-reason"] == "failed"
    assert headers["taskq-dead-queue"] == "q"
    assert headers["taskq-dead-attempts"] == 2
    assert shown[0].message == sent[0].message
    wait_ready(broker, 5, DEAD_QUEUE)


def test_fifty_looks_lose_no_dead_letter(broker: Broker) -> None:
    """RabbitMQ 4 drops what was delivered 20 times, unless told otherwise."""
    sent = letters(broker, 3)
    order: list[str] = []

    for _ in range(50):
        order.clear()
        assert broker.sweep_dead(lambda letter: (order.append(letter.message.id), "keep")[1]) == 3  # type: ignore[arg-type,return-value,func-returns-value]
        wait_ready(broker, 3, DEAD_QUEUE)

    assert order == [one.message.id for one in sent]


def test_dead_letters_are_removed_kept_and_sent_again(broker: Broker) -> None:
    """A replay sends first and removes then; the others stay."""
    drop, replay, keep = letters(broker, 3)

    def visit(letter: Delivery) -> Any:
        if letter.message.id == drop.message.id:
            return "remove"
        if letter.message.id == replay.message.id:
            return Outgoing("again", resend.revived(letter.message))
        return "keep"

    assert broker.sweep_dead(visit) == 3

    wait_ready(broker, 1, DEAD_QUEUE)
    with consuming(broker, ["again"]) as hub:
        (again,) = hub.wait_for(1)
        settle(hub, again)
    assert again.message.id == replay.message.id
    assert again.message.headers == {"taskq-replays": 1}
    left: list[str] = []
    broker.sweep_dead(lambda letter: (left.append(letter.message.id), "remove")[1])  # type: ignore[arg-type,return-value,func-returns-value]
    assert left == [keep.message.id]


def test_letters_that_arrive_during_a_sweep_wait_for_the_next(broker: Broker) -> None:
    """A replayed task that fails at once would be replayed for ever."""
    letters(broker, 2)

    def replay(letter: Delivery) -> Any:
        return Outgoing("q", letter.message, dead=True)

    assert broker.sweep_dead(replay) == 2
    wait_ready(broker, 2, DEAD_QUEUE)


def test_a_visitor_that_raises_keeps_the_rest(broker: Broker) -> None:
    """An operator presses Ctrl-C in the middle of a replay."""
    sent = letters(broker, 4)

    def visit(letter: Delivery) -> Any:
        if letter.message.id == sent[1].message.id:
            raise LookupError("stop")
        return "remove"

    with pytest.raises(LookupError):
        broker.sweep_dead(visit)

    wait_ready(broker, 3, DEAD_QUEUE)


def test_no_dead_letters_is_no_error(broker: Broker) -> None:
    """Nothing has failed yet, and nothing may be declared by looking."""
    assert broker.sweep_dead(lambda letter: "keep") == 0


def test_the_brokers_own_headers_are_not_sent_on(broker: Broker) -> None:
    """A delayed message has been dead-lettered inside RabbitMQ; a retry must not carry that."""
    send(broker, outgoing(due_ms=clock.now_ms() + 250))

    with consuming(broker, ["q"]) as hub:
        (delivery,) = hub.wait_for(1)
        send(broker, replace(outgoing(), message=delivery.message))
        settle(hub, delivery)
        again = hub.wait_for(2)[1]

    assert delivery.message.headers == again.message.headers == {}
    assert again.message == delivery.message


def test_control_requests_are_answered_by_every_consumer(broker: Broker) -> None:
    """`taskq inspect` asks all workers at once."""
    with consuming(broker, ["q"]) as one, consuming(broker, ["q"]) as other:
        wait_for(lambda: bool(one.connections and other.connections), 15, "both consumers")

        answers = broker.ask({"command": "ping", "n": 1}, 1.0)
        silent = broker.ask({"command": "hush"}, 0.3)

    assert answers == [{"echo": "ping"}] * 2
    assert silent == []


def test_nobody_answers_where_nobody_listens(broker: Broker) -> None:
    """`taskq inspect` before the first worker: an empty list, no error."""
    assert broker.ask({"command": "ping"}, 0.2) == []


def test_ten_thousand_messages_in_a_pipeline(broker: Broker) -> None:
    """`send_many`: confirms are waited for together; each message arrives once."""
    sent = [outgoing() for _ in range(10_000)]
    seen: list[str] = []

    underway = [broker.submit(sent[at : at + 1000], 60) for at in range(0, 10_000, 1000)]
    errors = [error for publishing in underway for error in publishing.wait()]
    assert errors == [None] * 10_000
    with consuming(broker, ["q"], 500) as hub:
        while len(seen) < 10_000:
            got = hub.wait_for(len(seen) + 1, 60)
            fresh = got[len(seen) :]
            seen += ids(fresh)
            settle(hub, *fresh)

    assert seen == [one.message.id for one in sent]
    assert ready(broker) == 0


def test_a_send_can_be_awaited(broker: Broker) -> None:
    """`adelay` must not block the caller's loop."""

    async def run() -> list[PublishError | None]:
        return await broker.submit([outgoing(), outgoing()], 10).wait_async()

    assert asyncio.run(run()) == [None, None]
    assert ready(broker) == 2


def test_an_empty_batch_is_done_at_once(broker: Broker) -> None:
    """`send_many([])`."""
    assert broker.publish([], 10) == []


def test_a_prefix_separates_two_applications(broker_factory: BrokerFactory) -> None:
    """Two environments on one server share neither queues nor dead letters."""
    blue, green = broker_factory(prefix="blue."), broker_factory(prefix="green.")
    send(blue, outgoing(), outgoing(due_ms=clock.now_ms() + 200))
    letters(blue, 1)

    assert ready(green) == 0
    assert green.sweep_dead(lambda letter: "keep") == 0
    with consuming(blue, ["q"]) as hub:
        got = hub.wait_for(2)
        assert {delivery.queue for delivery in got} == {"q"}


def test_a_forked_child_sends_with_connections_of_its_own(broker: Broker) -> None:
    """Frames of two processes in one socket would break both."""
    send(broker, outgoing())
    if broker.url.startswith("memory"):
        # A child has a memory of its own.
        return

    in_child(lambda: send(broker, *[outgoing() for _ in range(20)]))
    send(broker, *[outgoing() for _ in range(20)])

    assert ready(broker) == 41


def test_closing_twice_is_harmless(broker_url: str) -> None:
    """Exit handlers and context managers both close."""
    broker = open_broker(broker_url, BrokerOptions())
    send(broker, outgoing())

    broker.close()
    broker.close()


def test_closing_a_consumer_twice_is_harmless(broker: Broker) -> None:
    """The hub closes it in order, and again when it unwinds."""
    with consuming(broker, ["q"]) as hub:
        wait_for(lambda: bool(hub.connections), 15, "the consumer")
        hub.close()


def test_the_doctor_finds_nothing_wrong(broker: Broker) -> None:
    """Every check that fails here would be a false alarm for everyone."""
    broker.declare(["q"])

    checks = broker.checks(["q"])

    assert checks
    assert [check for check in checks if check.status != "ok"] == []


def test_only_looking_creates_no_queue(broker_factory: BrokerFactory) -> None:
    """`declare='passive'` for a vhost whose objects an operator makes."""
    passive = broker_factory(declare="passive")

    (error,) = passive.publish([outgoing()], 5)

    assert isinstance(error, PublishError)
    assert error.reason == "unroutable"
    assert broker_factory().depths(["q"])["q"] is None
