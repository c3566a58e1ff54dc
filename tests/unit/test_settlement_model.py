"""The delivery contract as a state machine: real admission, claims, endings and settlement.

Broker, workers and clock are simulated, so that a worker can die between any two steps, messages
come twice, late and in another order, and every run is repeatable. What must hold is checked after
every step; at the end everything is delivered without faults, and nothing may be left over.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from test_restarts import Done

from taskq import clock
from taskq.brokers.base import Delivery, Outgoing
from taskq.codecs import dumps
from taskq.config import app_settings
from taskq.envelope import read_envelope
from taskq.errors import RemoteError
from taskq.message import Message
from taskq.results import open_results
from taskq.results.base import Write, attempt_of, is_terminal
from taskq.worker import endings
from taskq.worker.admission import Admission
from taskq.worker.endings import Ending
from taskq.worker.held import Held
from taskq.worker.manifest import Manifest, TaskInfo
from taskq.worker.restarts import Restarts
from taskq.worker.settle import Settler

_names = itertools.count()
MAX_RETRIES = 2
KINDS = ("succeeds", "fails once", "always fails", "leads on")
POINTS = ("never", "before store", "after store", "after publish", "before ack")
INFO = {
    kind: TaskInfo(kind, "q", max_retries=MAX_RETRIES, backoff=(0, 1, 0, "none")) for kind in KINDS
}


class Died(BaseException):
    """The worker died here."""


@dataclass
class Waiting:
    """A message in the queue."""

    message: Message
    due_ms: int = 0
    redelivered: bool = False


@dataclass
class Task:
    """What the model knows of a task that was sent."""

    kind: str
    starts: int = 0
    excuses: int = 0
    final: bytes = b""


@dataclass
class Worker:
    """A hub with one slot: what it holds, and runs that outlived their connection."""

    number: int
    held: Held | None = None
    orphans: list[Held] = field(default_factory=list)


class Contract(RuleBasedStateMachine):
    """Two workers on one queue."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 1_000_000
        self._clock, clock.now_ms = clock.now_ms, lambda: self.now_ms
        self.real = open_results(f"memory://model-{next(_names)}")
        self.queue: list[Waiting] = []
        self.letters: list[str] = []
        self.tasks: dict[str, Task] = {}
        self.copied: set[str] = set()
        self.workers = [Worker(0), Worker(1)]
        self.receipts: dict[int, Held] = {}
        self.die_at = "never"
        self.admission = Admission(
            Manifest("a", app_settings({}, environ={}), dict(INFO)), "w", True
        )
        self.settler = Settler(self, self, 1.0, lambda count: None)  # type: ignore[arg-type]
        self.settler.consumer = self  # type: ignore[assignment]
        self.counted: list[tuple[Held, Ending | None]] = []
        self.restarts = Restarts(
            self.real,
            self.admission,
            lambda function: Done(function()),  # type: ignore[arg-type,return-value]
            lambda held, ending: self.counted.append((held, ending)),
        )
        self.restarts.flags_returned = True

    def teardown(self) -> None:
        """Deliver everything without faults: all tasks end, and nothing is left."""
        try:
            for worker in self.workers:
                self.lose(worker)
            for _ in range(400):
                if not self.queue:
                    break
                self.now_ms = max(self.now_ms, self.queue[0].due_ms)
                self.take(self.workers[0], 0)
                self.end(self.workers[0].held, "never")
            assert not self.queue
            for task_id, task in self.tasks.items():
                assert self.is_final(task_id), f"{task.kind} never ended"
                if task.kind == "always fails" or task.final[:1] == b"F":
                    assert task_id in self.letters
        finally:
            clock.now_ms = self._clock
            self.real.close()

    # The store, the broker and the consumer, as the settler sees them

    def store(self, writes: Sequence[Write]) -> list[bool]:
        self.maybe_die("before store")
        taken = self.real.store(writes)
        self.maybe_die("after store")
        return taken

    def fetch(self, ids: Sequence[str]) -> list[bytes | None]:
        return self.real.fetch(ids)

    def count_starts(self, keys: Sequence[str], ttl_s: int, by: int = 1) -> list[int]:
        return self.real.count_starts(keys, ttl_s, by)

    def publish(self, batch: Sequence[Outgoing], timeout_s: float) -> list[None]:
        for item in batch:
            if item.dead:
                self.letters.append(item.message.id)
            else:
                self.tasks.setdefault(item.message.id, Task(item.message.task))
                self.queue.append(Waiting(item.message, item.due_ms))
        self.maybe_die("after publish")
        return [None] * len(batch)

    def settle(self, done: Sequence[Any], returned: Sequence[Any] = ()) -> None:
        self.maybe_die("before ack")
        for receipt in done:
            held = self.receipts.pop(receipt, None)
            if held is not None:
                self.check_ack(held)
        for receipt in returned:
            held = self.receipts.pop(receipt, None)
            if held is not None:
                self.queue.append(Waiting(held.delivery.message, redelivered=True))

    def maybe_die(self, point: str) -> None:
        if self.die_at == point:
            raise Died

    def check_ack(self, held: Held) -> None:
        """Point 2: what an acknowledged message leads to is durable."""
        message = held.delivery.message
        (data,) = self.real.fetch([message.id])
        later = data is not None and attempt_of(data) > held.envelope.retries
        assert later or self.is_final(message.id), "acknowledged before its outcome was durable"

    def is_final(self, task_id: str) -> bool:
        (data,) = self.real.fetch([task_id])
        return data is not None and is_terminal(data)

    # What a worker does

    def take(self, worker: Worker, index: int) -> None:
        waiting = self.queue.pop(index)
        held, ending = self.admission.open(
            Delivery(next(_names), "q", waiting.message, waiting.redelivered)
        )
        self.receipts[held.delivery.receipt] = held
        worker.held = held
        if ending is None:
            ending = self.admission.judge(held, self.real.fetch([waiting.message.id])[0])
        if ending is None and waiting.redelivered:
            held.child = worker  # type: ignore[assignment]
            self.counted.clear()
            self.restarts.count([held])
            ((_, ending),) = self.counted
        if ending is not None:
            worker.held = None
            self.commit(held, ending)
            return
        assert not self.is_final(waiting.message.id), "a finished task was started"
        self.tasks[waiting.message.id].starts += 1

    def outcome(self, held: Held) -> Ending:
        """Return what an executor makes of it, from the message that the hub hands it."""
        parts = held.item()[3]
        message = Message.from_list(parts)
        envelope = read_envelope(message)
        case = endings.Case(message, envelope, held.info, "q", "w", True)
        kind = message.task
        if kind == "always fails" or (kind == "fails once" and not envelope.spent):
            return endings.failed(case, RemoteError("builtins", "ValueError", "no"), True, us=1)
        follow = []
        if kind == "leads on":
            # The id of what follows is fixed by the task, so that a copy is recognised.
            next_one = Message("succeeds", f"{message.id}-next", dumps([[], {}, None]))
            follow = [Outgoing("q", next_one)]
        return endings.succeeded(case, dumps(1), follow, 1)

    def end(self, held: Held | None, die_at: str) -> bool:
        """End a run; whether the worker died of it."""
        if held is None:
            return False
        for worker in self.workers:
            if worker.held is held:
                worker.held = None
        return self.commit(held, self.outcome(held), die_at)

    def commit(self, held: Held, ending: Ending, die_at: str = "never") -> bool:
        if ending.code == "RETRY":
            ending.rank = held.envelope.retries, held.envelope.starts
        self.die_at = die_at
        try:
            self.settler._commit([(held.delivery.receipt, ending)])
        except Died:
            self.requeue(held)
            return True
        finally:
            self.die_at = "never"
        return False

    def requeue(self, held: Held) -> None:
        if self.receipts.pop(held.delivery.receipt, None) is not None:
            self.queue.append(Waiting(held.delivery.message, redelivered=True))

    def lose(self, worker: Worker) -> None:
        """The worker is gone: the broker delivers again what it held."""
        if worker.held is not None:
            self.requeue(worker.held)
        worker.held = None
        worker.orphans.clear()

    def busy(self, number: int) -> Worker:
        """Return this worker, or the other one when only that holds something."""
        worker = self.workers[number]
        return worker if worker.held is not None else self.workers[1 - number]

    # Rules

    @precondition(lambda self: len(self.tasks) < 5)
    @rule(kind=st.sampled_from(KINDS))
    def send(self, kind: str) -> None:
        task_id = f"task-{next(_names)}"
        self.tasks[task_id] = Task(kind)
        self.queue.append(Waiting(Message(kind, task_id, dumps([[], {}, None]))))

    @precondition(lambda self: self.queue and not all(worker.held for worker in self.workers))
    @rule(number=st.integers(0, 1), pick=st.integers(0, 9))
    def deliver(self, number: int, pick: int) -> None:
        """Any message that is due, in any order."""
        worker = self.workers[number]
        if worker.held is not None:
            worker = self.workers[1 - number]
        due = [at for at, one in enumerate(self.queue) if one.due_ms <= self.now_ms]
        if due:
            self.take(worker, due[pick % len(due)])

    @precondition(lambda self: any(worker.held for worker in self.workers))
    @rule(number=st.integers(0, 1))
    def finish(self, number: int) -> None:
        """A run ends, and is settled."""
        self.end(self.busy(number).held, "never")

    @precondition(lambda self: any(worker.held for worker in self.workers))
    @rule(number=st.integers(0, 1), die_at=st.sampled_from(POINTS[1:]))
    def finish_and_die(self, number: int, die_at: str) -> None:
        """A run ends, and its worker dies somewhere in the settlement."""
        worker = self.busy(number)
        held = worker.held
        if held is not None and self.end(held, die_at):
            self.tasks[held.delivery.message.id].excuses += 1
            self.lose(worker)

    @precondition(lambda self: any(worker.held for worker in self.workers))
    @rule(number=st.integers(0, 1))
    def crash(self, number: int) -> None:
        worker = self.busy(number)
        if worker.held is not None:
            self.lose(worker)

    @precondition(lambda self: any(worker.held for worker in self.workers))
    @rule(number=st.integers(0, 1))
    def disconnect(self, number: int) -> None:
        """The message is delivered again, while its run goes on."""
        worker = self.busy(number)
        held = worker.held
        if held is not None:
            self.tasks[held.delivery.message.id].excuses += 1
            self.requeue(held)
            worker.held = None
            worker.orphans.append(held)

    @precondition(lambda self: any(worker.orphans for worker in self.workers))
    @rule(number=st.integers(0, 1), die_at=st.sampled_from(POINTS))
    def come_back(self, number: int, die_at: str) -> None:
        """A run that was believed dead ends."""
        worker = self.workers[number]
        if worker.orphans:
            held = worker.orphans.pop(0)
            if self.commit(held, self.outcome(held), die_at):
                self.lose(worker)

    @precondition(lambda self: any(worker.held for worker in self.workers))
    @rule(number=st.integers(0, 1))
    def give_back(self, number: int) -> None:
        """A cold stop: charged with nothing."""
        worker = self.busy(number)
        held = worker.held
        if held is not None:
            worker.held = None
            self.tasks[held.delivery.message.id].excuses += 1
            ending = Ending(endings.REQUEUED)
            self.restarts.refund([(held, ending)])
            self.commit(held, ending)

    @precondition(lambda self: 0 < len(self.queue) < 4 and len(self.copied) < 2)
    @rule(pick=st.integers(0, 9))
    def duplicate(self, pick: int) -> None:
        """A sender that got no confirm sends again, with the same id."""
        one = self.queue[pick % len(self.queue)]
        self.tasks[one.message.id].excuses += MAX_RETRIES + 1
        self.copied.add(one.message.id)
        self.queue.append(Waiting(one.message, one.due_ms))

    @rule(step_ms=st.sampled_from((1, 50, 5_000)))
    def wait(self, step_ms: int) -> None:
        self.now_ms += step_ms

    # What holds at every moment

    @invariant()
    def nothing_is_lost(self) -> None:
        """Points 1 and 2: until its end a task has a message somewhere."""
        somewhere = {one.message.id for one in self.queue}
        somewhere |= {held.delivery.message.id for held in self.receipts.values()}
        for task_id in self.tasks:
            assert task_id in somewhere or self.is_final(task_id), "lost"

    @invariant()
    def ends_are_final(self) -> None:
        """Point 7."""
        for task_id, task in self.tasks.items():
            (data,) = self.real.fetch([task_id])
            if task.final:
                assert data == task.final, "a final record was overwritten"
            elif data is not None and is_terminal(data):
                task.final = data

    @invariant()
    def starts_are_bounded(self) -> None:
        """Points 3 and 9: one start for each attempt, and one for each reason to repeat one."""
        for task in self.tasks.values():
            assert task.starts <= (MAX_RETRIES + 1) * (MAX_RETRIES + 2) // 2 + task.excuses

    @invariant()
    def what_follows_is_sent(self) -> None:
        """A letter or the next step is there, or else the message that will send it."""
        somewhere = {one.message.id for one in self.queue}
        somewhere |= {held.delivery.message.id for held in self.receipts.values()}
        for task_id, task in self.tasks.items():
            if task_id in somewhere:
                continue
            if task.final[:1] == b"F":
                assert task_id in self.letters, "no letter"
            if task.final[:1] == b"S" and task.kind == "leads on":
                assert f"{task_id}-next" in self.tasks, "the next step was not sent"


TestContract = Contract.TestCase
TestContract.settings = settings(
    max_examples=120,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
