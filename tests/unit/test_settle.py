"""The order of settlement, with faults injected between its steps."""

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from processes import wait_for

from taskq import clock, outcome
from taskq.brokers import open_broker
from taskq.brokers.base import Broker, BrokerOptions, Outgoing
from taskq.canvas import next_outgoing
from taskq.codecs import dumps
from taskq.envelope import read_envelope
from taskq.errors import PublishError, RemoteError, ResultsUnavailable
from taskq.ids import new_id
from taskq.message import Message
from taskq.results import open_results
from taskq.results.base import MAX_ATTEMPT, Record, ResultStore, Write, decode_record, encode_record
from taskq.worker import endings
from taskq.worker.endings import Case, Ending
from taskq.worker.manifest import TaskInfo
from taskq.worker.settle import Settler

_names = itertools.count()
INFO = TaskInfo("t", "q", max_retries=3, backoff=(0, 1, 0, "none"))
ERROR = RemoteError("builtins", "ValueError", "no")


class Journal:
    """Broker, store and consumer around real ones; notes every step, and fails where told."""

    def __init__(self, broker: Broker, store: ResultStore) -> None:
        self.broker = broker
        self.kept = store
        self.steps: list[str] = []
        self.settled: list[Any] = []
        self.returned: list[Any] = []
        self.faults: dict[str, list[Callable[[], None]]] = {}

    def note(self, step: str) -> None:
        self.steps.append(step)
        faults = self.faults.get(step.split()[0])
        if faults:
            faults.pop(0)()

    def store(self, writes: Sequence[Write]) -> list[bool]:
        self.note("store " + " ".join(decode_record(write.record).state for write in writes))
        taken = self.kept.store(writes)
        self.note("stored")
        return taken

    def fetch(self, ids: Sequence[str]) -> list[bytes | None]:
        return self.kept.fetch(ids)

    def publish(self, batch: Sequence[Outgoing], timeout_s: float) -> list[PublishError | None]:
        self.note("publish " + " ".join("dead" if item.dead else item.queue for item in batch))
        return self.broker.publish(batch, timeout_s)

    def settle(self, done: Sequence[Any], returned: Sequence[Any] = ()) -> None:
        self.note("ack")
        self.settled += done
        self.returned += returned


@pytest.fixture
def journal() -> Iterator[Journal]:
    url = f"memory://settle-{next(_names)}"
    broker, store = open_broker(url, BrokerOptions()), open_results(url)
    yield Journal(broker, store)
    broker.close()
    store.close()


@pytest.fixture
def settler(journal: Journal) -> Iterator[Settler]:
    made = Settler(journal, journal, 1.0, lambda count: None)  # type: ignore[arg-type]
    made.consumer = journal  # type: ignore[assignment]
    yield made
    made.stop(5)


def case(task_id: str = "", retries: int = 0, embed: Any = None) -> Case:
    message = Message(
        "t", task_id or new_id(), dumps([[], {}, embed]), {"retries": retries} if retries else {}
    )
    return Case(message, read_envelope(message), INFO, "q", "w", True)


def succeeded(of: Case, queue: str = "next") -> Ending:
    follow = [Outgoing(queue, Message("u", new_id(), dumps([[], {}, None])))] if queue else []
    return endings.succeeded(of, dumps(1), follow, 5)


def settle(settler: Settler, journal: Journal, *items: Ending) -> None:
    """Settle these as one batch, and wait for it."""
    before = len(journal.settled) + len(journal.returned)
    settler.put([(number, ending) for number, ending in enumerate(items)])
    if not settler._thread.is_alive():
        settler.start()
    wait_for(
        lambda: len(journal.settled) + len(journal.returned) == before + len(items), 10, "the ack"
    )


def unavailable() -> None:
    raise ResultsUnavailable("down")


def test_a_success_is_stored_then_followed_then_acknowledged(
    journal: Journal, settler: Settler
) -> None:
    """Each step covers for a death before the next."""
    settle(settler, journal, succeeded(case()))

    assert journal.steps == ["store SUCCESS", "stored", "publish next", "ack"]


def test_a_retry_is_published_before_its_record_is_stored(
    journal: Journal, settler: Settler
) -> None:
    """The record in front would make the redelivered original look outdated: a lost task."""
    settle(settler, journal, endings.failed(case(), ERROR, True, us=5))

    assert journal.steps == ["publish q", "store RETRY", "stored", "ack"]


def test_a_batch_of_all_kinds_keeps_the_order(journal: Journal, settler: Settler) -> None:
    """Group commit is one round of each step, not a loop of all steps."""
    items = [
        succeeded(case()),
        endings.failed(case(), ERROR, True, us=5),
        endings.failed(case(retries=3), ERROR, True, us=5),
        Ending(endings.REQUEUED),
    ]

    settle(settler, journal, *items)

    assert journal.steps == [
        "store SUCCESS FAILURE",
        "stored",
        "publish next q dead",
        "store RETRY",
        "stored",
        "ack",
    ]
    assert (sorted(journal.settled), journal.returned) == ([0, 1, 2], [3])


def test_nothing_is_acknowledged_while_the_store_is_away(
    journal: Journal, settler: Settler
) -> None:
    """Three refusals, then it is back: one acknowledgement, after the record."""
    journal.faults["store"] = [unavailable] * 3
    of = case()

    settle(settler, journal, succeeded(of))

    assert journal.steps == [*["store SUCCESS"] * 4, "stored", "publish next", "ack"]
    assert journal.kept.fetch([of.message.id])[0] is not None


def test_nothing_is_acknowledged_while_follow_ups_are_unconfirmed(
    journal: Journal, settler: Settler
) -> None:
    """A chain's next step that was only sent, not confirmed, may not exist."""

    def refuse() -> None:
        raise PublishError("x", "timeout", "nothing came back")

    journal.faults["publish"] = [refuse, refuse]

    settle(settler, journal, succeeded(case()))

    assert journal.steps == ["store SUCCESS", "stored", *["publish next"] * 3, "ack"]


def test_a_record_whose_answer_was_lost_counts_as_stored(
    journal: Journal, settler: Settler
) -> None:
    """The connection broke after the store had taken it: repeated it is refused, but it is ours."""
    journal.faults["stored"] = [unavailable]

    settle(settler, journal, succeeded(case()))

    assert "publish next" in journal.steps


def test_who_lost_against_another_run_sends_nothing(journal: Journal, settler: Settler) -> None:
    """Two runs of one task have one outcome, and one set of follow-ups."""
    of = case()
    first, second = succeeded(of), endings.failed(of, ERROR, False, us=9)

    settle(settler, journal, first)
    settle(settler, journal, second)

    assert journal.steps[4:] == ["store FAILURE", "stored", "ack"]


def test_the_letter_of_a_malformed_message_is_always_sent(
    journal: Journal, settler: Settler
) -> None:
    """Its id may be any, also a finished task's; without the letter it would be gone."""
    of = case()
    settle(settler, journal, succeeded(of, ""))

    settle(settler, journal, endings.malformed(of, ValueError("bytes")))

    assert journal.steps[-2:] == ["publish dead", "ack"]


def test_a_fault_of_our_own_gives_the_deliveries_back(
    journal: Journal, settler: Settler, caplog: pytest.LogCaptureFixture
) -> None:
    """Silence would keep them until the worker ends."""

    def broken() -> None:
        raise RuntimeError("a bug")

    journal.faults["store"] = [broken]

    settle(settler, journal, succeeded(case()))

    assert journal.returned == [0]
    assert "settling failed" in caplog.text


def test_records_without_a_delivery_acknowledge_nothing(journal: Journal, settler: Settler) -> None:
    """STARTED is stored on the side."""
    settler.put([(None, Ending(outcome.STARTED, [endings.started(case())]))])
    settler.start()

    wait_for(lambda: "stored" in journal.steps, 5, "the record")

    assert settler.stop(5)
    assert "ack" not in journal.steps


def test_a_stop_gives_up_in_time_and_acknowledges_nothing(journal: Journal) -> None:
    """The broker delivers again what could not be stored."""
    settler = Settler(journal, journal, 0.5, lambda count: None)  # type: ignore[arg-type]
    settler.consumer = journal  # type: ignore[assignment]
    journal.faults["store"] = [unavailable] * 1000
    settler.start()
    settler.put([(1, succeeded(case()))])
    wait_for(lambda: bool(journal.steps), 5, "the first try")
    began = clock.monotonic_s()

    done = settler.stop(0.3)

    assert not done
    assert clock.monotonic_s() - began < 3
    assert "ack" not in journal.steps


def test_a_message_that_its_queue_will_never_take_becomes_a_letter(
    journal: Journal, settler: Settler
) -> None:
    """A next step for a queue that does not exist must not hold the settling thread for ever."""
    real = journal.publish

    def publish(batch: Sequence[Outgoing], timeout_s: float) -> list[PublishError | None]:
        errors = real(batch, timeout_s)
        return [
            PublishError(item.message.id, "unroutable", "no queue") if not item.dead else error
            for item, error in zip(batch, errors, strict=True)
        ]

    journal.publish = publish  # type: ignore[method-assign]

    settle(settler, journal, succeeded(case(), "gone"))

    assert journal.steps == ["store SUCCESS", "stored", "publish gone", "publish dead", "ack"]


def test_whatever_gathers_meanwhile_is_one_batch(journal: Journal, settler: Settler) -> None:
    """Group commit: a slow round trip makes the next batch larger, not the queue longer."""
    hold = threading.Event()
    journal.faults["store"] = [lambda: hold.wait(5) and None]  # type: ignore[func-returns-value]
    settler.start()
    settler.put([(0, succeeded(case(), ""))])
    wait_for(lambda: bool(journal.steps), 5, "the first batch")

    for number in range(1, 6):
        settler.put([(number, succeeded(case(), ""))])
    hold.set()

    wait_for(lambda: len(journal.settled) == 6, 5, "all acknowledgements")
    together = "store " + " ".join(["SUCCESS"] * 5)
    assert journal.steps[3:] == [together, "stored", "ack"]


@pytest.mark.parametrize("kind", ["success", "retry"])
def test_a_run_that_ends_after_its_cancel_takes_its_chain_along(
    journal: Journal, settler: Settler, kind: str
) -> None:
    """The hub had not heard of the cancel yet: nothing follows, and nobody waits for the steps."""
    steps = [new_id(), new_id()]
    wires = [{"task": "u", "args": [], "kwargs": {}, "options": {"task_id": i}} for i in steps]
    embed = {"callbacks": None, "errbacks": None, "chain": wires[::-1], "chord": None}
    of = case(embed=embed)
    cancelled = Record(outcome.CANCELLED, MAX_ATTEMPT)
    journal.kept.store([Write(of.message.id, encode_record(cancelled), 60)])
    if kind == "success":
        follow = next_outgoing(of.message, of.follows(), 1, "next", "root")
        ending = endings.succeeded(of, dumps(1), follow, 5)
    else:
        ending = endings.failed(of, ERROR, True, us=5)
        ending.rank = (0, 0)

    settle(settler, journal, ending)

    assert not [step for step in journal.steps if step.startswith("publish")]
    found = journal.kept.fetch([of.message.id, *steps])
    assert [data and decode_record(data).state for data in found] == [outcome.CANCELLED] * 3
