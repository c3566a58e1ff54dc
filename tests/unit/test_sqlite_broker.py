"""What the embedded broker promises beyond the contract that all brokers share."""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from embedded_helpers import consuming, outgoing
from forks import in_child
from processes import wait_for

from taskq import clock
from taskq.brokers import open_broker
from taskq.brokers.base import Broker, BrokerOptions, Outgoing, QueueDepth
from taskq.errors import ConfigError
from taskq.results.base import Record, Write, decode_record, encode_record
from taskq.results.sqlite import SqliteResults

Open = Callable[..., Broker]
_names = itertools.count()


@pytest.fixture(params=["sqlite", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory":
        return f"memory://broker-{next(_names)}"
    return f"sqlite:///{tmp_path}/q.db"


@pytest.fixture
def make(url: str) -> Iterator[Open]:
    """Open brokers on one database, with options."""
    brokers: list[Broker] = []

    def open_one(**options: object) -> Broker:
        brokers.append(open_broker(url, BrokerOptions(**options)))  # type: ignore[arg-type]
        return brokers[-1]

    yield open_one
    for broker in brokers:
        broker.close()


def send(broker: Broker, *batch: Outgoing) -> None:
    assert broker.publish(batch, 5.0) == [None] * len(batch)


def test_priorities_are_exact_and_then_oldest_first(make: Open) -> None:
    """The embedded broker sorts all that waits, not only what a consumer has at hand."""
    broker = make()
    batch = [outgoing(priority=n % 4, args=(n,)) for n in range(200)]
    send(broker, *batch)

    with consuming(broker, ["q"], 1000) as hub:
        got = [(d.message.priority, d.message.id) for d in hub.wait_for(200)]

    wanted = sorted(batch, key=lambda item: -item.message.priority)
    assert got == [(item.message.priority, item.message.id) for item in wanted]


def test_a_delayed_message_is_never_early_and_soon_there(make: Open) -> None:
    """Delays are kept to the millisecond here; no grid, no early delivery."""
    broker = make()
    with consuming(broker, ["q"]) as hub:
        due = [clock.now_ms() + ms for ms in (700, 50, 350)]
        arrived: dict[str, int] = {}
        deliver = hub.delivered

        def note(batch: list) -> None:  # type: ignore[type-arg]
            arrived.update((d.message.id, clock.now_ms()) for d in batch)
            deliver(batch)

        hub.delivered = note  # type: ignore[method-assign]
        batch = [outgoing(due_ms=ms) for ms in due]
        send(broker, *batch)
        hub.wait_for(3)

    for item in batch:
        late_ms = arrived[item.message.id] - item.due_ms
        assert 0 <= late_ms < 1500


def test_due_within_counts_exactly(make: Open) -> None:
    """`--burst` waits for what is due soon, and not for tomorrow's."""
    broker = make()
    now_ms = clock.now_ms()
    send(broker, *[outgoing(due_ms=now_ms + s * 1000) for s in (20, 40, 60, 3600)], outgoing())

    assert [broker.due_within(s) for s in (0, 30, 50, 100, 4000)] == [0, 1, 2, 3, 4]
    assert broker.depths(["q"]) == {"q": QueueDepth(1, 0, 4, 0)}


def test_a_full_prefetch_still_leaves_each_queue_one(make: Open) -> None:
    """A flood in the preferred queue must not starve the others."""
    broker = make()
    send(broker, *[outgoing("a") for _ in range(10)], *[outgoing("b") for _ in range(10)])

    with consuming(broker, ["a", "b"], 3) as hub:
        wait_for(lambda: len(hub.got) == 4, 10, "three and one")
        assert [d.queue for d in hub.got] == ["a", "a", "a", "b"]
        hub.consumer.settle([hub.got[0].receipt])
        # Three are held again: nothing of either queue may come.
        send(broker, outgoing("a"))
        assert broker.depths(["a", "b"]) == {
            "a": QueueDepth(8, 2, 0, 1),
            "b": QueueDepth(9, 1, 0, 1),
        }
        hub.consumer.settle([d.receipt for d in hub.got[1:]])
        hub.wait_for(8)


def test_settling_twice_or_after_close_does_nothing(make: Open) -> None:
    """Receipts are void once they were used; nothing else may be deleted in their stead."""
    broker = make()
    send(broker, *[outgoing() for _ in range(3)])
    with consuming(broker, ["q"]) as hub:
        first, second, third = hub.wait_for(3)
        hub.consumer.settle([first.receipt], [second.receipt])
        hub.consumer.settle([second.receipt, first.receipt], [first.receipt])
        hub.wait_for(4)
        hub.close()
        hub.consumer.settle([third.receipt])

    assert broker.depths(["q"]) == {"q": QueueDepth(2, 0, 0, 0)}


def test_given_back_messages_are_not_charged(make: Open) -> None:
    """Only a lost worker is an attempt; an ordinary stop is none."""
    broker = make()
    send(broker, outgoing())
    for _ in range(3):
        with consuming(broker, ["q"]) as hub:
            (delivery,) = hub.wait_for(1)
            assert (delivery.deliveries, delivery.redelivered) == (0, False)


def test_a_pause_lets_nothing_through(make: Open) -> None:
    """What was claimed just before the pause goes back instead of to the worker."""
    broker = make()
    held = QueueDepth(0, 5, 0, 1)
    with consuming(broker, ["q"]) as hub:
        wait_for(lambda: bool(hub.connections), 10, "the start")

        def claim_and_pause() -> None:
            # While this blocks the loop, claimed messages can only wait in front of it.
            send(broker, *[outgoing() for _ in range(5)])
            wait_for(lambda: broker.depths(["q"])["q"] == held, 10, "the claim")
            hub.consumer.pause()

        hub.call(claim_and_pause)
        wait_for(lambda: broker.depths(["q"])["q"] == QueueDepth(5, 0, 0, 1), 10, "all given back")
        assert broker.ask({"command": "ping"}, 5.0) == [{"echo": "ping"}]
        assert hub.got == []
        hub.call(hub.consumer.resume)
        hub.wait_for(5)


def test_ask_returns_when_all_answered(make: Open) -> None:
    """`taskq inspect` must not take its whole timeout; a silent worker is waited for no longer."""
    broker = make()
    with consuming(broker, ["q"]) as one, consuming(broker, ["r"]) as two:
        wait_for(lambda: bool(one.connections and two.connections), 10, "both workers")
        began = time.monotonic()
        answers = broker.ask({"command": "ping"}, 20.0)
        silence = broker.ask({"command": "hush"}, 20.0)
        took_s = time.monotonic() - began

    assert answers == [{"echo": "ping"}] * 2
    assert silence == []
    assert took_s < 10
    assert broker.ask({"command": "ping"}, 20.0) == []


def test_prefixes_separate_applications(make: Open) -> None:
    """Two applications may share a file as they share a RabbitMQ."""
    ours, theirs = make(prefix="a."), make(prefix="b.")
    send(ours, outgoing(), replace(outgoing(), dead=True))

    assert (ours.known_queues(), theirs.known_queues()) == (["q"], [])
    assert theirs.depths(["q", "taskq.dead"]) == {"q": None, "taskq.dead": QueueDepth(0, 0, 0, 0)}
    assert ours.depths(["taskq.dead"]) == {"taskq.dead": QueueDepth(1, 0, 0, 0)}
    assert theirs.sweep_dead(lambda delivery: "remove") == 0


@pytest.mark.parametrize("declare", ["passive", "never"])
def test_a_missing_queue_is_unroutable_unless_it_may_be_made(make: Open, declare: str) -> None:
    """A misspelt queue name would otherwise swallow tasks for ever."""
    broker = make(declare=declare)
    make().declare(["there"])

    bad, good = broker.publish([outgoing("nowhere"), outgoing("there")], 5.0)

    assert bad is not None
    assert bad.reason == "unroutable"
    assert good is None
    assert broker.depths(["nowhere", "there"]) == {
        "nowhere": None,
        "there": QueueDepth(1, 0, 0, 0),
    }


def test_a_consumer_of_a_missing_queue_ends_with_the_reason(make: Open) -> None:
    """With `passive` a misspelt -Q must stop the worker, not idle it."""
    with consuming(make(declare="passive"), ["nowhere"]) as hub:
        wait_for(lambda: bool(hub.errors), 10, "the error")

    assert isinstance(hub.errors[0], ConfigError)


def test_dead_letters_end_after_their_time(make: Open) -> None:
    """Nobody empties them by hand; the next letter removes what is over."""
    broker = make(dead_ttl_s=0)
    send(broker, *[replace(outgoing(), dead=True) for _ in range(5)])
    keeping = make()
    send(keeping, replace(outgoing(), dead=True))

    assert keeping.sweep_dead(lambda delivery: "keep") == 1


def test_two_sweeps_at_once_replay_a_letter_once(make: Open) -> None:
    """Two people who press replay must not run the task twice."""
    broker = make()
    send(broker, *[replace(outgoing(), dead=True) for _ in range(30)])
    both = threading.Barrier(2, timeout=10)

    def sweep() -> None:
        started = iter([True])

        def visit(delivery):  # type: ignore[no-untyped-def]
            if next(started, False):
                both.wait()
            return Outgoing("q", delivery.message)

        broker.sweep_dead(visit)

    threads = [threading.Thread(target=sweep) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert broker.depths(["q", "taskq.dead"]) == {
        "q": QueueDepth(30, 0, 0, 0),
        "taskq.dead": QueueDepth(0, 0, 0, 0),
    }


def test_sends_of_many_threads_and_loops_all_arrive(make: Open) -> None:
    """Group commit must hand every sender its own answer."""
    broker = make()

    async def send_async() -> list[object]:
        sends = [broker.submit([outgoing()], 10.0) for _ in range(50)]
        return [answer for one in sends for answer in await one.wait_async()]

    def many() -> None:
        for _ in range(25):
            send(broker, outgoing())
            assert broker.submit([outgoing(), outgoing()], 10.0).wait() == [None, None]

    threads = [threading.Thread(target=many) for _ in range(6)]
    for thread in threads:
        thread.start()
    answers = asyncio.run(send_async())
    for thread in threads:
        thread.join()

    assert answers == [None] * 50
    assert broker.depths(["q"]) == {"q": QueueDepth(50 + 6 * 75, 0, 0, 0)}


def test_what_was_submitted_is_sent_though_nobody_waits(make: Open) -> None:
    """`submit` begins to send; a caller that dies of something else must not unsend."""
    broker = make()

    broker.submit([outgoing()], 5.0)

    wait_for(lambda: broker.depths(["q"])["q"] == QueueDepth(1, 0, 0, 0), 10, "the send")


def test_a_forked_child_sends(make: Open, url: str) -> None:
    """Web servers fork workers after the app was used."""
    broker = make()
    broker.submit([outgoing()], 5.0).wait()

    def child() -> None:
        assert broker.submit([outgoing()], 5.0).wait() == [None]
        send(broker, outgoing())

    in_child(child)

    assert broker.depths(["q"]) == {"q": QueueDepth(1 if "memory" in url else 3, 0, 0, 0)}


def test_a_queued_message_is_pending_without_a_mark(make: Open, url: str) -> None:
    """The default file needs no second write for each send to tell PENDING from UNKNOWN."""
    broker = make()
    store = SqliteResults(url)
    waiting, dead = outgoing(), replace(outgoing(), dead=True)
    send(broker, waiting, dead)

    found = store.fetch([waiting.message.id, dead.message.id, "never seen"])
    assert store.covers(broker.url)
    assert decode_record(found[0] or b"").state == "PENDING"
    assert found[1:] == [None, None]

    store.store([Write(waiting.message.id, encode_record(Record("STARTED")), 60)])
    assert decode_record(store.fetch([waiting.message.id])[0] or b"").state == "STARTED"
    store.close()


def test_doctor_finds_a_sound_database(make: Open) -> None:
    """Each check has a stable name; a good file has no other verdict than ok."""
    broker = make()
    send(broker, outgoing())

    checks = broker.checks(["q", "another"])

    assert {check.status for check in checks} == {"ok"}
    assert {"broker.file", "broker.writable", "broker.version", "broker.integrity"} <= {
        check.name for check in checks
    }


def test_purge_deletes_what_is_ready_only(make: Open) -> None:
    """Delayed messages and those in workers' hands stay."""
    broker = make()
    send(broker, *[outgoing() for _ in range(3)])
    with consuming(broker, ["q"], 2) as hub:
        hub.wait_for(2)
        send(broker, outgoing(due_ms=clock.now_ms() + 60_000))
        assert broker.purge("q") == 1
        assert broker.depths(["q"]) == {"q": QueueDepth(0, 2, 1, 1)}
    with pytest.raises(ConfigError, match="no queue 'nowhere'"):
        broker.purge("nowhere")
