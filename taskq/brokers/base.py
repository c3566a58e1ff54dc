"""What every broker promises the rest of taskq; `tests/contract/` is the suite they all pass.

A broker has two faces. The sending face (`Broker`) is blocking and thread-safe; clients, executors
and a worker's settling thread use it. The consuming face (`Consumer`) belongs to the hub's loop.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from taskq.brokers.shapes import QueueShape
from taskq.errors import DecodeError, PublishError
from taskq.message import Message

if TYPE_CHECKING:
    import asyncio

    from taskq.brokers.replay import Replay
    from taskq.events.feed import EventFeed
    from taskq.topics import Binding

DEAD_QUEUE: Final = "taskq.dead"
MIN_DELAY_MS: Final = 100
"""Delays below this are sent at once; the worker holds the message until it is due."""

Declare = Literal["create", "passive", "never"]


@dataclass(frozen=True, slots=True)
class BrokerOptions:
    """What a broker needs to know of the app's settings.

    Attributes:
        prefix: Put before every queue and exchange name on the broker.
        declare: `create` makes missing objects, `passive` checks them, `never` touches none.
        queue_type: `quorum` or `classic`; RabbitMQ only.
        publish_timeout_s: How long a send may take, in seconds.
        dead_ttl_s: How long dead letters are kept, in seconds.
        lease_s: How long the embedded broker trusts a silent worker, in seconds.
        name: Shown to the broker as this connection's name.
        durable_events: Whether lifecycle events must survive a power failure.
        queues: Those that differ from the usual.
        priority_aging: One claim in so many is of a lower priority (embedded only); 0 for none.
    """

    prefix: str = ""
    declare: Declare = "create"
    queue_type: Literal["quorum", "classic"] = "quorum"
    publish_timeout_s: float = 5.0
    dead_ttl_s: int = 14 * 86400
    lease_s: float = 30.0
    name: str = "taskq"
    durable_events: bool = False
    queues: tuple[QueueShape, ...] = ()
    priority_aging: int = 0


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message on its way to a queue, or to the dead letters.

    Attributes:
        queue: Name as the user writes it, without prefix.
        message: What is sent.
        due_ms: Deliver not before this moment (epoch ms); 0 or a past moment for now. A broker may
            deliver early by what its delay grid rounds off; the worker compares and waits.
        dead: Whether it goes to the dead letters; `queue` then only says where it came from.
        topic: Routing key, when `queue` is not a queue but an exchange (`taskq.events`), or empty
            and this is a reply address. Nobody has to listen there.
    """

    queue: str
    message: Message
    due_ms: int = 0
    dead: bool = False
    topic: str = ""


class Delivery:
    """A message in a worker's hands, to be settled exactly once.

    Attributes:
        receipt: What `Consumer.settle` takes back; opaque, and void after `Sink.lost`.
        queue: Queue it came from, without prefix.
        message: The message; with `error`, whatever could be read of it, body bytes intact.
        redelivered: Whether it may have been delivered before; a hint.
        deliveries: Earlier deliveries where the broker counts them (upper bound of starts), else 0.
        error: Why the message cannot be read, or None.
    """

    __slots__ = ("deliveries", "error", "message", "queue", "receipt", "redelivered")

    def __init__(
        self,
        receipt: Any,
        queue: str,
        message: Message,
        redelivered: bool = False,
        deliveries: int = 0,
        error: DecodeError | None = None,
    ) -> None:
        self.receipt = receipt
        self.queue = queue
        self.message = message
        self.redelivered = redelivered
        self.deliveries = deliveries
        self.error = error


class Sink(Protocol):
    """Where a consumer reports; all methods are called on the consumer's loop."""

    def delivered(self, batch: list[Delivery]) -> None:
        """Take messages; as many as arrived in one turn of the loop."""

    def lost(self) -> None:
        """Forget what has not started: it is delivered again. Receipts from before are void."""

    def connection(self, up: bool, detail: str) -> None:
        """Learn that consuming began or stopped; `detail` says why, for logs and readiness."""

    def fatal(self, error: Exception) -> None:
        """Learn that consuming cannot go on: a ConfigError that no reconnect will cure."""

    def control(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """Answer a control request (`{"command": str, ...}`), or None to stay silent."""


class Consumer(ABC):
    """Delivers messages of some queues to one loop, and settles them.

    All methods but `settle` are called on the loop. Lost connections are repaired by the consumer
    itself, with backoff and jitter, for as long as it is open.
    """

    @abstractmethod
    def start(self) -> None:
        """Begin to consume; returns at once, deliveries and connection changes go to the sink."""

    @abstractmethod
    def resize(self, prefetch: int) -> None:
        """Change how many unsettled messages the broker may leave here.

        It holds for all queues together, each getting at least one, where the broker can count so
        (embedded), and for each queue where it cannot (RabbitMQ).
        """

    @abstractmethod
    def pause(self) -> None:
        """Take no further deliveries; those in hand stay, and can be settled."""

    @abstractmethod
    def resume(self) -> None:
        """Take deliveries again after `pause`."""

    @abstractmethod
    def hold(self, queues: Collection[str]) -> None:
        """Take nothing from these queues alone; deliveries under way may still arrive."""

    @abstractmethod
    def rebuild(self) -> None:
        """Consume anew, on a fresh connection where there is one; deliveries in hand are lost.

        What a watchdog asks for when nothing is delivered though messages wait.
        """

    @abstractmethod
    def settle(self, done: Sequence[Any], returned: Sequence[Any] = ()) -> None:
        """Acknowledge receipts, and give others back to their queue at once.

        Thread-safe; void receipts are ignored. Returns when the acknowledgement is on its way, or
        (embedded) committed. Receipts are settled in one transaction where the broker has such.
        """

    @abstractmethod
    async def close(self) -> None:
        """Flush acknowledgements, stop consuming, and give back what is unsettled."""


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """What waits in a queue.

    Attributes:
        ready: Messages that could be delivered now.
        unsettled: Messages in workers' hands, or -1 where the broker does not tell.
        delayed: Messages waiting for their time, or -1 where the broker does not tell by queue.
        consumers: Consumers, or -1.
    """

    ready: int
    unsettled: int = -1
    delayed: int = -1
    consumers: int = -1


@dataclass(frozen=True, slots=True)
class Check:
    """One line of `taskq doctor`.

    Attributes:
        name: Stable name of the check, such as `broker.queue-arguments`.
        status: `ok`, `warning` or `failed`.
        detail: What was found.
        advice: What to do about it; empty when ok.
    """

    name: str
    status: Literal["ok", "warning", "failed"]
    detail: str
    advice: str = ""


Verdict = Literal["keep", "remove"] | Outgoing
"""What a visitor of the dead letters decides: keep it, remove it, or send this and remove it."""


class Publishing(Protocol):
    """A send under way."""

    def wait(self) -> list[PublishError | None]:
        """Return one entry for each message, in order: None when it is durable at the broker.

        Never blocks beyond the timeout given to `submit`.
        """

    async def wait_async(self) -> list[PublishError | None]:
        """Do what `wait` does without blocking the caller's loop."""


class Broker(ABC):
    """The sending and looking face of a broker; thread-safe, usable after a fork.

    Connections open on first use. A process that forked gets fresh ones in the child.

    Attributes:
        url: The URL with its password masked, and file paths absolute.
        options: See `BrokerOptions`.
        durable_count: Whether `Delivery.deliveries` counts across hub deaths.
        may_stand_by: Whether a queue may be meant for another consumer alone.
        flags_returned: Whether a message that was given back arrives as redelivered.
    """

    url: str
    options: BrokerOptions
    flags_returned: bool = False
    may_stand_by: bool = False

    @abstractmethod
    def submit(self, batch: Sequence[Outgoing], timeout_s: float) -> Publishing:
        """Begin to send; confirms are pipelined. Queues are created as `declare` says.

        Never raises for the state of the broker; that is what `wait` reports.
        """

    def publish(self, batch: Sequence[Outgoing], timeout_s: float) -> list[PublishError | None]:
        """Send and wait; see `submit`."""
        return self.submit(batch, timeout_s).wait()

    @abstractmethod
    def consumer(
        self, queues: Sequence[str], prefetch: int, sink: Sink, loop: "asyncio.AbstractEventLoop"
    ) -> Consumer:
        """Make a consumer of these queues, in order of preference; `start` it to begin.

        Args:
            queues: Names without prefix; created as `declare` says.
            prefetch: Unsettled messages the broker may leave here.
            sink: Where deliveries go.
            loop: The loop that everything is called on.
        """

    @abstractmethod
    def declare(self, queues: Iterable[str]) -> None:
        """Create or check queues and what belongs to them, as `options.declare` says.

        Raises:
            TopologyMismatch: If a `taskq.*` object exists with other arguments.
            BrokerUnavailable: If the broker cannot be reached in time.
        """

    @abstractmethod
    def depths(self, queues: Iterable[str]) -> dict[str, QueueDepth | None]:
        """Return the depth of each queue; None for one that does not exist.

        `taskq.dead` names the dead letters.

        Raises:
            BrokerUnavailable: If the broker cannot be reached in time.
        """

    @abstractmethod
    def due_within(self, horizon_s: float) -> int:
        """Return how many delayed messages will (or may) be due within so many seconds.

        `--burst` waits for them. RabbitMQ counts those of every application on its virtual host.
        """

    @abstractmethod
    def known_queues(self) -> list[str]:
        """Return the queues the broker can list by itself (embedded), else an empty list."""

    def waiting(self) -> Iterator[Message] | None:
        """Yield what is not dead, bodies left out; None where nobody can look (RabbitMQ)."""
        return None

    @abstractmethod
    def purge(self, queue: str) -> int:
        """Delete what is ready in a queue and return how many messages that were.

        Raises:
            ConfigError: If there is no such queue.
        """

    @abstractmethod
    def reshard(self, queue: str, count: int) -> int:
        """Move what waits in a queue's shards into `count` others; ConfigError while consumed."""

    @abstractmethod
    def sweep_dead(self, visit: Callable[[Delivery], Verdict]) -> int:
        """Show a snapshot of the dead letters, oldest first, to `visit` and do what it decides.

        A letter is removed only after its replacement was confirmed; kept letters stay as they
        are. When `visit` raises, the letter in hand and the rest are kept.

        Returns:
            How many letters were shown.
        """

    @abstractmethod
    def replay(self, queues: Iterable[str], create: bool = False) -> "Replay":
        """Begin to send dead letters back to queues; see `Replay`.

        Args:
            queues: Where they will go.
            create: Whether queues that are missing are created.

        Raises:
            ConfigError: If a queue is missing, or another replay is under way.
            BrokerUnavailable: If the broker cannot be reached.
        """

    @abstractmethod
    def ask(self, request: Mapping[str, Any], timeout_s: float) -> list[dict[str, Any]]:
        """Send a control request to all workers and collect answers until the timeout.

        Args:
            request: `{"command": "ping", ...}`; plain msgpack data.
            timeout_s: How long to collect, in seconds.
        """

    @abstractmethod
    def bind(self, bindings: "Sequence[Binding]") -> None:
        """Learn what subscribers' queues get; it is arranged whenever such a queue is declared."""

    @abstractmethod
    def request(self, item: Outgoing, timeout_s: float) -> bytes:
        """Send a message and return the body of the answer that its receiver publishes.

        Args:
            item: The message; its `reply_to` is set here.
            timeout_s: How long to wait, in seconds.

        Raises:
            TimeoutError: If no answer came in time.
            BrokerUnavailable: If the broker cannot be reached, or was lost meanwhile.
        """

    @abstractmethod
    def events(self, name: str = "", prefetch: int = 100) -> "EventFeed":
        """Read lifecycle events.

        Args:
            name: Under which the place is kept, so that nothing is missed between two readers, one
                of which reads at a time. Empty: from now on.
            prefetch: Batches that may be on their way here.

        Raises:
            ConfigError: If the broker refuses.
            BrokerUnavailable: If it cannot be opened.
        """

    @abstractmethod
    def checks(self, queues: Iterable[str]) -> list[Check]:
        """Examine the broker for `taskq doctor`: reachable, version, permissions, arguments."""

    @abstractmethod
    def close(self) -> None:
        """Close connections and threads; may be called twice."""
