"""Whether a delivery may run: known, readable, due, not expired, not finished, not cancelled."""

from taskq import clock, outcome
from taskq.brokers.base import Delivery
from taskq.cancels import RuleBook
from taskq.envelope import Envelope, read_envelope
from taskq.errors import DecodeError
from taskq.message import Message
from taskq.results.base import MAX_ATTEMPT, MAX_STARTS, attempt_of, decode_record, is_terminal
from taskq.topics import PUBLISHED, QUEUE_PREFIX
from taskq.worker import endings, losses
from taskq.worker.endings import Case, Ending
from taskq.worker.held import Held
from taskq.worker.manifest import Manifest

DUPLICATE = "DUPLICATE"
_UNSTARTED_DELIVERIES = 50
_NO_HEADERS = Envelope()


class Admission:
    """Judges deliveries for one worker; pure, the caller brings the stored records.

    Attributes:
        rules: Cancels by workflow, name and header; the caller keeps them up to date.
    """

    def __init__(self, manifest: Manifest, worker: str, results: bool) -> None:
        self._tasks = manifest.tasks
        self._subscribers = {binding.queue: binding.task for binding in manifest.bindings}
        self._park_s = manifest.settings.unknown_max_age_s
        self._worker = worker
        self._results = results
        self._tag = 0
        self.rules = RuleBook()

    def case(self, held: Held) -> Case:
        """Return a delivery as the subject of an ending."""
        return held.case(self._worker, self._results)

    def open(self, delivery: Delivery) -> tuple[Held, Ending | None]:
        """Read a delivery's headers.

        Returns:
            The delivery under its new tag, and an ending when it must not run: malformed, or of a
            task that no executor here knows.
        """
        self._tag += 1
        message = delivery.message
        if message.task == PUBLISHED:
            message = delivery.message = self._addressed(delivery)
        info = self._tasks.get(message.task)
        error = delivery.error
        envelope = _NO_HEADERS
        if error is None:
            try:
                envelope = read_envelope(message)
            except DecodeError as problem:
                error = problem
        held = Held(self._tag, delivery, envelope, info)
        if error is not None and delivery.redelivered:
            held.envelope = _last_word(message)
        if error is not None:
            return held, endings.malformed(held.case(self._worker, self._results), error)
        if info is None:
            case = held.case(self._worker, self._results)
            return held, endings.parked(case, self._park_s)
        return held, None

    def _addressed(self, delivery: Delivery) -> Message:
        """Return a published message as the task of the queue's subscriber, with an id of its own.

        All subscribers get the same message; of each one's run there is a record.
        """
        message = delivery.message
        task = self._subscribers.get(delivery.queue)
        if task is None:
            return message
        # The queue, not the task: workers' copies of a broadcast are no duplicates of each other.
        own = f"{message.id}:{delivery.queue.removeprefix(QUEUE_PREFIX)}"
        return message._replace(task=task, id=own, correlation_id="")

    def judge(self, held: Held, data: bytes | None) -> Ending | None:
        """Hold a delivery against what is stored of its task.

        Args:
            held: The delivery.
            data: The stored record, or None.

        Returns:
            An ending when it must not run (finished, cancelled, superseded by a later attempt,
            expired), or None.
        """
        # Cases are made where one ends: most deliveries have none.
        if data is not None:
            if data[:1] == b"C":
                # The chain behind a cancelled task is cancelled with it.
                return endings.final(self.case(held), outcome.CANCELLED, None)
            if is_terminal(data):
                return _finished(data)
            attempt = attempt_of(data)
            if attempt > held.envelope.retries:
                return Ending(DUPLICATE)
            held.seen_started = attempt == held.envelope.retries and data[:1] == b"B"
        elif not self._results and _delivered_too_often(held):
            return losses.hub_lost(self.case(held))
        if self.cancelled(held, data):
            return endings.final(self.case(held), outcome.CANCELLED, None)
        expires_ms = held.envelope.expires_ms
        if expires_ms and clock.now_ms() >= expires_ms:
            return endings.final(self.case(held), outcome.EXPIRED, None)
        return None

    def cancelled(self, held: Held, data: bytes | None) -> bool:
        """Return whether a task was cancelled, by its id or by a rule.

        Args:
            held: A delivery of it.
            data: The stored record, or None.
        """
        if data is not None and is_terminal(data):
            return data[:1] == b"C"
        message = held.delivery.message
        return self.rules.hit(message, held.envelope.root_id or message.id) is not None


def _last_word(message: Message) -> Envelope:
    """Return an envelope whose FAILURE outranks the STARTED record of the message's own attempt.

    A worker of another version may have read it, and died while it ran it; here nobody can.
    """
    retries = message.headers.get("retries")
    if not isinstance(retries, int) or not 0 <= retries < MAX_ATTEMPT:
        retries = 0
    return Envelope(retries=int(retries), starts=MAX_STARTS)


def _delivered_too_often(held: Held) -> bool:
    """Return whether a message came back so often that its starts must be what brings it back.

    Without a results store nothing counts starts but the broker, which counts what was only
    waiting in a dying worker's hands as well.
    """
    bound = held.info.max_retries if held.info is not None else 0
    return held.delivery.deliveries > bound + _UNSTARTED_DELIVERIES


def _finished(data: bytes) -> Ending:
    """End the redelivery of a finished task: what follows it is sent again, it does not run.

    The worker that stored the record may have died before its follow-ups were confirmed. Their ids
    are the same, so a second copy is recognised where it arrives.
    """
    try:
        record = decode_record(data)
    except DecodeError:
        return Ending(DUPLICATE)
    follow = endings.unpack_follow(record.follow) if record.follow else ()
    return Ending(DUPLICATE, (), follow, detail=record.state)
